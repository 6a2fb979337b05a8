"""Pointwise (1x1, stride 1) convolution, NCHW[x]c float32, as a register-tiled GEMM for NEON.

One register tile is ``chunks`` channel blocks times ``rows`` x ``columns`` pixels. For a block
of input channels it loads one vector a pixel and takes its lanes one by one (``fmla`` by
element), so that four channels of 2 x 7 vectors of sums cost 56 FMAs and 15 loads, 8 of them
pairs. TVM's stock template (topi/arm_cpu/conv2d_spatial_pack.py) broadcasts every float and has
its vectors along the width.

The weights are packed as the tile reads them: ``OIHW4i8o`` for two blocks, from front to back,
one stream however many blocks the tile has. The layout is known before they are packed, for
``chunks`` is part of the configuration; the activations' layout does not depend on it.

``lanes`` is how many input channels one load takes: 4 (a whole vector), or 2 on cores that
issue in order, where a 64-bit load goes beside an FMA and a 128-bit one does not.
``pixels_outer`` decides what is reused from cache: 0 keeps the weights of one tile and streams
the pixels past them; 1 keeps a band of pixels and streams the weights.
"""

from __future__ import annotations

import functools
import itertools
from typing import Any

from tvm import autotvm, te
from tvm.autotvm.task.space import ConfigSpace, OtherOptionEntity

from mobilenet_tvm.schedules import pointwise as shared
from mobilenet_tvm.schedules.arm.target import (
    LANES,
    channel_block,
    in_order,
    load_lanes,
    registers,
)
from mobilenet_tvm.schedules.layout import divisors, shape_of
from mobilenet_tvm.schedules.template import schedule_template

TASK = "pointwise_conv2d_NCHWc.mobilenet_arm"
TAG = "mobilenet_pointwise_NCHWc"

MAX_CHUNKS = 4
MAX_CHUNKS_OF_FEW_PIXELS = 16  # one pixel needs many blocks to keep the FMA units busy
# Sums that hide an FMA's latency: 4 cycles at two a cycle, or 8 at one (Cortex-A53).
ENOUGH_SUMS = 8
# Beyond 28x28 the pixels of one image leave a small L2 cache, and the weights are few.
MAX_PIXELS_IN_CACHE = 28 * 28


def fits(chunks: int, pixels: int, lanes: int) -> bool:
    """Whether a tile and its operands fit the vector registers.

    Either all of the tile's pixels or all the weights of ``lanes`` channels stay in registers
    while the others pass through two more; a 32-bit target may have no fused multiply-add, and
    needs two for products. Of halved loads LLVM begins with all.
    """
    passing = 2 if registers() == 32 else 4
    operands = min(pixels, chunks * LANES) if lanes == LANES else pixels * (LANES // lanes)
    return chunks * pixels + operands + passing <= registers()


def loads_per_fma(chunks: int, pixels: int) -> float:
    """Vectors loaded for one FMA by a tile."""
    return 1 / (4 * chunks) + 1 / pixels


def define_space(cfg: Any, out_chunks: int, height: int, width: int) -> None:
    """Knobs: the register tile ``chunks`` x ``rows`` x ``columns``, ``lanes``, ``band`` and order.

    ``band`` is how many rows of tiles one unit of parallel work has. All knobs are numbers,
    because AutoTVM's cost model learns from their values. The untuned default is the tile with
    the fewest loads.

    Args:
        cfg: the AutoTVM configuration.
        out_chunks: channel blocks of the output.
        height: of the output.
        width: of the output.
    """
    few = height * width < ENOUGH_SUMS
    knobs = {
        "chunks": divisors(out_chunks, MAX_CHUNKS_OF_FEW_PIXELS if few else MAX_CHUNKS),
        "rows": [rows for rows in (1, 2) if height % rows == 0],
        "columns": divisors(width, registers()),
        "lanes": [LANES, LANES // 2] if in_order() else [LANES],
    }
    tiles = [
        (chunks, rows, columns, lanes)
        for chunks, rows, columns, lanes in itertools.product(*knobs.values())
        if fits(chunks, rows * columns, lanes)
    ]
    most = max(chunks * rows * columns for chunks, rows, columns, _ in tiles)
    fewest = min(ENOUGH_SUMS, most)
    kept = {tile for tile in tiles if tile[0] * tile[1] * tile[2] >= fewest}
    for knob, values in knobs.items():
        cfg.define_knob(knob, values)
    cfg.define_knob("band", sorted({1, max(height // 8, 1), max(height // 2, 1)}))
    cfg.define_knob("pixels_outer", [0, 1])
    if isinstance(cfg, ConfigSpace):
        cfg.multi_filter(lambda entity: tuple(entity[knob].val for knob in knobs) in kept)
    if cfg.is_fallback:
        fine = [tile for tile in kept if tile[3] == load_lanes()] or kept
        tile = min(fine, key=lambda tile: (loads_per_fma(tile[0], tile[1] * tile[2]), tile))
        default = {**dict(zip(knobs, tile, strict=True)), "band": 1}
        default["pixels_outer"] = int(height * width > MAX_PIXELS_IN_CACHE)
        for knob, value in default.items():
            cfg[knob] = OtherOptionEntity(value)


def kernel_chunks(cfg: Any, out_chunks: int, height: int, width: int) -> int:
    """How many of the output's channel blocks a block of the weights is of: a register tile's."""
    define_space(cfg, out_chunks, height, width)
    return int(cfg["chunks"].val)


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
        kernel: ``[K/y, C/x, 1, 1, x, y]``, ``y`` being ``chunks`` blocks, or ``[K, C, 1, 1]``.
        strides: must be 1.
        padding: must be 0.
        dilation: has no effect on one tap.
        layout: of the data; kept for the workload's key.
        out_layout: of the output; kept for the workload's key.
        out_dtype: ``float32``.

    Returns:
        ``[N, K/z, H, W, z]``, or ``[N, K, H, W]`` for 4-D data outside tuning.
    """
    return shared.compute(
        cfg,
        data,
        kernel,
        tag=TAG,
        channel_block=channel_block,
        define_space=define_space,
        kernel_chunks=lambda cfg, _: int(cfg["chunks"].val),
    )


@autotvm.register_topi_schedule(TASK)
def schedule_pointwise_conv2d(cfg: Any, outs: Any) -> te.Schedule:
    """Schedule a pointwise convolution and the elementwise operators fused behind it."""
    return schedule_template(outs, TAG, functools.partial(_schedule, cfg))


def _schedule(cfg: Any, schedule: te.Schedule, sums: te.Tensor, out: te.Tensor) -> None:
    data = sums.op.input_tensors[0]
    in_block = shape_of(data)[-1]
    lanes = min(cfg["lanes"].val, in_block)

    # A buffer that LLVM turns into registers, for all that touches it is unrolled. It must be
    # "global": TVM asks the runtime for memory of any other scope, in every call.
    pixels = schedule.cache_read(data, "global", [sums])
    schedule[sums].compute_at(schedule[out], shared.tile(cfg, schedule[out]))
    _, k, h, w, o = schedule[sums].op.axis
    (channel,) = schedule[sums].op.reduce_axis
    channel_outer, channel = schedule[sums].split(channel, in_block)
    channel_middle, channel_inner = schedule[sums].split(channel, lanes)
    schedule[sums].reorder(channel_outer, channel_middle, channel_inner, k, h, w, o)
    for axis in (channel_middle, channel_inner, k, h, w):
        schedule[sums].unroll(axis)
    schedule[sums].vectorize(o)

    schedule[pixels].compute_at(schedule[sums], channel_middle)
    *outer, lane = schedule[pixels].op.axis
    for axis in outer:
        schedule[pixels].unroll(axis)
    schedule[pixels].vectorize(lane)
