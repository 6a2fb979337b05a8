"""Deliberate faults: in a Relay module, as an importer or a pass would make them, and in the
loops of one kernel, as a schedule would."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from mobilenet_tvm import toolchain
from mobilenet_tvm.frontend import RelayModel


def in_relay(model: RelayModel, tensor: str, change: Callable[[Any, list[Any]], Any]) -> RelayModel:
    """A copy with ``change(call, arguments)`` in the place of the calls that make an ONNX tensor.

    ``change`` returns the new call, or None to leave it.
    """
    toolchain.activate()
    import tvm
    from tvm import relay

    changed = []

    class Mutator(relay.ExprMutator):
        def visit_call(self, call: Any) -> Any:
            arguments = [self.visit(argument) for argument in call.args]
            if str(call.span.source_name.name) == tensor:
                new = change(call, arguments)
                if new is not None:
                    changed.append(new)
                    return new
            return relay.Call(call.op, arguments, call.attrs, call.type_args, call.span)

    function = Mutator().visit(model.module["main"])
    assert changed, f"no call makes {tensor}"
    module = relay.transform.InferType()(tvm.IRModule.from_expr(function))
    return dataclasses.replace(model, module=module)


def padded_on_the_other_side(call: Any, arguments: list[Any]) -> Any:
    """SAME_LOWER in the place of SAME_UPPER."""
    from tvm import relay

    if call.op.name != "nn.conv2d":
        return None
    attrs = {name: call.attrs[name] for name in call.attrs.keys()}  # noqa: SIM118: no mapping
    top, left, bottom, right = map(int, attrs["padding"])
    assert (top, left) != (bottom, right), "this padding is symmetrical"
    return _with_span(
        relay.nn.conv2d(
            *arguments,
            strides=attrs["strides"],
            padding=(bottom, right, top, left),
            groups=int(attrs["groups"]),
            channels=attrs["channels"],
            kernel_size=attrs["kernel_size"],
        ),
        call,
    )


def without_bias(call: Any, arguments: list[Any]) -> Any:
    """The addition of the bias does nothing."""
    return arguments[0] if call.op.name == "nn.bias_add" else None


def with_two_filters_swapped(call: Any, arguments: list[Any]) -> Any:
    """Filters 3 and 5 in each other's place."""
    from tvm import relay

    if call.op.name != "nn.conv2d":
        return None
    weight = arguments[1].data.numpy().copy()
    weight[[3, 5]] = weight[[5, 3]]
    return relay.Call(
        call.op, [arguments[0], relay.const(weight)], call.attrs, call.type_args, call.span
    )


def _with_span(new: Any, call: Any) -> Any:
    from tvm import relay

    return relay.Call(new.op, new.args, new.attrs, new.type_args, call.span)


@contextlib.contextmanager
def in_kernel(
    monkeypatch: Any, kernel: str, change: Callable[[Any], Any | None]
) -> Iterator[list[Any]]:
    """While it lasts, ``change(statement)`` is applied inside one kernel of what is built.

    It is asked for each statement, inner ones first, and returns another one or None. Yields the
    statements that it changed.
    """
    toolchain.activate()
    import tvm

    changed: list[Any] = []

    def replace(statement: Any) -> Any:
        new = change(statement)
        if new is not None:
            changed.append(statement)
        return new

    @tvm.tir.transform.prim_func_pass(opt_level=0)
    def fault(function: Any, module: Any, context: Any) -> Any:
        if function.attrs is None or str(function.attrs.get("global_symbol", "")) != kernel:
            return function
        kinds = ["tir.BufferStore", "tir.For"]
        body = tvm.tir.stmt_functor.ir_transform(function.body, None, replace, kinds)
        return function.with_body(body)

    config = toolchain.pass_config()
    # Phase 1: the loops are as the schedule made them, vectors and unrolling come later.
    monkeypatch.setattr(
        toolchain, "pass_config", lambda: {**config, "tir.add_lower_pass": [(1, fault)]}
    )
    try:
        yield changed
    finally:
        monkeypatch.setattr(toolchain, "pass_config", lambda: config)


def never_set_to_zero(statement: Any) -> Any:
    """The sums of a convolution begin with whatever lies in their buffer."""
    import tvm

    if isinstance(statement, tvm.tir.BufferStore) and _is_zero(statement.value):
        return tvm.tir.Evaluate(0)
    return None


def _is_zero(value: Any) -> bool:
    import tvm

    if isinstance(value, tvm.tir.Broadcast):
        value = value.value
    return isinstance(value, tvm.tir.FloatImm) and float(value) == 0


def one_round_short(loop_variable: str) -> Callable[[Any], Any]:
    """A loop, called by its variable, that ends before its last round: the tail of a tile."""
    import tvm

    def change(statement: Any) -> Any:
        if isinstance(statement, tvm.tir.For) and statement.loop_var.name == loop_variable:
            return tvm.tir.For(
                statement.loop_var,
                statement.min,
                statement.extent - 1,
                statement.kind,
                statement.body,
                statement.thread_binding,
                statement.annotations,
            )
        return None

    return change


def random_feed(manifest: Any, seed: int = 0) -> dict[str, Any]:
    """Normal inputs."""
    rng = np.random.default_rng(seed)
    return {spec.name: rng.normal(size=spec.shape).astype(spec.dtype) for spec in manifest.inputs}
