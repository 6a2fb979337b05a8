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
from collections.abc import Mapping
from typing import Any, Final

from tvm import autotvm, te
from tvm.autotvm.task.space import ConfigSpace, OtherOptionEntity

from mobilenet_tvm.schedules import pointwise as shared
from mobilenet_tvm.schedules.layout import divisors, shape_of
from mobilenet_tvm.schedules.template import schedule_template
from mobilenet_tvm.schedules.x86 import prefetch
from mobilenet_tvm.schedules.x86.layout import channel_block
from mobilenet_tvm.schedules.x86.model import (
    FLOAT_BYTES,
    Gemm,
    best_of,
    pointwise_cycles,
    sums_cycles,
)
from mobilenet_tvm.schedules.x86.template import bands, in_even_bands, this_core, tile_sizes

TASK = "pointwise_conv2d_NCHWc.mobilenet_x86"
TAG = "mobilenet_pointwise_NCHWc"
# Weights of so many bytes have left L2 by the next inference.
_FAR_BYTES: Final = 128 << 10
# A register tile that takes so many times as long as the best one, by the model, is not tried.
_HOPELESS: Final = 1.6


def _gemm(data: te.Tensor, kernel: te.Tensor) -> Gemm:
    """The convolution's size, from tensors in NCHW/OIHW or in blocks."""
    shape, weights = shape_of(data), shape_of(kernel)
    channels = shape[1] * (shape[4] if len(shape) == 5 else 1)
    filters = weights[0] * (weights[5] if len(weights) == 6 else 1)
    in_block = shape[4] if len(shape) == 5 else channel_block(channels)
    out_block = weights[5] if len(weights) == 6 else channel_block(filters)
    return Gemm(channels, filters, shape[2], shape[3], in_block, out_block)


def _define_space(gemm: Gemm, cfg: Any, out_chunks: int, height: int, width: int) -> None:
    """Knobs: the register tile ``chunks`` x ``rows`` x ``columns``, ``band``, ``pixels_outer``.

    ``band`` is how many rows of tiles one unit of parallel work has. All knobs are numbers,
    because AutoTVM's cost model learns from their values.
    """
    core = this_core()
    knobs = {
        # One pixel needs many channel blocks to keep the FMA units busy.
        "chunks": divisors(out_chunks, 8 if height * width < 8 else 6),
        "rows": [rows for rows in (1, 2, 4) if height % rows == 0],
        "columns": tile_sizes(width, core.most_sums),
        "band": bands(height),
        "pixels_outer": [0, 1],
    }
    for knob, values in knobs.items():
        cfg.define_knob(knob, values)

    def cycles(values: Mapping[str, int]) -> float:
        return pointwise_cycles(core, gemm, **values)

    def keeps_rows(values: Mapping[str, int]) -> bool:
        by_bands = bool(values["pixels_outer"])
        return by_bands and in_even_bands(height, values["rows"] * values["band"])

    # The untuned default: in an even number of bands, if it can be (why: ``default_band``).
    best = best_of(knobs, cycles, keeps_rows) or best_of(knobs, cycles)
    if isinstance(cfg, ConfigSpace):
        # A tile whose sums do not stay in registers, or that are too few to hide an FMA's latency,
        # cannot win: measuring it would be time lost.
        tiles = itertools.product(knobs["chunks"], knobs["rows"], knobs["columns"])
        cost = {
            tile: sums_cycles(core, gemm.out_block, tile[0], tile[1] * tile[2])
            / (tile[0] * tile[1] * tile[2])
            for tile in tiles
        }
        default = cost[best["chunks"], best["rows"], best["columns"]]
        limit = max(_HOPELESS * min(cost.values()), default)

        def keep(entity: Any) -> bool:
            if entity["rows"].val * entity["band"].val > height:
                return False
            return cost[tuple(entity[knob].val for knob in ("chunks", "rows", "columns"))] <= limit

        cfg.multi_filter(keep)
    if cfg.is_fallback:
        for knob, value in best.items():
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
        cfg,
        data,
        kernel,
        tag=TAG,
        channel_block=channel_block,
        define_space=functools.partial(_define_space, _gemm(data, kernel)),
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

    # Where several tiles share a block of weights and these come from far away: one pixel's
    # layer reads each weight once, as fast as it can, and small weights are in L2 still.
    _, filters, height, width, block = shape_of(out)
    channels = int(channel.dom.extent)
    tiles = height * width // (cfg["rows"].val * cfg["columns"].val)
    if tiles > 1 and channels * filters * block * FLOAT_BYTES >= _FAR_BYTES:
        prefetch.mark(schedule[sums], channel_outer, channels * block * cfg["chunks"].val)
