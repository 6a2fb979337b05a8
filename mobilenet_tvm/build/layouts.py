"""Chosen convolutions in NHWC, each with the additions behind it.

Where two layouts meet in a residual addition, ``ConvertLayout`` gives it the layout of its first
operand. That tears the addition off the convolution that it would be fused with: Ansor then
finds another workload than the one it tuned, and AutoTVM's kernel loses its epilogue.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from mobilenet_tvm import toolchain
from mobilenet_tvm.frontend.layout import to_nhwc


def mixed(module: Any, positions: Collection[int]) -> Any:
    """``module`` with the convolutions at ``positions`` in NHWC and the others in NCHW.

    Args:
        module: ``IRModule`` as ``frontend.to_relay`` leaves it.
        positions: of convolutions, counted in post-order from 0.

    Returns:
        A new module, types inferred; inputs and outputs keep their layouts. In NHWC the operands
        of every addition keep their order, on which Ansor's workload keys depend.
    """
    return _additions_follow(to_nhwc(module, only=positions))


def _additions_follow(module: Any) -> Any:
    """Give every addition of two activations the layout of the operand computed last.

    That is the branch that a fused addition belongs to: a shortcut is there before it.
    """
    toolchain.activate()
    import tvm
    from tvm import relay

    order: dict[Any, int] = {}
    relay.analysis.post_order_visit(module["main"], lambda node: order.setdefault(node, len(order)))

    class Rewriter(relay.ExprMutator):  # type: ignore[misc]
        def visit_call(self, call: Any) -> Any:
            new = super().visit_call(call)
            if _is(new, "layout_transform"):
                return _transform(new.args[0], new.attrs.src_layout, new.attrs.dst_layout)
            if not _is(new, "add") or not _are_activations(*call.args):
                return new
            late = max((0, 1), key=lambda index: order[_inner(call.args[index])])
            branch, shortcut = new.args[late], new.args[1 - late]
            source = wanted = "NCHW"
            if _is(branch, "layout_transform"):
                source, wanted = branch.attrs.src_layout, branch.attrs.dst_layout
                branch, shortcut = branch.args[0], _transform(shortcut, wanted, source)
            elif not _is(shortcut, "layout_transform") or shortcut.attrs.dst_layout != "NCHW":
                return new
            # In NCHW the first operand decides upon the block of channels; no key of AutoTVM's
            # knows the order.
            first = source == "NCHW" or late == 0
            total = relay.add(branch, shortcut) if first else relay.add(shortcut, branch)
            return total if source == wanted else _transform(total, source, wanted)

    function = Rewriter().visit(module["main"])
    return relay.transform.InferType()(tvm.IRModule.from_expr(function))


def _is(node: Any, name: str) -> bool:
    import tvm
    from tvm import relay

    return isinstance(node, relay.Call) and isinstance(node.op, tvm.ir.Op) and node.op.name == name


def _inner(node: Any) -> Any:
    return _inner(node.args[0]) if _is(node, "layout_transform") else node


def _are_activations(left: Any, right: Any) -> bool:
    """Both of one shape and computed from the model's input: no bias, which is constant."""
    from tvm import relay

    shapes = [tuple(map(int, node.checked_type.shape)) for node in (left, right)]
    same = shapes[0] == shapes[1] and len(shapes[0]) == 4
    return same and all(len(relay.analysis.free_vars(node)) > 0 for node in (left, right))


def _transform(node: Any, source: str, wanted: str) -> Any:
    """A layout transform; none where ``node`` is the very opposite one."""
    from tvm import relay

    if _is(node, "layout_transform"):
        before = node.attrs.src_layout, node.attrs.dst_layout
        if before == (wanted, source):
            return node.args[0]
    return relay.layout_transform(node, source, wanted)
