"""A pointwise convolution of one pixel: a matrix times a vector (classifier, squeeze-excite).

Nothing is used twice but the vector, so what counts is how many bytes of weights are under way.
``threads_k`` neighbouring threads load neighbouring channel blocks of one row of the weights;
``threads_c`` such groups share the input channels, and their sums meet in shared memory.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

from tvm import te

from mobilenet_tvm.schedules.cuda import threads as of
from mobilenet_tvm.schedules.cuda.model import BARRIER_CYCLES, SHARED_LATENCY_CYCLES, Work
from mobilenet_tvm.schedules.cuda.space import define_knobs, ranked, values
from mobilenet_tvm.schedules.cuda.target import Gpu, channel_block, current
from mobilenet_tvm.schedules.layout import divisors, shape_of

KNOBS = ("threads_k", "threads_c", "ahead")
MIN_THREADS, MAX_THREADS = 32, 512
SECTOR_BYTES = 32  # the least that L2 gives


def _tiles(channels: int, filters: int) -> Iterator[tuple[int, ...]]:
    in_chunks = channels // channel_block(channels)
    out_chunks = filters // channel_block(filters)
    for threads_k in divisors(out_chunks, 64):
        for threads_c in divisors(in_chunks, 256):
            if min(MIN_THREADS, in_chunks) <= threads_k * threads_c <= MAX_THREADS:
                for ahead in (1, 2, 4):
                    if in_chunks // threads_c % ahead == 0:
                        yield threads_k, threads_c, ahead


def work(batch: int, channels: int, filters: int, tile: tuple[int, ...]) -> Work:
    """What a block of one configuration does."""
    threads_k, threads_c, ahead = tile
    in_block, out_block = channel_block(channels), channel_block(filters)
    threads = threads_k * threads_c
    outputs = threads_k * out_block
    row = -(-4 * outputs // SECTOR_BYTES) * SECTOR_BYTES
    loads = channels // threads_c * threads
    return Work(
        blocks=batch * filters // outputs,
        threads=threads,
        registers=out_block + ahead * in_block * (1 + out_block) + 24,
        shared_bytes=4 * outputs * threads_c,
        fmas=outputs * channels,
        shared_traffic=4 * channels * outputs + 8 * outputs * threads_c,
        l2_traffic=channels * row + 4 * channels,
        traffic=4 * (channels * filters + batch * (channels + filters)),
        stages=channels // (in_block * threads_c * ahead),
        instructions=4 * loads,
        depth_cycles=BARRIER_CYCLES + SHARED_LATENCY_CYCLES + 4 * threads_c,
    )


@functools.cache
def _ranked(gpu: Gpu, batch: int, channels: int, filters: int) -> tuple[tuple[int, ...], ...]:
    works = ((tile, work(batch, channels, filters, tile)) for tile in _tiles(channels, filters))
    return ranked(gpu, works)


def define_space(cfg: Any, batch: int, channels: int, filters: int) -> None:
    """Knobs ``threads_k`` x ``threads_c``, and ``ahead``, blocks loaded before they are used."""
    define_knobs(cfg, KNOBS, _ranked(current(), batch, channels, filters))


def schedule(cfg: Any, schedule: te.Schedule, sums: te.Tensor, out: te.Tensor) -> None:
    """Schedule ``[N, K/x, 1, 1, x]``. See ``template.schedule_template``."""
    knobs = values(cfg, KNOBS)
    along = te.thread_axis((0, knobs["threads_k"]), "threadIdx.x")
    across = te.thread_axis((0, knobs["threads_c"]), "threadIdx.y")
    in_block = next(shape_of(t)[-1] for t in sums.op.input_tensors if len(t.shape) == 5)

    (channel,) = schedule[sums].op.reduce_axis
    outer, channel = schedule[sums].split(channel, knobs["threads_c"] * in_block)
    group, _ = schedule[sums].split(channel, in_block)
    partial = schedule.rfactor(sums, group)
    together, sums = sums, schedule.cache_write(partial, "local")
    schedule[partial].set_scope("shared")

    stage = schedule[out]
    n, k, h, w, o = stage.op.axis
    scope, n = of.leave_unrolling(stage, n)
    k_outer, k = stage.split(k, knobs["threads_k"])
    # Only the first group has outputs: there is one row. (TVM sees that the other groups' "rows"
    # are outside the tensor; of other axes it would compute more than there is.)
    h, group = stage.split(h, knobs["threads_c"])
    stage.reorder(scope, n, k_outer, h, w, group, k, o)
    pixel = stage.fuse(h, w)
    of.bind_blocks(stage, k_outer, n, pixel)
    stage.bind(group, across)
    own = k
    stage.bind(own, along)
    stage.vectorize(o)
    schedule[together].compute_at(stage, own)
    schedule[together].unroll(schedule[together].op.reduce_axis[0])
    schedule[together].vectorize(schedule[together].op.axis[-1])

    stage = schedule[partial]
    stage.compute_at(schedule[out], pixel)
    group, n, k, h, w, o = stage.op.axis
    k_outer, k = stage.split(k, knobs["threads_k"])  # for TVM wants loops that begin at 0
    stage.reorder(n, k_outer, h, w, group, k, o)
    stage.bind(group, across)
    stage.bind(k, along)
    stage.vectorize(o)

    schedule[sums].compute_at(stage, k)
    stage = schedule[sums]
    *_, k, h, w, o = stage.op.axis
    outer, lane = stage.op.reduce_axis
    outer, ahead = stage.split(outer, knobs["ahead"])
    stage.reorder(outer, ahead, lane, k, h, w, o)
    for axis in (ahead, lane, k, o):
        stage.unroll(axis)
    for tensor in list(sums.op.input_tensors):
        copy = schedule.cache_read(tensor, "local", [sums])
        of.keep_in_registers(schedule, copy, sums, ahead)
