"""What our templates share around the convolution itself, for any target."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm import te
from tvm.topi.utils import traverse_inline

from mobilenet_tvm.schedules.layout import shape_of


def unpacked(conv: te.Tensor, tag: str) -> te.Tensor:
    """``[N, K/y, H, W, y]`` -> ``[N, K, H, W]``: where layout alteration is off."""
    batch, chunks, height, width, block = shape_of(conv)
    return te.compute(
        (batch, chunks * block, height, width),
        lambda n, k, h, w: conv[n, k // block, h, w, k % block],
        name="unpacked",
        tag=f"{tag}_unpacked",
    )


def schedule_template(
    outs: Any,
    tag: str,
    schedule_sums: Callable[[te.Schedule, te.Tensor, te.Tensor], None],
    scope: str = "global",
) -> te.Schedule:
    """Schedule the convolution tagged ``tag`` and the elementwise operators fused behind it.

    Args:
        outs: output tensors, as Relay's op strategy gives them.
        tag: of the convolution.
        schedule_sums: called with the schedule, a stage of the convolution's sums that never
            leaves the registers (to be computed at the output's tiles), and the output.
        scope: TVM's, of the sums.
    """
    outs = [outs] if isinstance(outs, te.tensor.Tensor) else outs
    schedule = te.create_schedule([x.op for x in outs])
    if len(outs[0].shape) != 5:
        return schedule  # 4-D (see ``unpacked``): correct, not fast

    def callback(op: Any) -> None:
        if op.tag == tag:
            conv = op.output(0)
            sums = schedule.cache_write(conv, scope)
            if conv.op != outs[0].op:
                schedule[conv].compute_inline()
            schedule_sums(schedule, sums, outs[0])

    traverse_inline(schedule, outs[0].op, callback)
    return schedule


def tag_of(outs: Any, prefix: str) -> str | None:
    """The tag that begins so of an operator that computes ``outs``."""
    seen, waiting = set(), [out.op for out in outs]
    while waiting:
        op = waiting.pop()
        if op in seen or not isinstance(op, te.ComputeOp):
            continue
        seen.add(op)
        if op.tag.startswith(prefix):
            return str(op.tag)
        waiting += [tensor.op for tensor in op.input_tensors]
    return None
