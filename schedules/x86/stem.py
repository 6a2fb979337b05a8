"""The first convolution (few input channels, any kernel and stride), float32.

It reads the image as it comes, ``[N, C, H, W]``, and writes the blocked layout of the layers
behind it: TVM's stock template wants its input blocked and padded first, two more passes over
the image. As in the other templates, the sums stay in registers until the
epilogue is done, and padding is part of the load (see ``window``).
"""

from __future__ import annotations

import functools
from typing import Any

from tvm import autotvm, te
from tvm.topi.nn.utils import get_pad_tuple

from mobilenet_tvm.schedules.x86.layout import (
    channel_block,
    shape_of,
)
from mobilenet_tvm.schedules.x86.template import define_row_tile, schedule_template, unpacked
from mobilenet_tvm.schedules.x86.window import padded_product

TASK = "stem_conv2d_NCHWc.mobilenet_x86"
TAG = "mobilenet_stem_NCHWc"
MAX_CHANNELS = 4  # colour images; with more, a blocked input pays
MAX_UNROLLED_TAPS = 36  # 3x3 over four channels; LLVM chews half a minute on 7x7 over three


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
    unpack = False
    batch, channels, height, width = shape_of(data)
    if len(kernel.shape) == 4:
        filters, _, kernel_height, kernel_width = shape_of(kernel)
        block = channel_block(filters)
        packed = (filters // block, 1, kernel_height, kernel_width, channels, block)
        if autotvm.GLOBAL_SCOPE.in_tuning:
            kernel = te.placeholder(packed, kernel.dtype, "kernel")
        else:  # only reached with layout alteration off: correct, not fast
            unpack = True
            plain = kernel
            kernel = te.compute(
                packed, lambda k, _c, y, x, i, o: plain[k * block + o, i, y, x], name="packed"
            )
    chunks, _, kernel_height, kernel_width, _, block = shape_of(kernel)
    stride_y, stride_x = (int(stride) for stride in strides)
    pads = get_pad_tuple(padding, (kernel_height, kernel_width))
    top, left, bottom, right = (int(pad) for pad in pads)
    out_height = (height + top + bottom - kernel_height) // stride_y + 1
    out_width = (width + left + right - kernel_width) // stride_x + 1
    # pixels_outer: as in pointwise.
    define_row_tile(cfg, out_height, out_width, "pixels_outer")
    taps = channels * kernel_height * kernel_width
    cfg.add_flop(2 * batch * chunks * block * out_height * out_width * taps)

    channel = te.reduce_axis((0, channels), name="channel")
    tap_y = te.reduce_axis((0, kernel_height), name="tap_y")
    tap_x = te.reduce_axis((0, kernel_width), name="tap_x")
    out = te.compute(
        (batch, chunks, out_height, out_width, block),
        lambda n, k, h, w, o: te.sum(
            padded_product(
                lambda y, x: data[n, channel, y, x],
                kernel[k, 0, tap_y, tap_x, channel, o],
                (h * stride_y + tap_y - top, w * stride_x + tap_x - left),
                (height, width),
                (top, left, bottom, right),
            ),
            axis=[channel, tap_y, tap_x],
        ),
        name="stem",
        tag=TAG,
    )
    return unpacked(out, TAG) if unpack else out


@autotvm.register_topi_schedule(TASK)
def schedule_stem_conv2d(cfg: Any, outs: Any) -> te.Schedule:
    """Schedule a first convolution and the elementwise operators fused behind it."""
    return schedule_template(outs, TAG, functools.partial(_schedule, cfg))


def _schedule(cfg: Any, schedule: te.Schedule, sums: te.Tensor, out: te.Tensor) -> None:
    stage = schedule[out]
    n, k, h, w, o = stage.op.axis
    h_outer, h_inner = stage.split(h, cfg["rows"].val)
    w_outer, w_inner = stage.split(w, cfg["columns"].val)
    if cfg["pixels_outer"].val:
        stage.reorder(n, h_outer, k, w_outer, h_inner, w_inner, o)
        stage.parallel(stage.fuse(n, h_outer))
    else:
        stage.reorder(n, k, h_outer, w_outer, h_inner, w_inner, o)
        stage.parallel(stage.fuse(n, k, h_outer))
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
        if taps <= MAX_UNROLLED_TAPS:
            schedule[sums].unroll(axis)
    schedule[sums].vectorize(o)
