"""Depthwise convolution, NCHW[x]c float32: any odd or even kernel, any stride, any padding.

Three things make it fast where TVM's stock template (topi/x86/depthwise_conv2d.py) is not:

- No padded copy. Rows outside the image are read from the nearest row with a zero weight
  (a select on nine weight vectors, outside the inner loops); columns outside it are loads
  that are constant zero once the row tile is unrolled, except in the first and last tile.
- The tile's sums stay in registers and the epilogue (bias, ReLU6, residual) is applied to
  them there: nothing is written but the output.
- One vector is one channel block, so no lane is ever idle or permuted.
"""

from __future__ import annotations

import functools
from typing import Any

from tvm import autotvm, te

from mobilenet_tvm.schedules import depthwise as shared
from mobilenet_tvm.schedules.layout import shape_of
from mobilenet_tvm.schedules.template import schedule_template
from mobilenet_tvm.schedules.x86.layout import channel_block
from mobilenet_tvm.schedules.x86.model import window_cycles
from mobilenet_tvm.schedules.x86.template import define_row_tile, this_core

TASK = "depthwise_conv2d_NCHWc.mobilenet_x86"
TAG = "mobilenet_depthwise_NCHWc"


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
        define_space=functools.partial(_define_space, data, kernel, strides),
    )


def _define_space(
    data: te.Tensor,
    kernel: te.Tensor,
    strides: Any,
    cfg: Any,
    height: int,
    width: int,
    _taps: int,
    _stride: int,
) -> None:
    shape, window = shape_of(data), shape_of(kernel)[2:4]
    block = shape[4] if len(shape) == 5 else channel_block(shape[1])
    vertical, horizontal = (int(stride) for stride in strides)
    core = this_core()

    def cycles(rows: int, columns: int) -> float:
        return window_cycles(core, block, window, (vertical, horizontal), rows, columns)

    # taps_outer: the order of the sums' loops.
    define_row_tile(cfg, height, width, "taps_outer", cycles)


@autotvm.register_topi_schedule(TASK)
def schedule_depthwise_conv2d(cfg: Any, outs: Any) -> te.Schedule:
    """Schedule a depthwise convolution and the elementwise operators fused behind it."""
    return schedule_template(outs, TAG, functools.partial(shared.schedule_tiles, cfg, bands=True))
