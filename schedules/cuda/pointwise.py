"""Pointwise (1x1, stride 1) convolution, NCHW4c float32: a matrix product, tiled for a GPU.

``[K, C] x [C, H*W]``: a block of threads computes ``threads_k * chunks`` channel blocks of the
output times ``threads_y * rows`` x ``threads_x`` pixels; a thread, in registers, ``chunks`` channel
blocks times ``rows`` pixels of one column. Input channels come in stages of ``step`` blocks of
four through shared memory, in ``buffers`` buffers: with two, one barrier a stage is enough, and
other warps compute while one waits for its loads.

Four channels of a pixel are one load, and so are four channels of the output of one weight row:
the weights are packed as ``[C][K]`` whole (``OIHW4i{K}o``), so that any tile of them is
contiguous. Neighbouring threads have neighbouring pixels, in shared memory as in the image:
no bank is asked twice by a quarter of a warp, and the weights are the same for all of it.

``split`` is for layers with few pixels and many channels (7x7x1024): so many groups of a block's
threads each add up a share of the input channels for the same outputs, and their sums meet in
shared memory; without it there are not threads enough for all multiprocessors.

An image of one pixel is a matrix times a vector: ``schedules/cuda/vector.py``.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator
from typing import Any, NamedTuple

from tvm import autotvm, te

from mobilenet_tvm.schedules import pointwise as shared
from mobilenet_tvm.schedules.cuda import threads as of
from mobilenet_tvm.schedules.cuda import vector
from mobilenet_tvm.schedules.cuda.model import (
    BARRIER_CYCLES,
    Work,
    bank_passes,
    best_padding,
)
from mobilenet_tvm.schedules.cuda.space import columns, define_knobs, ranked, values
from mobilenet_tvm.schedules.cuda.target import BANKS, LANES, Gpu, channel_block, current
from mobilenet_tvm.schedules.layout import divisors, shape_of

TASK = "pointwise_conv2d_NCHWc.mobilenet_cuda"
TAG = "mobilenet_pointwise_NCHWc"

KNOBS = (
    "chunks",
    "rows",
    "threads_k",
    "threads_y",
    "threads_x",
    "step",
    "split",
    "buffers",
)
MAX_SUMS = 64  # in registers; with more, too few threads are resident
MIN_THREADS, MAX_THREADS = 32, 512
MAX_LOADS = 20  # vectors that a thread loads at once for a stage
STEPS = (1, 2, 3, 4, 6, 8)
SPLITS = (1, 2, 4, 8, 16)


class Layer(NamedTuple):
    """A pointwise convolution: ``[N, C, H, W] -> [N, K, H, W]``."""

    batch: int
    channels: int
    filters: int
    height: int
    width: int


def layer_of(data: te.Tensor, kernel: te.Tensor) -> Layer:
    """Of tensors in either layout."""
    batch, chunks, height, width, *block = shape_of(data)
    outer, *_, last = shape_of(kernel)
    blocked = bool(block)
    return Layer(
        batch, chunks * block[0] if blocked else chunks, outer * last if blocked else outer,
        height, width,
    )  # fmt: skip


def registers(sums: int, operands: int, loads: int) -> int:
    """Of a thread, about what ptxas gives it: sums, addresses, and what is under way.

    That is either what is multiplied, twice, to load ahead, or the vectors of the next stage.
    """
    return sums + max(2 * operands, LANES * loads) + 24


class Padding(NamedTuple):
    """Vectors of 16 bytes left free between two channel blocks of a stage, and what they help.

    Without them the groups of ``split`` may all find their operands in the same banks.

    Attributes:
        pixels: between two channel blocks of the image.
        weights: between those of the weights.
        pixel_passes: that a load of a pixel takes, of the least.
        weight_passes: that a load of weights takes, of the least.
    """

    pixels: int
    weights: int
    pixel_passes: float
    weight_passes: float


@functools.cache
def padding(
    chunks: int, rows: int, threads_k: int, threads_y: int, threads_x: int, step: int, split: int
) -> Padding:
    """The padding with the fewest passes."""
    extents = split, threads_k, threads_y, threads_x
    row = rows * threads_x

    def pixel(pad: int) -> float:
        return bank_passes(extents, (step * (threads_y * row + pad), 0, row, 1))

    def weight(pad: int) -> float:
        return bank_passes(extents, (step * (LANES * threads_k * chunks + pad), chunks, 0, 0))

    if split == 1:
        return Padding(0, 0, pixel(0), weight(0))
    (pixels, pixel_passes), (weights, weight_passes) = map(best_padding, (pixel, weight))
    return Padding(pixels, weights, pixel_passes, weight_passes)


def _tiles(layer: Layer) -> Iterator[tuple[int, ...]]:
    in_chunks = layer.channels // channel_block(layer.channels)
    out_block = channel_block(layer.filters)
    out_chunks = layer.filters // out_block
    for chunks, rows, threads_x in itertools.product(
        [n for n in (1, 2, 3, 4) if out_chunks % n == 0],
        divisors(layer.height, 16),
        columns(layer.width),
    ):
        if chunks * rows * out_block > MAX_SUMS:
            continue
        for threads_k, threads_y, split in itertools.product(
            divisors(out_chunks // chunks, 32), divisors(layer.height // rows, 8), SPLITS
        ):
            # What the groups found is added up by all threads, see ``_spread``.
            whole_columns = threads_y == 1 and rows == layer.height
            if in_chunks % split or (chunks * rows % split and not whole_columns):
                continue
            threads = threads_k * threads_y * threads_x * split
            if not MIN_THREADS <= threads <= MAX_THREADS:
                continue
            for step in STEPS:
                staged = step * split * (threads_y * rows * threads_x + 4 * threads_k * chunks)
                if in_chunks % (split * step) == 0 and staged <= MAX_LOADS * threads:
                    stages = in_chunks // (split * step)
                    for buffers in (1, 2) if stages > 1 else (1,):
                        yield (
                            chunks, rows, threads_k, threads_y, threads_x, step, split, buffers,
                        )  # fmt: skip


def work(layer: Layer, tile: tuple[int, ...]) -> Work:
    """What a block of one configuration does."""
    chunks, rows, threads_k, threads_y, threads_x, step, split, buffers = tile
    in_block, out_block = channel_block(layer.channels), channel_block(layer.filters)
    in_chunks, out_chunks = layer.channels // in_block, layer.filters // out_block
    threads = threads_k * threads_y * threads_x * split
    pixels = threads_y * rows * threads_x
    filters = threads_k * chunks * out_block
    stages = in_chunks // (step * split)
    pad = padding(*tile[:-1])
    staged_pixels = 4 * step * split * (in_block * pixels + LANES * pad.pixels)
    staged_weights = 4 * step * split * (in_block * filters + LANES * pad.weights)
    staged = staged_pixels + staged_weights
    sums_bytes = 4 * split * filters * pixels if split > 1 else 0
    shared_bytes = buffers * staged
    if sums_bytes > buffers * max(staged_pixels, staged_weights):  # TVM reuses one of the two
        shared_bytes = sums_bytes + buffers * min(staged_pixels, staged_weights)
    sums = chunks * rows * out_block
    # Of one thread for one channel block of the input: its pixels, and its weights' rows.
    operands = (
        rows * in_block * pad.pixel_passes + in_block * chunks * out_block * pad.weight_passes
    )
    area = layer.height * layer.width
    blocks = layer.batch * (area // pixels) * (out_chunks // (threads_k * chunks))
    trips = -(-staged_pixels // (16 * threads)) - (-staged_weights // (16 * threads))
    return Work(
        blocks=blocks,
        threads=threads,
        registers=registers(sums, rows * in_block + chunks * out_block, trips),
        shared_bytes=shared_bytes,
        fmas=filters * pixels * layer.channels,
        shared_traffic=int(4 * operands * threads * in_chunks // split)
        + staged * stages
        + 2 * sums_bytes,
        l2_traffic=staged * stages + 4 * filters * pixels,
        traffic=4
        * (layer.channels * layer.filters + layer.batch * area * (layer.channels + layer.filters)),
        stages=stages,
        overlapped=buffers == 2,
        instructions=6 * trips * threads * stages + 8 * filters * pixels,
        depth_cycles=(3 + split) * BARRIER_CYCLES if split > 1 else 0,
    )


@functools.cache
def _ranked(gpu: Gpu, layer: Layer) -> tuple[tuple[int, ...], ...]:
    return ranked(gpu, ((tile, work(layer, tile)) for tile in _tiles(layer)))


def define_space(cfg: Any, layer: Layer) -> None:
    """The knobs; see the top of this module."""
    if layer.height * layer.width == 1:
        vector.define_space(cfg, layer.batch, layer.channels, layer.filters)
    else:
        define_knobs(cfg, KNOBS, _ranked(current(), layer))


def whole(_cfg: Any, out_chunks: int, _height: int = 0, _width: int = 0) -> int:
    """The weights of all of the output's channel blocks lie together."""
    return out_chunks


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
        kernel: ``[1, C/x, 1, 1, x, K]``, or ``[K, C, 1, 1]``.
        strides: must be 1.
        padding: must be 0.
        dilation: has no effect on one tap.
        layout: of the data; kept for the workload's key.
        out_layout: of the output; kept for the workload's key.
        out_dtype: ``float32``.

    Returns:
        ``[N, K/z, H, W, z]``, or ``[N, K, H, W]`` for 4-D data outside tuning.
    """
    layer = layer_of(data, kernel)
    return shared.compute(
        cfg,
        data,
        kernel,
        tag=TAG,
        channel_block=channel_block,
        define_space=lambda cfg, *_: define_space(cfg, layer),
        kernel_chunks=whole,
    )


@autotvm.register_topi_schedule(TASK)
def schedule_pointwise_conv2d(cfg: Any, outs: Any) -> te.Schedule:
    """Schedule a pointwise convolution and the elementwise operators fused behind it."""
    return of.schedule_convolution(outs, TAG, functools.partial(_schedule, cfg))


def _schedule(cfg: Any, schedule: te.Schedule, sums: te.Tensor, out: te.Tensor) -> None:
    _, _, height, width, _ = shape_of(out)
    if height * width == 1:
        vector.schedule(cfg, schedule, sums, out)
        return
    knobs = values(cfg, KNOBS)
    split = knobs["split"]
    in_block = shape_of(sums.op.input_tensors[0])[-1]
    count = knobs["threads_k"] * knobs["threads_y"] * knobs["threads_x"] * split
    thread = of.thread_axis(count)

    (channel,) = schedule[sums].op.reduce_axis
    stage_of_channels, channel = schedule[sums].split(channel, split * knobs["step"] * in_block)
    if split == 1:
        own = _tile(schedule[out], knobs, thread, grid=True)
        schedule[sums].compute_at(schedule[out], own)
    else:
        # The groups' shares lie beside each other in a stage, so that a stage is contiguous.
        group, channel = schedule[sums].split(channel, knobs["step"] * in_block)
        partial = schedule.rfactor(sums, group)
        together, sums = sums, schedule.cache_write(partial, "local")
        schedule[partial].set_scope("shared")
        block, own = _spread(schedule[out], knobs, thread, count)
        schedule[together].compute_at(schedule[out], own)
        schedule[together].unroll(schedule[together].op.reduce_axis[0])
        schedule[together].vectorize(schedule[together].op.axis[-1])
        schedule[partial].compute_at(schedule[out], block)
        schedule[sums].compute_at(
            schedule[partial], _tile(schedule[partial], knobs, thread, grid=False)
        )
        stage_of_channels, channel = schedule[sums].op.reduce_axis

    stage = schedule[sums]
    *_, k, h, w, o = stage.op.axis
    chunk, lane = stage.split(channel, in_block)
    stage.reorder(stage_of_channels, chunk, lane, k, h, w, o)
    for axis in (chunk, lane, k, h, o):
        stage.unroll(axis)

    free = padding(*(knobs[name] for name in KNOBS[:-1]))
    pixels = knobs["threads_y"] * knobs["rows"] * knobs["threads_x"]
    filters = knobs["threads_k"] * knobs["chunks"] * shape_of(out)[-1]
    rests = (
        in_block * pixels + LANES * free.pixels,
        in_block * filters + LANES * free.weights,
    )
    for tensor, at, stride in zip(_operands(sums), (chunk, lane), rests, strict=True):
        staged = schedule.cache_read(tensor, "shared", [sums])
        of.keep_in_registers(schedule, schedule.cache_read(staged, "local", [sums]), sums, at)
        schedule[staged].compute_at(stage, stage_of_channels)
        if split > 1:
            schedule[staged].storage_align(schedule[staged].op.axis[1], BANKS, stride % BANKS)
        if knobs["buffers"] == 2:
            schedule[staged].double_buffer()
        of.load_together(schedule, staged, thread, count)


def _operands(sums: te.Tensor) -> tuple[te.Tensor, te.Tensor]:
    """The image and the weights."""
    image, weights = sums.op.input_tensors
    return (image, weights) if len(image.shape) == 5 else (weights, image)


def _tile(stage: te.schedule.Stage, knobs: Any, thread: Any, *, grid: bool) -> Any:
    """A thread's registers; returns the thread's axis. ``grid``: and the blocks."""
    *groups, n, k, h, w, o = stage.op.axis
    k_outer, k = stage.split(k, knobs["threads_k"] * knobs["chunks"])
    k_thread, k_inner = stage.split(k, knobs["chunks"])
    h_outer, h = stage.split(h, knobs["threads_y"] * knobs["rows"])
    h_thread, h_inner = stage.split(h, knobs["rows"])
    w_outer, w_thread = stage.split(w, knobs["threads_x"])
    inner = (*groups, k_thread, h_thread, w_thread, k_inner, h_inner, o)
    if grid:
        scope, n = of.leave_unrolling(stage, n)
        stage.reorder(scope, n, k_outer, h_outer, w_outer, *inner)
        of.bind_blocks(stage, stage.fuse(h_outer, w_outer), k_outer, n)
    else:
        stage.reorder(n, k_outer, h_outer, w_outer, *inner)
    own = stage.fuse(*groups, k_thread, h_thread, w_thread)
    stage.bind(own, thread)
    stage.unroll(k_inner)
    stage.unroll(h_inner)
    stage.vectorize(o)
    return own


def _spread(stage: te.schedule.Stage, knobs: Any, thread: Any, count: int) -> tuple[Any, Any]:
    """The tile's outputs dealt out to all threads; returns the block's and the thread's axis.

    Where they cannot be dealt out evenly, every group takes whole rows, or none: the tile is as
    tall as the image then, and TVM sees that rows beyond it are not asked for. (With other axes it
    would have them computed.)
    """
    n, k, h, w, o = stage.op.axis
    scope, n = of.leave_unrolling(stage, n)
    k_outer, k = stage.split(k, knobs["threads_k"] * knobs["chunks"])
    h_outer, h = stage.split(h, knobs["threads_y"] * knobs["rows"])
    w_outer, w = stage.split(w, knobs["threads_x"])
    stage.reorder(scope, n, k_outer, h_outer, w_outer, k, h, w, o)
    block = stage.fuse(h_outer, w_outer)
    of.bind_blocks(stage, block, k_outer, n)
    if knobs["chunks"] * knobs["rows"] % knobs["split"] == 0:
        trip, own = stage.split(stage.fuse(k, h, w), count)
    else:
        k, k_inner = stage.split(k, knobs["chunks"])
        trip, h = stage.split(h, knobs["split"])
        stage.reorder(trip, k_inner, h, k, w, o)
        stage.unroll(k_inner)
        own = stage.fuse(h, k, w)
    stage.bind(own, thread)
    stage.unroll(trip)
    stage.vectorize(o)
    return block, own
