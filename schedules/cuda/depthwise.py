"""Depthwise convolution, NCHW4c float32, for NVIDIA GPUs: any kernel, any stride, any padding.

A thread computes ``rows`` pixels of one column, four channels each: a pixel loaded for one row
serves the taps of up to three (five). Neighbouring threads have neighbouring columns. A block is
``threads_c`` channel blocks times ``threads_y`` x ``threads_x`` threads. With ``staged`` 1 its
part of the image comes through shared memory, each pixel loaded once; with 0 threads load from L1
what they need. Padding is part of that load, and bias, activation and residual of the store.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator
from typing import Any, NamedTuple

from tvm import autotvm, te
from tvm.topi.nn.utils import get_pad_tuple

from mobilenet_tvm.schedules import depthwise as shared
from mobilenet_tvm.schedules.cuda import threads as of
from mobilenet_tvm.schedules.cuda.model import Work, bank_passes, best_padding
from mobilenet_tvm.schedules.cuda.space import columns, define_knobs, ranked, values
from mobilenet_tvm.schedules.cuda.target import BANKS, Gpu, channel_block, current
from mobilenet_tvm.schedules.layout import divisors, shape_of

TASK = "depthwise_conv2d_NCHWc.mobilenet_cuda"
TAG = "mobilenet_depthwise_NCHWc"

KNOBS = ("rows", "threads_c", "threads_y", "threads_x", "staged")
MIN_THREADS, MAX_THREADS = 32, 512


class Layer(NamedTuple):
    """A depthwise convolution with an output of ``height`` x ``width``."""

    batch: int
    channels: int
    height: int
    width: int
    kernel: tuple[int, int]
    strides: tuple[int, int]


def layer_of(data: te.Tensor, kernel: te.Tensor, strides: Any, padding: Any) -> Layer:
    """Of tensors in either layout."""
    batch, chunks, height, width, *block = shape_of(data)
    taps = shape_of(kernel)[2:4]
    top, left, bottom, right = get_pad_tuple(padding, taps)
    down, along = (int(stride) for stride in strides)
    return Layer(
        batch,
        chunks * (block[0] if block else 1),
        (height + int(top) + int(bottom) - taps[0]) // down + 1,
        (width + int(left) + int(right) - taps[1]) // along + 1,
        (taps[0], taps[1]),
        (down, along),
    )


def _tiles(layer: Layer) -> Iterator[tuple[int, ...]]:
    chunks = layer.channels // channel_block(layer.channels)
    for rows, threads_x in itertools.product(divisors(layer.height, 8), columns(layer.width)):
        for threads_y, threads_c in itertools.product(
            divisors(layer.height // rows, 16), divisors(chunks, 64)
        ):
            threads = threads_c * threads_y * threads_x
            most = layer.height // rows * layer.width * chunks
            if min(MIN_THREADS, most) <= threads <= MAX_THREADS:
                yield rows, threads_c, threads_y, threads_x, 0
                yield rows, threads_c, threads_y, threads_x, 1


@functools.cache
def padding(
    kernel: tuple[int, int], strides: tuple[int, int], tile: tuple[int, ...]
) -> tuple[int, float]:
    """Vectors left free behind a row of the staged image, so that threads meet in few banks."""
    rows, threads_c, threads_y, threads_x, _ = tile
    (tall, wide), (down, along) = kernel, strides
    patch_rows, patch_columns = (threads_y * rows - 1) * down + tall, (threads_x - 1) * along + wide

    def pixel(pad: int) -> float:
        row = patch_columns + pad
        extents = threads_c, threads_y, threads_x
        return bank_passes(extents, (patch_rows * row, rows * down * row, along))

    return best_padding(pixel)


def work(layer: Layer, tile: tuple[int, ...]) -> Work:
    """What a block of one configuration does."""
    rows, threads_c, threads_y, threads_x, staged = tile
    block = channel_block(layer.channels)
    (tall, wide), (down, along) = layer.kernel, layer.strides
    threads = threads_c * threads_y * threads_x
    outputs = threads * rows * block

    def patch(rows: int, columns: int) -> int:
        return ((rows - 1) * down + tall) * ((columns - 1) * along + wide) * block

    image = threads_c * patch(threads_y * rows, threads_x)
    free, passes = padding(layer.kernel, layer.strides, tile) if staged else (0, 1.0)
    kept = image + threads_c * ((threads_y * rows - 1) * down + tall) * free * block
    own_rows = (rows - 1) * down + tall
    loads = threads * own_rows * wide  # vectors
    weights = threads * tall * wide
    pixels = layer.batch * layer.channels * layer.height * layer.width
    trips = -(-image // (block * threads)) * threads
    return Work(
        blocks=pixels // outputs,
        threads=threads,
        registers=(rows + own_rows) * block + 28,
        shared_bytes=4 * kept * staged,
        fmas=outputs * tall * wide,
        shared_traffic=int(4 * block * (loads * passes + weights)) + 4 * image * staged,
        l2_traffic=4 * (image + threads_c * tall * wide * block + outputs),
        traffic=4 * (pixels * (1 + down * along) + layer.channels * tall * wide),
        stages=1,
        # A predicate and an address for each load of the padded image.
        instructions=12 * (trips if staged else loads) + 2 * outputs,
    )


@functools.cache
def _ranked(gpu: Gpu, layer: Layer) -> tuple[tuple[int, ...], ...]:
    return ranked(gpu, ((tile, work(layer, tile)) for tile in _tiles(layer)))


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
    strides = strides if isinstance(strides, list | tuple) else (strides, strides)
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
        pad_apart=True,
    )


@autotvm.register_topi_schedule(TASK)
def schedule_depthwise_conv2d(cfg: Any, outs: Any) -> te.Schedule:
    """Schedule a depthwise convolution and the elementwise operators fused behind it."""
    return of.schedule_convolution(outs, TAG, functools.partial(_schedule, cfg))


def _schedule(cfg: Any, schedule: te.Schedule, sums: te.Tensor, out: te.Tensor) -> None:
    knobs = values(cfg, KNOBS)
    count = knobs["threads_c"] * knobs["threads_y"] * knobs["threads_x"]
    thread = of.thread_axis(count)
    image = next(t for t in sums.op.input_tensors if t.op.name == "padded")
    tall, wide = (int(axis.dom.extent) for axis in sums.op.reduce_axis)
    down, along = (int(stride) for stride in sums.op.attrs["workload"][3])

    stage = schedule[out]
    n, c, h, w, i = stage.op.axis
    scope, n = of.leave_unrolling(stage, n)
    c_outer, c_thread = stage.split(c, knobs["threads_c"])
    h_outer, h = stage.split(h, knobs["threads_y"] * knobs["rows"])
    h_thread, h_inner = stage.split(h, knobs["rows"])
    w_outer, w_thread = stage.split(w, knobs["threads_x"])
    stage.reorder(scope, n, c_outer, h_outer, w_outer, c_thread, h_thread, w_thread, h_inner, i)
    patch = stage.fuse(h_outer, w_outer)
    of.bind_blocks(stage, patch, c_outer, n)
    own = stage.fuse(c_thread, h_thread, w_thread)
    stage.bind(own, thread)
    stage.unroll(h_inner)
    stage.vectorize(i)

    schedule[sums].compute_at(stage, own)
    stage = schedule[sums]
    _, c, h, w, i = stage.op.axis
    tap_y, tap_x = stage.op.reduce_axis
    stage.reorder(c, w, tap_x, tap_y, h, i)
    for axis in (tap_x, tap_y, h):
        stage.unroll(axis)
    stage.vectorize(i)
    if knobs["staged"]:
        # Read again from shared memory, a column for each of a row's taps.
        column = schedule.cache_read(image, "local", [sums])
        row = schedule[image].op.axis[2]
        columns_staged = (knobs["threads_x"] - 1) * along + wide
        free, _ = padding((tall, wide), (down, along), tuple(knobs.values()))
        stride = shape_of(image)[-1] * (columns_staged + free)
        schedule[image].storage_align(row, BANKS, stride % BANKS)
        schedule[image].set_scope("shared")
        schedule[image].compute_at(schedule[out], patch)
        of.load_together(schedule, image, thread, count)
    else:
        schedule[image].set_scope("local")
        column = image
    of.keep_in_registers(schedule, column, sums, tap_x)
