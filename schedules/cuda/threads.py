"""What the templates share: whose loop becomes blocks, threads, registers or vectors."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

from tvm import te, tir
from tvm.topi.utils import traverse_inline

from mobilenet_tvm.schedules.cuda.target import LANES
from mobilenet_tvm.schedules.layout import divisors, shape_of
from mobilenet_tvm.schedules.template import schedule_template

_PLAIN_THREADS = 256  # of a kernel that is correct, not fast


def thread_axis(threads: int) -> tir.IterVar:
    """The one axis over which a block's threads are counted."""
    return te.thread_axis((0, threads), "threadIdx.x")


def bind_blocks(stage: te.schedule.Stage, x: Any, y: Any, z: Any) -> None:
    """Make three loops the grid."""
    for axis, name in ((x, "blockIdx.x"), (y, "blockIdx.y"), (z, "blockIdx.z")):
        stage.bind(axis, te.thread_axis(name))


def leave_unrolling(stage: te.schedule.Stage, axis: Any) -> Any:
    """Unrolled loops within stay loops, which the CUDA compiler unrolls: TVM's lowering of
    unrolled code is slow. ``axis`` is the outermost; returns what is left of it to bind.
    """
    scope, inner = stage.split(axis, nparts=1)
    stage.pragma(scope, "unroll_explicit", 0)
    return scope, inner


def load_together(
    schedule: te.Schedule, copy: te.Tensor, thread: tir.IterVar, threads: int
) -> None:
    """All threads of the block fill ``copy`` together: neighbours load neighbouring vectors."""
    stage = schedule[copy]
    *outer, last = stage.op.axis
    width = divisors(shape_of(copy)[-1], LANES)[-1]
    last, lane = stage.split(last, width if width != 3 else 1)
    trip, own = stage.split(stage.fuse(*outer, last), threads)
    stage.bind(own, thread)
    stage.unroll(trip)
    stage.vectorize(lane)


def keep_in_registers(
    schedule: te.Schedule, copy: te.Tensor, consumer: te.Tensor, axis: Any
) -> None:
    """``copy`` is loaded at ``axis`` of its consumer by each thread for itself, in vectors."""
    stage = schedule[copy]
    stage.compute_at(schedule[consumer], axis)
    *outer, last = stage.op.axis
    width = divisors(shape_of(copy)[-1], LANES)[-1]
    last, lane = stage.split(last, width if width != 3 else 1)
    for loop in (*outer, last):
        stage.unroll(loop)
    stage.vectorize(lane)


def schedule_convolution(
    outs: Any, tag: str, schedule_sums: Callable[[te.Schedule, te.Tensor, te.Tensor], None]
) -> te.Schedule:
    """``template.schedule_template`` with sums in registers, and threads in any case."""
    outs = [outs] if isinstance(outs, te.tensor.Tensor) else outs
    if len(outs[0].shape) == 5:
        return schedule_template(outs, tag, schedule_sums, scope="local")
    # Layout alteration is off: a thread for each element of each stage.
    schedule = te.create_schedule([out.op for out in outs])
    traverse_inline(schedule, outs[0].op, functools.partial(_plain, schedule))
    _plain(schedule, outs[0].op)
    return schedule


def _plain(schedule: te.Schedule, op: Any) -> None:
    done: set[Any] = set()

    def visit(op: Any, inline: Sequence[Any] = ()) -> None:
        if op in done or not isinstance(op, te.ComputeOp):
            return
        done.add(op)
        stage = schedule[op]
        if stage.attach_type != 2 and len(stage.leaf_iter_vars) == len(stage.all_iter_vars):
            block, thread = stage.split(stage.fuse(*op.axis), _PLAIN_THREADS)
            stage.bind(block, te.thread_axis("blockIdx.x"))
            stage.bind(thread, te.thread_axis("threadIdx.x"))
        for tensor in op.input_tensors:
            visit(tensor.op)

    visit(op)
