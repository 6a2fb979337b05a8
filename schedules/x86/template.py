"""The row tile of the depthwise and first convolutions' templates."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

from tvm.autotvm.task.space import ConfigSpace, OtherOptionEntity
from tvm.topi.nn.utils import get_pad_tuple

from mobilenet_tvm.schedules.layout import divisors
from mobilenet_tvm.schedules.x86.layout import registers
from mobilenet_tvm.schedules.x86.model import Core

# At most so many bands: the rows at the edge of a band are read twice.
_BANDS = 8


def this_core() -> Core:
    """The current target's core."""
    return Core(registers())


def tile_sizes(width: int, limit: int) -> list[int]:
    """Sizes up to ``limit`` of equal tiles of ``width`` pixels, ascending.

    Where no divisor makes a tile of four pixels (a prime width), sizes whose last tile is a few
    pixels short are among them: those pixels cost a branch in the loop.
    """
    sizes = divisors(width, limit)
    if sizes[-1] < min(4, width):
        parts = range(-(-width // limit), -(-width // 4) + 1)
        sizes = sorted({*sizes, *(-(-width // count) for count in parts)})
    return sizes


def bands(height: int) -> list[int]:
    """Heights of bands of rows of tiles that are units of parallel work, ascending."""
    parts = (max(height // count, 1) for count in (8, 4, 2, 1))
    return sorted({1, *parts, default_band(height)})


def default_band(height: int) -> int:
    """Rows of a band: an even number of bands, at most eight, of equal height.

    So two threads have equal shares, and each finds the rows that it wrote itself in its own L2,
    in every layer alike. A large odd height has eight, the last one lower; a small one has a single
    band, and threads share the channels.
    """
    odd = height if height < 2 * _BANDS else -(-height // _BANDS)
    return next((height // count for count in (8, 4, 2) if height % count == 0), odd)


def in_even_bands(height: int, rows: int) -> bool:
    """Whether ``height`` rows are an even number of equal bands of so many."""
    return height % rows == 0 and height // rows % 2 == 0


def keeps_rows(task: Any, config: Any) -> bool:
    """Whether two threads with ``config`` keep to the rows that they wrote (see ``default_band``).

    A trial does not show it: its input was written by nobody in particular. Measured in the model,
    configurations that win alone on two threads and divide the channels lose a quarter of V2's
    speed. What has no such choice (an odd height, other templates) keeps all.
    """
    if not task.name.endswith(".mobilenet_x86"):
        return True
    (_, data, _), (_, kernel, _), strides, padding = task.args[:4]
    top, _, bottom, _ = get_pad_tuple(padding, tuple(kernel[2:4]))
    height = (data[2] + top + bottom - kernel[2]) // int(strides[0]) + 1
    if height % 2:
        return True
    rows = config["rows"].val * config["band"].val
    by_bands = "pointwise" not in task.name or config["pixels_outer"].val
    return bool(by_bands and in_even_bands(height, rows))


def define_row_tile(
    cfg: Any, height: int, width: int, other_knob: str, cycles: Callable[[int, int], float]
) -> None:
    """Knobs ``rows`` x ``columns``, an output tile that fits the registers, ``band``, and a switch.

    ``band`` rows of tiles are one unit of parallel work. The untuned default is the tile of the
    fewest ``cycles(rows, columns)`` for an output, in bands of ``default_band``, with the switch
    on. All knobs are numbers, because AutoTVM's cost model learns from their values.
    """
    limit = this_core().most_sums
    rows = [rows for rows in (1, 2) if height % rows == 0]
    columns = tile_sizes(width, limit)
    cfg.define_knob("rows", rows)
    cfg.define_knob("columns", columns)
    cfg.define_knob("band", bands(height))
    cfg.define_knob(other_knob, [1, 0])
    if isinstance(cfg, ConfigSpace):
        cfg.multi_filter(
            lambda entity: bool(
                entity["rows"].val * entity["columns"].val <= limit
                and entity["rows"].val * entity["band"].val <= height
            )
        )
    if cfg.is_fallback:
        # Of as many rows of tiles as an even number of bands can share.
        even = [count for count in rows if height % 2 or in_even_bands(height, count)]
        tiles = [tile for tile in itertools.product(even, columns) if math.prod(tile) <= limit]
        best = min(tiles, key=lambda tile: cycles(*tile))
        for knob, value in zip(("rows", "columns"), best, strict=True):
            cfg[knob] = OtherOptionEntity(value)
        cfg["band"] = OtherOptionEntity(default_band(height // best[0]))
        cfg[other_knob] = OtherOptionEntity(1)
