"""From modelled configurations to AutoTVM's knobs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tvm.autotvm.task.space import ConfigSpace, OtherOptionEntity

from mobilenet_tvm.schedules.cuda.model import Work, fits, microseconds
from mobilenet_tvm.schedules.cuda.target import Gpu
from mobilenet_tvm.schedules.layout import divisors

MAX_CONFIGS = 300

Tile = tuple[int, ...]


def columns(width: int) -> list[int]:
    """Threads beside each other: some divisors of a row, the largest that make sense.

    With less than seven a load reaches few of the bytes of a cache line.
    """
    found = divisors(width, 128)
    return [n for n in found if n >= min(width, 7)][-4:] or found[-1:]


def ranked(gpu: Gpu, works: Iterable[tuple[Tile, Work]]) -> tuple[Tile, ...]:
    """The configurations that fit the GPU, the best by the model first, at most ``MAX_CONFIGS``.

    Equal times are told apart by the configuration itself, so that the order is the same
    everywhere.
    """
    timed = sorted(
        (round(microseconds(gpu, work), 3), tile) for tile, work in works if fits(gpu, work)
    )
    return tuple(tile for _, tile in timed[:MAX_CONFIGS])


def define_knobs(cfg: Any, names: Sequence[str], tiles: Sequence[Tile]) -> None:
    """Knobs of which exactly ``tiles`` are valid; the first of them is the untuned default.

    All knobs are numbers, because AutoTVM's cost model learns from their values.
    """
    for name, values in zip(names, zip(*tiles, strict=True), strict=True):
        cfg.define_knob(name, sorted(set(values)))
    if isinstance(cfg, ConfigSpace):
        valid = set(tiles)
        cfg.multi_filter(lambda entity: tuple(entity[name].val for name in names) in valid)
    if cfg.is_fallback:
        for name, value in zip(names, tiles[0], strict=True):
            cfg[name] = OtherOptionEntity(value)


def values(cfg: Any, names: Sequence[str]) -> Mapping[str, int]:
    """The knobs' values."""
    return {name: int(cfg[name].val) for name in names}
