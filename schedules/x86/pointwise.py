"""Pointwise (1x1, stride 1) convolution, NCHW[x]c float32, as a register-tiled GEMM.

One register tile is ``chunks`` channel blocks times ``rows`` x ``columns`` pixels. For every
input channel it loads ``chunks`` weight vectors and broadcasts one float a pixel; its sums
never leave the registers until the epilogue (bias, ReLU6, hard-swish, residual) is done.
TVM's stock template (topi/x86/conv2d_avx_1x1.py) goes through a buffer for each of a row
block's rows and applies the epilogue in a pass of its own.

``pixels_outer`` decides what is reused from cache: 0 keeps one block of weights in L1 and
streams the pixels past it; 1 keeps a band of pixels and streams the weights, better where the
pixels do not fit L2 and the weights do (the 112x112 layers).
"""

from __future__ import annotations

import functools
import itertools
import math
from typing import Any

from tvm import autotvm, te
from tvm.autotvm.task.space import ConfigSpace, OtherOptionEntity

from mobilenet_tvm.schedules import pointwise as shared
from mobilenet_tvm.schedules.layout import divisors, shape_of
from mobilenet_tvm.schedules.template import schedule_template
from mobilenet_tvm.schedules.x86.layout import channel_block, max_accumulators

TASK = "pointwise_conv2d_NCHWc.mobilenet_x86"
TAG = "mobilenet_pointwise_NCHWc"


def _define_space(cfg: Any, out_chunks: int, height: int, width: int) -> None:
    """Knobs: the register tile ``chunks`` x ``rows`` x ``columns``, ``band``, ``pixels_outer``.

    ``band`` is how many rows of tiles one unit of parallel work has. All knobs are numbers,
    because AutoTVM's cost model learns from their values.
    """
    limit = max_accumulators()
    # One pixel needs many channel blocks to keep the FMA units busy.
    tile = {
        "chunks": divisors(out_chunks, 8 if height * width < 8 else 4),
        "rows": [rows for rows in (1, 2) if rows <= height],
        "columns": divisors(width, limit),
    }
    for knob, values in tile.items():
        cfg.define_knob(knob, values)
    cfg.define_knob("band", sorted({1, max(height // 8, 1), max(height // 2, 1)}))
    cfg.define_knob("pixels_outer", [0, 1])

    # Fewer than four sums cannot hide the latency of an FMA, unless there are no more: a prime
    # width above the limit and an odd number of blocks leave tiles of one or two.
    sizes = (math.prod(sizes) for sizes in itertools.product(*tile.values()))
    fewest = min(4, max(size for size in sizes if size <= limit))

    def keep(entity: Any) -> bool:
        sums = entity["chunks"].val * entity["rows"].val * entity["columns"].val
        return bool(sums <= limit and (sums >= fewest or entity["columns"].val == width))

    if isinstance(cfg, ConfigSpace):
        cfg.multi_filter(keep)
    if cfg.is_fallback:
        # Untuned: one channel block by the widest row tile in half the registers.
        columns = divisors(width, max(limit // 2, 4))[-1]
        chunks = tile["chunks"][-1] if columns < 4 else 1
        default = {"chunks": chunks, "rows": 1, "columns": columns, "band": 1, "pixels_outer": 0}
        for knob, value in default.items():
            cfg[knob] = OtherOptionEntity(value)


@autotvm.register_topi_compute(TASK)
def pointwise_conv2d(
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
    """Compute a 1x1 convolution with stride 1 and no padding.

    Args:
        cfg: the AutoTVM configuration.
        data: ``[N, C/x, H, W, x]``, or ``[N, C, H, W]`` when the task is described.
        kernel: ``[K/y, C/x, 1, 1, x, y]``, or ``[K, C, 1, 1]``.
        strides: must be 1.
        padding: must be 0.
        dilation: has no effect on one tap.
        layout: of the data; kept for the workload's key.
        out_layout: of the output; kept for the workload's key.
        out_dtype: ``float32``.

    Returns:
        ``[N, K/y, H, W, y]``, or ``[N, K, H, W]`` for 4-D data outside tuning.
    """
    return shared.compute(
        cfg, data, kernel, tag=TAG, channel_block=channel_block, define_space=_define_space
    )


@autotvm.register_topi_schedule(TASK)
def schedule_pointwise_conv2d(cfg: Any, outs: Any) -> te.Schedule:
    """Schedule a pointwise convolution and the elementwise operators fused behind it."""
    return schedule_template(outs, TAG, functools.partial(_schedule, cfg))


def _schedule(cfg: Any, schedule: te.Schedule, sums: te.Tensor, out: te.Tensor) -> None:
    in_block = shape_of(sums.op.input_tensors[0])[-1]

    schedule[sums].compute_at(schedule[out], shared.tile(cfg, schedule[out]))
    _, k, h, w, o = schedule[sums].op.axis
    (channel,) = schedule[sums].op.reduce_axis
    channel_outer, channel_inner = schedule[sums].split(channel, in_block)
    schedule[sums].reorder(channel_outer, channel_inner, k, h, w, o)
    for axis in (k, h, w):
        schedule[sums].unroll(axis)
    schedule[sums].vectorize(o)
