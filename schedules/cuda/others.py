"""Schedules of what is no convolution: pooling and elementwise operators in blocks of four.

They have nothing to tune, and take a few microseconds each, if only there are threads enough: TVM's
own sum up all pixels of a global pooling in one thread a channel, and begin with blocks of 1024
threads, so that a small tensor occupies one multiprocessor. Each is None where it is not ours.
"""

from __future__ import annotations

import math
from typing import Any

from tvm import te
from tvm.topi.utils import simplify

from mobilenet_tvm.schedules.cuda import threads as of
from mobilenet_tvm.schedules.cuda.target import LANES
from mobilenet_tvm.schedules.layout import divisors, shape_of
from mobilenet_tvm.schedules.pool import block_of
from mobilenet_tvm.schedules.template import schedule_template, tag_of

# Of those that a MobileNet may leave alone: what follows a convolution is fused into it.
ELEMENTWISE = (
    "add",
    "subtract",
    "multiply",
    "divide",
    "maximum",
    "minimum",
    "clip",
    "sigmoid",
    "nn.relu",
    "nn.bias_add",
)
THREADS = 128
POOL_THREADS = 64
MOST_SHARING = 32  # threads for one sum: one of them adds up what they found


def _blocked(outs: Any) -> bool:
    """Whether it is one float32 tensor of static shape in the layout NCHW4c."""
    return block_of(outs) == LANES


def elementwise(outs: Any) -> te.Schedule | None:
    """Four channels a thread."""
    if not _blocked(outs):
        return None
    schedule = te.create_schedule([outs[0].op])
    te.schedule.AutoInlineInjective(schedule)
    stage = schedule[outs[0]]
    *outer, lane = stage.op.axis
    _deal_out(stage, stage.fuse(*outer), math.prod(shape_of(outs[0])[:-1]), THREADS)
    stage.vectorize(lane)
    return schedule


def window_pool(outs: Any) -> te.Schedule | None:
    """A sum or maximum a thread: an average over the rows of an image too large for one pooling."""
    tag = tag_of(outs, "pool")
    if not _blocked(outs) or tag is None:
        return None
    return schedule_template(outs, tag, _window, scope="local")


def _window(schedule: te.Schedule, sums: te.Tensor, out: te.Tensor) -> None:
    for tensor in sums.op.input_tensors:  # the padded image
        if isinstance(tensor.op, te.ComputeOp):
            schedule[tensor].compute_inline()
    stage = schedule[out]
    own = _deal_out(stage, stage.fuse(*stage.op.axis), math.prod(shape_of(out)), POOL_THREADS)
    schedule[sums].compute_at(stage, own)


def global_pool(outs: Any) -> te.Schedule | None:
    """A block's threads share the pixels of one or a few channel blocks; their sums meet."""
    tag = tag_of(outs, "adaptive_pool")
    if not _blocked(outs) or tag is None:
        return None
    if shape_of(outs[0])[2:4] != (1, 1):
        return schedule_template(outs, tag, _window, scope="local")
    return schedule_template(outs, tag, _global, scope="local")


def _global(schedule: te.Schedule, sums: te.Tensor, out: te.Tensor) -> None:
    pixel = schedule[sums].fuse(*schedule[sums].op.reduce_axis)
    pixels = math.prod(int(simplify(axis.dom.extent)) for axis in sums.op.reduce_axis)
    sharing = divisors(pixels, MOST_SHARING)[-1]
    channels = divisors(shape_of(out)[1], POOL_THREADS // sharing)[-1]
    along = te.thread_axis((0, sharing), "threadIdx.x")
    across = te.thread_axis((0, channels), "threadIdx.y")

    _, group = schedule[sums].split(pixel, sharing)
    partial = schedule.rfactor(sums, group)
    together, sums = sums, schedule.cache_write(partial, "local")
    schedule[partial].set_scope("shared")

    stage = schedule[out]
    n, c, h, w, lane = stage.op.axis
    scope, n = of.leave_unrolling(stage, n)
    c_outer, c = stage.split(c, channels)
    # Only the first group has outputs, as in ``vector.schedule``.
    h, group = stage.split(h, sharing)
    stage.reorder(scope, n, c_outer, h, w, c, group, lane)
    block = stage.fuse(h, w)
    of.bind_blocks(stage, c_outer, block, n)
    stage.bind(c, across)
    stage.bind(group, along)
    stage.vectorize(lane)
    schedule[together].compute_at(stage, group)
    schedule[together].unroll(schedule[together].op.reduce_axis[0])
    schedule[together].vectorize(schedule[together].op.axis[-1])

    stage = schedule[partial]
    stage.compute_at(schedule[out], block)
    group, n, c, h, w, lane = stage.op.axis
    c_outer, c = stage.split(c, channels)
    stage.reorder(n, c_outer, h, w, c, group, lane)
    stage.bind(c, across)
    stage.bind(group, along)
    stage.vectorize(lane)
    schedule[sums].compute_at(stage, group)
    schedule[sums].reorder(*schedule[sums].op.reduce_axis, *schedule[sums].op.axis)
    schedule[sums].vectorize(schedule[sums].op.axis[-1])


def _deal_out(stage: te.schedule.Stage, axis: Any, extent: int, threads: int) -> Any:
    """Bind ``axis`` to blocks of ``threads``; returns the threads' axis."""
    block, own = stage.split(axis, min(extent, threads))
    stage.bind(block, te.thread_axis("blockIdx.x"))
    stage.bind(own, te.thread_axis("threadIdx.x"))
    return own
