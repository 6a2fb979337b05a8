"""The first convolution (few input channels, any kernel and stride), float32, for NEON.

A register tile is ``chunks`` channel blocks times ``rows`` x ``columns`` pixels, as in
``pointwise``, and the weights are packed as it reads them: a float of the image is loaded once
for all of the tile's channels.
"""

from __future__ import annotations

import functools
import itertools
from typing import Any

from tvm import autotvm, te
from tvm.autotvm.task.space import ConfigSpace, OtherOptionEntity

from mobilenet_tvm.schedules import stem as shared
from mobilenet_tvm.schedules.arm.target import channel_block, registers
from mobilenet_tvm.schedules.layout import divisors
from mobilenet_tvm.schedules.template import schedule_template

TASK = "stem_conv2d_NCHWc.mobilenet_arm"
TAG = "mobilenet_stem_NCHWc"
DEFAULT_SUMS = 16
# 3x3. With more, LLVM takes the weights out of the loop over a row, and spills them all.
MAX_UNROLLED_TAPS = 9


def define_space(cfg: Any, out_chunks: int, height: int, width: int) -> None:
    """Knobs: the register tile ``chunks`` x ``rows`` x ``columns``, and ``pixels_outer``.

    Args:
        cfg: the AutoTVM configuration.
        out_chunks: channel blocks of the output.
        height: of the output.
        width: of the output.
    """
    knobs = {
        "chunks": divisors(out_chunks, 8),
        "rows": [rows for rows in (1, 2) if height % rows == 0],
        "columns": divisors(width, registers()),
    }
    # The weights of one tap, two floats of the image, and the sums.
    kept = {
        tile
        for tile in itertools.product(*knobs.values())
        if tile[0] * tile[1] * tile[2] + tile[0] + 2 <= registers()
    }
    for knob, values in knobs.items():
        cfg.define_knob(knob, values)
    cfg.define_knob("pixels_outer", [1, 0])
    if isinstance(cfg, ConfigSpace):
        cfg.multi_filter(lambda entity: tuple(entity[knob].val for knob in knobs) in kept)
    if cfg.is_fallback:
        # All channels of two pixels below each other: what is loaded for one serves the other.
        sums = {tile: tile[0] * tile[1] * tile[2] for tile in kept}
        fine = [tile for tile in kept if sums[tile] <= DEFAULT_SUMS]
        tile = max(fine, key=lambda tile: (sums[tile], tile))
        for knob, value in {**dict(zip(knobs, tile, strict=True)), "pixels_outer": 1}.items():
            cfg[knob] = OtherOptionEntity(value)


def kernel_chunks(cfg: Any, out_chunks: int, height: int, width: int) -> int:
    """How many of the output's channel blocks a block of the weights is of: a register tile's."""
    define_space(cfg, out_chunks, height, width)
    return int(cfg["chunks"].val)


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
        kernel: ``[K/y, 1, KH, KW, C, y]``, ``y`` being ``chunks`` blocks, or ``[K, C, KH, KW]``
            when the task is described.
        strides: ``(vertical, horizontal)``.
        padding: ``(top, left, bottom, right)`` or a shorter form of it.
        dilation: must be 1.
        layout: of the data, NCHW; kept for the workload's key.
        out_layout: of the output; kept for the workload's key.
        out_dtype: ``float32``.

    Returns:
        ``[N, K/z, OH, OW, z]``, or ``[N, K, OH, OW]`` for a 4-D kernel outside tuning.
    """
    return shared.compute(
        cfg,
        data,
        kernel,
        strides,
        padding,
        tag=TAG,
        channel_block=channel_block,
        define_space=define_space,
        kernel_chunks=lambda cfg, _: int(cfg["chunks"].val),
    )


@autotvm.register_topi_schedule(TASK)
def schedule_stem_conv2d(cfg: Any, outs: Any) -> te.Schedule:
    """Schedule a first convolution and the elementwise operators fused behind it."""
    return schedule_template(outs, TAG, functools.partial(_schedule, cfg))


def _schedule(cfg: Any, schedule: te.Schedule, sums: te.Tensor, out: te.Tensor) -> None:
    stage = schedule[out]
    n, k, h, w, o = stage.op.axis
    k_outer, k_inner = stage.split(k, cfg["chunks"].val)
    h_outer, h_inner = stage.split(h, cfg["rows"].val)
    w_outer, w_inner = stage.split(w, cfg["columns"].val)
    inner = (w_outer, k_inner, h_inner, w_inner, o)
    if cfg["pixels_outer"].val:
        stage.reorder(n, h_outer, k_outer, *inner)
        stage.parallel(stage.fuse(n, h_outer))
    else:
        stage.reorder(n, k_outer, h_outer, *inner)
        stage.parallel(stage.fuse(n, k_outer, h_outer))
    for axis in (k_inner, h_inner, w_inner):
        stage.unroll(axis)
    stage.vectorize(o)

    schedule[sums].compute_at(stage, w_outer)
    _, k, h, w, o = schedule[sums].op.axis
    channel, tap_y, tap_x = schedule[sums].op.reduce_axis
    schedule[sums].reorder(channel, tap_y, tap_x, h, w, k, o)
    for axis in (h, w, k):
        schedule[sums].unroll(axis)
    taps = 1
    for axis in (tap_x, tap_y, channel):
        taps *= int(axis.dom.extent)
        if taps <= MAX_UNROLLED_TAPS:
            schedule[sums].unroll(axis)
    schedule[sums].vectorize(o)
