"""Keep gates that are computed off the weights of the convolutions beside them.

TVM's ``FoldScaleAxis`` moves a multiplication per channel into the weights of the convolution
or dense layer before or after it. That is free for a constant. The gate of squeeze-excite, or
hard-swish of a single pixel, is none: then every inference multiplies all weights and brings
them into their layout anew (the classifier's of torchvision's V3-small: 4 MB, 60 % of the time).
The pass has no switch that a model can carry along, so the product stands between copies, which
it does not look through; they vanish in the fused kernel.
"""

from __future__ import annotations

from typing import Any

from mobilenet_tvm import toolchain


def keep_scales_apart(module: Any) -> Any:
    """``module`` with every product of two activations that ``FoldScaleAxis`` could take hidden.

    Products of equal shapes larger than one pixel are none of those. Types are inferred, before
    and after; numbers do not change.
    """
    toolchain.activate()
    import tvm
    from tvm import relay

    class Rewriter(relay.ExprMutator):  # type: ignore[misc]
        def visit_call(self, call: Any) -> Any:
            new = super().visit_call(call)
            if not (isinstance(call.op, tvm.ir.Op) and call.op.name == "multiply"):
                return new
            if any(isinstance(operand, relay.Constant) for operand in call.args):
                return new
            shapes = [tuple(map(int, operand.checked_type.shape)) for operand in call.args]
            if not any(map(_one_a_channel, shapes)):
                return new
            operands = [
                # The gate itself needs no copy: its shape says that it is one.
                operand if _one_a_channel(shape) else relay.copy(operand)
                for operand, shape in zip(new.args, shapes, strict=True)
            ]
            return relay.copy(relay.multiply(*operands))

    function = Rewriter().visit(module["main"])
    return relay.transform.InferType()(tvm.IRModule.from_expr(function))


def _one_a_channel(shape: tuple[int, ...]) -> bool:
    """Whether ``shape`` has one number a channel: ``[N, C]`` or ``[N, C, 1, 1]``."""
    return len(shape) == 2 or (len(shape) == 4 and shape[2:] == (1, 1))
