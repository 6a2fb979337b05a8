"""From clean ONNX to Relay, free of pads, BatchNorm and dynamic shapes."""

from __future__ import annotations

import contextlib
import logging
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mobilenet_tvm import toolchain
from mobilenet_tvm.build.manifest import TensorSpec
from mobilenet_tvm.errors import UsageError
from mobilenet_tvm.frontend.clean import CleanModel
from mobilenet_tvm.frontend.operators import for_importer

if TYPE_CHECKING:
    import onnx
    import tvm


@dataclass(frozen=True)
class RelayModel:
    """A model in Relay; weights are constants in ``module``, so ``params`` is empty as a rule.

    ``inputs`` are the variables of ``module["main"]`` in its order.
    """

    module: tvm.IRModule = field(repr=False)
    params: dict[str, Any] = field(repr=False)
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


def to_relay(clean: CleanModel) -> RelayModel:
    """Import a clean model.

    The module has no ``nn.pad`` before a convolution that can pad by itself, no
    ``nn.batch_norm``, no dropout, and static types throughout. The span of each call names the
    (first) tensor that its ONNX node makes.

    Raises:
        UsageError: Relay cannot import it; the first line of the real reason.
    """
    toolchain.activate()
    import tvm
    from tvm import relay

    passes = tvm.transform.Sequential(
        [
            relay.transform.InferType(),
            relay.transform.DynamicToStatic(),
            relay.transform.SimplifyInference(),
            relay.transform.FoldConstant(),
            # After the constants: a pad's widths and value must be known to be folded.
            relay.transform.FoldExplicitPadding(),
            relay.transform.FoldConstant(),
            relay.transform.InferType(),
        ]
    )
    with _quiet() as said:
        try:
            module, params = relay.frontend.from_onnx(
                _named_by_output(for_importer(clean.proto)),
                {spec.name: spec.shape for spec in clean.inputs},
                freeze_params=True,
            )
            with tvm.transform.PassContext(opt_level=3, config=toolchain.pass_config()):
                module = passes(module)
        except UsageError:
            raise
        except Exception as error:
            reason = said[0] if said else _reason(error)
            raise UsageError(f"Relay cannot import {clean.original.name}: {reason}") from None
    _check_static(module["main"], clean.original.name)
    specs = {spec.name: spec for spec in clean.inputs}
    names = [var.name_hint for var in module["main"].params if var.name_hint in specs]
    return RelayModel(module, dict(params), tuple(specs[n] for n in names), clean.outputs)


def _named_by_output(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Every node called by the tensor it makes: the importer makes a node's name the span of its
    calls. Names may be missing or double, tensors not."""
    for node in proto.graph.node:
        node.name = next(name for name in node.output if name)
    return proto


def _check_static(main: Any, name: str) -> None:
    from tvm.relay.ty import is_dynamic

    if is_dynamic(main.checked_type.ret_type):
        raise UsageError(f"the shapes of {name} depend on its data: export it without that part")


@contextlib.contextmanager
def _quiet() -> Iterator[list[str]]:
    """Keep the importer's warnings off the screen; yields what its type checker says."""
    from tvm.ir.diagnostics import override_renderer

    said: list[str] = []

    def note(context: Any) -> None:
        said.extend(_first_line(d.message) for d in context.diagnostics)

    override_renderer(note)
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield said
    finally:
        logging.disable(logging.NOTSET)
        override_renderer(None)


def _reason(error: Exception) -> str:
    """The line of a TVM error that tells the reason: below the C++ stack, after its type."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = [line for line in lines if re.match(r"\w*(Error|Exception): ", line)]
    if told:
        return told[0].split(": ", 1)[1]
    if not lines or lines[0].startswith("Traceback"):
        return type(error).__name__
    plain = isinstance(error, (ValueError, NotImplementedError, RuntimeError))
    return lines[0] if plain else f"{type(error).__name__}: {lines[0]}"


def _first_line(message: Any) -> str:
    return " ".join(str(message).split())
