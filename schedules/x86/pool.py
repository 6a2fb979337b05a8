"""Schedules of pooling in blocks of channels: one vector a sum, several sums at once.

TVM's own add up a channel's pixels one after another, each addition waiting for the last: 16 times
as long as reading them takes. There is nothing to tune here. Each is None where it is not ours.
"""

from __future__ import annotations

from typing import Any, Final

from tvm import te

from mobilenet_tvm.schedules.layout import divisors, shape_of
from mobilenet_tvm.schedules.pool import block_of
from mobilenet_tvm.schedules.template import schedule_template, tag_of

# Sums at once: more than an addition's latency in cycles, and not too many lines to read from.
_AT_ONCE: Final = 8


def global_pool(outs: Any) -> te.Schedule | None:
    """All pixels of several channel blocks at once; an adaptive pool to more than one is TVM's."""
    tag = tag_of(outs, "adaptive_pool")
    if block_of(outs) is None or tag is None or shape_of(outs[0])[2:4] != (1, 1):
        return None
    return schedule_template(outs, tag, _blocks_at_once)


def _blocks_at_once(schedule: te.Schedule, sums: te.Tensor, out: te.Tensor) -> None:
    stage = schedule[out]
    n, c, h, w, lane = stage.op.axis
    outer, inner = stage.split(c, divisors(shape_of(out)[1], _AT_ONCE)[-1])
    stage.reorder(n, outer, h, w, inner, lane)
    stage.parallel(stage.fuse(n, outer))
    stage.unroll(inner)
    stage.vectorize(lane)
    schedule[sums].compute_at(stage, w)
    _, c, h, w, lane = schedule[sums].op.axis
    schedule[sums].reorder(*schedule[sums].op.reduce_axis, h, w, c, lane)
    schedule[sums].unroll(c)
    schedule[sums].vectorize(lane)


def window_pool(outs: Any) -> te.Schedule | None:
    """The windows of a row of outputs at once: an average over the rows of a large image, say."""
    tag = tag_of(outs, "pool")
    if block_of(outs) is None or tag is None:
        return None
    return schedule_template(outs, tag, _pixels_at_once)


def _pixels_at_once(schedule: te.Schedule, sums: te.Tensor, out: te.Tensor) -> None:
    for tensor in sums.op.input_tensors:  # the padded image
        if isinstance(tensor.op, te.ComputeOp):
            schedule[tensor].compute_inline()
    stage = schedule[out]
    n, c, h, w, lane = stage.op.axis
    height, width = shape_of(out)[2:4]
    if width == 1:
        h, rows = stage.split(h, divisors(height, _AT_ONCE)[-1])
        stage.reorder(n, c, h, w, rows, lane)
        at, at_once = w, rows
    else:
        w, at_once = stage.split(w, divisors(width, _AT_ONCE)[-1])
        at = w
    stage.parallel(stage.fuse(n, c))
    stage.unroll(at_once)
    stage.vectorize(lane)
    schedule[sums].compute_at(stage, at)
    _, c, h, w, lane = schedule[sums].op.axis
    schedule[sums].reorder(c, *schedule[sums].op.reduce_axis, h, w, lane)
    schedule[sums].unroll(h)
    schedule[sums].unroll(w)
    schedule[sums].vectorize(lane)
