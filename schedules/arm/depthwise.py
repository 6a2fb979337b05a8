"""Depthwise convolution, NCHW[x]c float32, for NEON: any kernel, any stride, any padding.

As on x86 there is no padded copy, the tile's sums stay in registers until the epilogue (bias,
ReLU6, residual) is done, and one vector is one channel block. TVM's stock template
(topi/arm_cpu/depthwise_conv2d.py) copies the input into a padded buffer and has its vectors
along the width.

A load is as dear as an FMA here, so what counts is how often a loaded pixel is used: in a tile of
two rows of a 3x3 kernel, four rows of pixels serve six rows of taps.
"""

from __future__ import annotations

import functools
import itertools
from typing import Any

from tvm import autotvm, te
from tvm.autotvm.task.space import ConfigSpace, OtherOptionEntity

from mobilenet_tvm.schedules import depthwise as shared
from mobilenet_tvm.schedules.arm.target import channel_block, in_order, registers
from mobilenet_tvm.schedules.layout import divisors
from mobilenet_tvm.schedules.template import schedule_template

TASK = "depthwise_conv2d_NCHWc.mobilenet_arm"
TAG = "mobilenet_depthwise_NCHWc"
# FMAs in one unrolled tile. LLVM takes a second for that many, and much longer for more.
MAX_UNROLLED = 400
# With the weights of 3x3 taps and a row of pixels they fill 32 registers.
DEFAULT_SUMS = 7


def _default_tile(all_rows: list[int], width: int, stride: int) -> tuple[int, int]:
    """Most sums that leave room for the weights: seven beside each other where they divide a row.

    LLVM unrolls a loop over two tiles, and then keeps too much of both at once. Not so where it
    schedules for a core that issues in order and neighbours share pixels: there it gains by it.
    """
    all_columns = divisors(width, DEFAULT_SUMS)
    two_tiles = width == 2 * all_columns[-1] and not (in_order() and stride == 1)
    if two_tiles and in_order():
        return all_rows[-1], 1
    tiles = [
        (rows, columns)
        for rows, columns in itertools.product(all_rows, all_columns[: -1 if two_tiles else None])
        if rows * columns <= DEFAULT_SUMS
    ]
    return max(tiles, key=lambda tile: (tile[0] * tile[1], tile), default=(1, 1))


def _define_space(cfg: Any, height: int, width: int, taps: int, stride: int) -> None:
    """Knobs ``rows`` x ``columns``, an output tile, and ``taps_outer``, the order of its loops."""
    spare = 6  # the weights and pixels that are being multiplied
    sums = registers() - spare

    def fits(rows: int, columns: int) -> bool:
        tile = rows * columns
        return tile == 1 or (tile <= sums and tile * taps <= MAX_UNROLLED)

    all_rows = [rows for rows in (1, 2, 4) if height % rows == 0]
    all_columns = divisors(width, sums)
    cfg.define_knob("rows", all_rows)
    cfg.define_knob("columns", all_columns)
    cfg.define_knob("taps_outer", [1, 0])
    if isinstance(cfg, ConfigSpace):
        cfg.multi_filter(lambda entity: fits(entity["rows"].val, entity["columns"].val))
    if cfg.is_fallback:
        rows, columns = _default_tile([row for row in all_rows if row <= 2], width, stride)
        cfg["rows"], cfg["columns"] = OtherOptionEntity(rows), OtherOptionEntity(columns)
        cfg["taps_outer"] = OtherOptionEntity(int(not in_order()))


@autotvm.register_topi_compute(TASK)
def depthwise_conv2d(
    cfg: Any,
    data: te.Tensor,
    kernel: te.Tensor,
    strides: Any,
    padding: Any,
    dilation: Any,
    layout: str,
    out_layout: str,
    out_dtype: str,
) -> te.Tensor:
    """Compute a depthwise convolution.

    Args:
        cfg: the AutoTVM configuration.
        data: ``[N, C/x, H, W, x]``, or ``[N, C, H, W]`` when the task is described.
        kernel: ``[C/x, 1, KH, KW, 1, x]``, or ``[C, 1, KH, KW]``.
        strides: ``(vertical, horizontal)``.
        padding: ``(top, left, bottom, right)`` or a shorter form of it.
        dilation: must be 1.
        layout: of the data; kept for the workload's key.
        out_layout: of the output; kept for the workload's key.
        out_dtype: ``float32``.

    Returns:
        ``[N, C/x, OH, OW, x]``, or ``[N, C, OH, OW]`` for 4-D data outside tuning.
    """
    return shared.compute(
        cfg,
        data,
        kernel,
        strides,
        padding,
        tag=TAG,
        channel_block=channel_block,
        define_space=_define_space,
    )


@autotvm.register_topi_schedule(TASK)
def schedule_depthwise_conv2d(cfg: Any, outs: Any) -> te.Schedule:
    """Schedule a depthwise convolution and the elementwise operators fused behind it."""
    return schedule_template(outs, TAG, functools.partial(shared.schedule_tiles, cfg))
