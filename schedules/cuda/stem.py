"""The first convolution (few input channels, any kernel and stride), float32, for NVIDIA GPUs.

It reads the image as it comes and writes blocks of four channels. A thread computes ``chunks``
channel blocks of ``rows`` pixels of one column; a block of threads is ``threads_k`` x ``threads_y``
x ``threads_x`` of them. Its part of the image and its weights come through shared memory, padding
being part of the load: a float of the image serves all of a block's channels, a weight all of its
pixels.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator
from typing import Any, NamedTuple

from tvm import autotvm, te
from tvm.topi.nn.utils import get_pad_tuple

from mobilenet_tvm.schedules import stem as shared
from mobilenet_tvm.schedules.cuda import threads as of
from mobilenet_tvm.schedules.cuda.model import Work
from mobilenet_tvm.schedules.cuda.pointwise import whole
from mobilenet_tvm.schedules.cuda.space import columns, define_knobs, ranked, values
from mobilenet_tvm.schedules.cuda.target import Gpu, channel_block, current
from mobilenet_tvm.schedules.layout import divisors, shape_of

TASK = "stem_conv2d_NCHWc.mobilenet_cuda"
TAG = "mobilenet_stem_NCHWc"

KNOBS = ("chunks", "rows", "threads_k", "threads_y", "threads_x")
MAX_SUMS = 64
MIN_THREADS, MAX_THREADS = 32, 512


class Layer(NamedTuple):
    """A convolution with an output of ``filters`` x ``height`` x ``width``."""

    batch: int
    channels: int
    filters: int
    height: int
    width: int
    kernel: tuple[int, int]
    strides: tuple[int, int]


def layer_of(data: te.Tensor, kernel: te.Tensor, strides: Any, padding: Any) -> Layer:
    """Of an image ``[N, C, H, W]`` and weights in either layout."""
    batch, channels, height, width = shape_of(data)
    outer, _, *taps = shape_of(kernel)[:4]
    filters = outer * (shape_of(kernel)[5] if len(kernel.shape) == 6 else 1)
    top, left, bottom, right = get_pad_tuple(padding, taps)
    down, along = (int(stride) for stride in strides)
    return Layer(
        batch,
        channels,
        filters,
        (height + int(top) + int(bottom) - taps[0]) // down + 1,
        (width + int(left) + int(right) - taps[1]) // along + 1,
        (taps[0], taps[1]),
        (down, along),
    )


def _tiles(layer: Layer) -> Iterator[tuple[int, ...]]:
    block = channel_block(layer.filters)
    out_chunks = layer.filters // block
    for chunks, rows, threads_x in itertools.product(
        [n for n in (1, 2, 4, 8) if out_chunks % n == 0],
        divisors(layer.height, 8),
        columns(layer.width),
    ):
        if chunks * rows * block > MAX_SUMS:
            continue
        for threads_k, threads_y in itertools.product(
            divisors(out_chunks // chunks, 8), divisors(layer.height // rows, 16)
        ):
            threads = threads_k * threads_y * threads_x
            most = out_chunks // chunks * (layer.height // rows) * layer.width
            if min(MIN_THREADS, most) <= threads <= MAX_THREADS:
                yield chunks, rows, threads_k, threads_y, threads_x


def work(layer: Layer, tile: tuple[int, ...]) -> Work:
    """What a block of one configuration does."""
    chunks, rows, threads_k, threads_y, threads_x = tile
    block = channel_block(layer.filters)
    (tall, wide), (down, along) = layer.kernel, layer.strides
    threads = threads_k * threads_y * threads_x
    taps = layer.channels * tall * wide
    filters = threads_k * chunks * block
    pixels = threads_y * rows * threads_x
    image = (
        layer.channels * ((threads_y * rows - 1) * down + tall) * ((threads_x - 1) * along + wide)
    )
    area = layer.batch * layer.height * layer.width
    trips = -(-image // threads) * threads
    # A stride of two asks every bank twice for each float of a warp.
    pixel_loads = threads * taps * rows * min(along, 2)
    return Work(
        blocks=area // pixels * (layer.filters // filters),
        threads=threads,
        registers=chunks * rows * block + 2 * (rows + chunks * block) + 24,
        shared_bytes=4 * (image + taps * filters),
        fmas=filters * pixels * taps,
        shared_traffic=4 * (threads * taps * chunks * block + pixel_loads + image),
        l2_traffic=4 * (image + taps * filters + filters * pixels),
        traffic=4 * area * (layer.filters + layer.channels * down * along),
        stages=1,
        instructions=16 * trips + 4 * filters * pixels,
    )


@functools.cache
def _ranked(gpu: Gpu, layer: Layer) -> tuple[tuple[int, ...], ...]:
    return ranked(gpu, ((tile, work(layer, tile)) for tile in _tiles(layer)))


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
        kernel: ``[1, 1, KH, KW, C, K]``, or ``[K, C, KH, KW]`` when the task is described.
        strides: ``(vertical, horizontal)``.
        padding: ``(top, left, bottom, right)`` or a shorter form of it.
        dilation: must be 1.
        layout: of the data, NCHW; kept for the workload's key.
        out_layout: of the output; kept for the workload's key.
        out_dtype: ``float32``.

    Returns:
        ``[N, K/z, OH, OW, z]``, or ``[N, K, OH, OW]`` for a 4-D kernel outside tuning.
    """
    layer = layer_of(data, kernel, strides, padding)
    return shared.compute(
        cfg,
        data,
        kernel,
        strides,
        padding,
        tag=TAG,
        channel_block=channel_block,
        define_space=lambda cfg, *_: define_knobs(cfg, KNOBS, _ranked(current(), layer)),
        kernel_chunks=whole,
        pad_apart=True,
    )


@autotvm.register_topi_schedule(TASK)
def schedule_stem_conv2d(cfg: Any, outs: Any) -> te.Schedule:
    """Schedule a first convolution and the elementwise operators fused behind it."""
    return of.schedule_convolution(outs, TAG, functools.partial(_schedule, cfg))


def _schedule(cfg: Any, schedule: te.Schedule, sums: te.Tensor, out: te.Tensor) -> None:
    knobs = values(cfg, KNOBS)
    count = knobs["threads_k"] * knobs["threads_y"] * knobs["threads_x"]
    thread = of.thread_axis(count)
    image = next(t for t in sums.op.input_tensors if t.op.name == "padded")
    weights = next(t for t in sums.op.input_tensors if t.op.name != "padded")

    stage = schedule[out]
    n, k, h, w, o = stage.op.axis
    scope, n = of.leave_unrolling(stage, n)
    k_outer, k = stage.split(k, knobs["threads_k"] * knobs["chunks"])
    k_thread, k_inner = stage.split(k, knobs["chunks"])
    h_outer, h = stage.split(h, knobs["threads_y"] * knobs["rows"])
    h_thread, h_inner = stage.split(h, knobs["rows"])
    w_outer, w_thread = stage.split(w, knobs["threads_x"])
    stage.reorder(
        scope, n, k_outer, h_outer, w_outer, k_thread, h_thread, w_thread, k_inner, h_inner, o
    )
    block = stage.fuse(h_outer, w_outer)
    of.bind_blocks(stage, block, k_outer, n)
    own = stage.fuse(k_thread, h_thread, w_thread)
    stage.bind(own, thread)
    stage.unroll(k_inner)
    stage.unroll(h_inner)
    stage.vectorize(o)

    schedule[sums].compute_at(stage, own)
    stage = schedule[sums]
    _, k, h, w, o = stage.op.axis
    channel, tap_y, tap_x = stage.op.reduce_axis
    stage.reorder(channel, tap_y, tap_x, k, h, w, o)
    for axis in (tap_x, k, h, o):
        stage.unroll(axis)

    staged = schedule.cache_read(weights, "shared", [sums])
    copies = (
        (image, schedule.cache_read(image, "local", [sums])),
        (staged, schedule.cache_read(staged, "local", [sums])),
    )
    schedule[image].set_scope("shared")
    for source, copy in copies:
        of.keep_in_registers(schedule, copy, sums, tap_x)
        schedule[source].compute_at(schedule[out], block)
        of.load_together(schedule, source, thread, count)
