"""The first convolution (few input channels, any kernel and stride), float32.

As in the other templates, the sums stay in registers until the epilogue is done.
"""

from __future__ import annotations

import functools
from typing import Any

from tvm import autotvm, te

from mobilenet_tvm.schedules import stem as shared
from mobilenet_tvm.schedules.template import schedule_template
from mobilenet_tvm.schedules.x86.layout import channel_block
from mobilenet_tvm.schedules.x86.template import define_row_tile

TASK = "stem_conv2d_NCHWc.mobilenet_x86"
TAG = "mobilenet_stem_NCHWc"
_SUMS = 14  # of the untuned default's tile


@autotvm.register_topi_compute(TASK)
def stem_conv2d(
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
    """Compute a convolution over few input channels.

    Args:
        cfg: the AutoTVM configuration.
        data: ``[N, C, H, W]``.
        kernel: ``[K/y, 1, KH, KW, C, y]``, or ``[K, C, KH, KW]`` when the task is described.
        strides: ``(vertical, horizontal)``.
        padding: ``(top, left, bottom, right)`` or a shorter form of it.
        dilation: must be 1.
        layout: of the data, NCHW; kept for the workload's key.
        out_layout: of the output; kept for the workload's key.
        out_dtype: ``float32``.

    Returns:
        ``[N, K/y, OH, OW, y]``, or ``[N, K, OH, OW]`` for a 4-D kernel outside tuning.
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


def _define_space(cfg: Any, _chunks: int, height: int, width: int) -> None:
    def cycles(rows: int, columns: int) -> float:
        # The weights come from L1 for each tile, which wants many sums; half the registers are
        # for the pixels of several taps.
        return abs(rows * columns - _SUMS) + rows

    # pixels_outer: as in pointwise.
    define_row_tile(cfg, height, width, "pixels_outer", cycles)


@autotvm.register_topi_schedule(TASK)
def schedule_stem_conv2d(cfg: Any, outs: Any) -> te.Schedule:
    """Schedule a first convolution and the elementwise operators fused behind it."""
    return schedule_template(outs, TAG, functools.partial(_schedule, cfg))


def _schedule(cfg: Any, schedule: te.Schedule, sums: te.Tensor, out: te.Tensor) -> None:
    stage = schedule[out]
    n, k, h, w, o = stage.op.axis
    band, h = stage.split(h, cfg["rows"].val * cfg["band"].val)
    h_outer, h_inner = stage.split(h, cfg["rows"].val)
    w_outer, w_inner = stage.split(w, cfg["columns"].val)
    if cfg["pixels_outer"].val:
        stage.reorder(n, band, h_outer, k, w_outer, h_inner, w_inner, o)
        stage.parallel(stage.fuse(n, band, h_outer))
    else:
        stage.reorder(n, band, k, h_outer, w_outer, h_inner, w_inner, o)
        stage.parallel(stage.fuse(n, band, k))
    stage.unroll(h_inner)
    stage.unroll(w_inner)
    stage.vectorize(o)

    schedule[sums].compute_at(stage, w_outer)
    _, k, h, w, o = schedule[sums].op.axis
    channel, tap_y, tap_x = schedule[sums].op.reduce_axis
    schedule[sums].reorder(channel, tap_y, tap_x, k, h, w, o)
    for axis in (h, w):
        schedule[sums].unroll(axis)
    taps = 1
    for axis in (tap_x, tap_y, channel):
        taps *= int(axis.dom.extent)
        if taps <= shared.MAX_UNROLLED_TAPS:
            schedule[sums].unroll(axis)
    schedule[sums].vectorize(o)
