"""Relay -> kernels that C can call, the order of the calls, and where in memory all lies.

TVM's ahead-of-time executor does the work: it lowers the same kernels as for a ``.so`` (the
records in scope count), with plain pointers as arguments, parallel loops made serial, and every
buffer at a fixed place in one workspace. Its last step is not used: TVM 0.19 writes the function
that calls the kernels only in C, weights as text, or with calls of its C runtime, which the wheel
does not have. The calls are few and plain, so they are read from that function instead, and
``build.static`` writes them.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from mobilenet_tvm import toolchain
from mobilenet_tvm.errors import MobilenetTvmError

# Of the workspace, the constants, and every buffer in them: a cache line of all presets.
ALIGNMENT: Final = 64
# Scratch of fewer bytes stays on the stack, as in a ``.so`` (TVM's ``kMaxStackAlloca``): LLVM
# keeps accumulators in registers only where it sees that they are nobody else's.
_MOST_ON_STACK: Final = 1024
_CONSTANTS, _WORKSPACE = "global_const_workspace", "global_workspace"


class AotError(MobilenetTvmError):
    """TVM's ahead-of-time executor made something that C cannot be written of: a bug of ours."""


@dataclass(frozen=True)
class Place:
    """A pointer: byte ``offset`` in ``base``, which is ``constants``, ``workspace``, or
    ``input_0``, ``output_0`` ... of the whole model."""

    base: str
    offset: int = 0


@dataclass(frozen=True)
class KernelCall:
    """One call of a kernel: its symbol, and a pointer for each argument."""

    symbol: str
    arguments: tuple[Place, ...]


@dataclass(frozen=True)
class Lowered:
    """A whole model, ready to be written as C.

    Attributes:
        kernels: TVM's LLVM module of them; it needs nothing but libc and libm.
        calls: of one inference, in order.
        constants: bytes of all weights, aligned to ``ALIGNMENT``.
        workspace_bytes: that one inference writes to, besides the outputs and the stack.
    """

    kernels: Any
    calls: tuple[KernelCall, ...]
    constants: bytes
    workspace_bytes: int

    def save_kernels(self, path: Path) -> None:
        """Write the kernels as an object file."""
        self.kernels.save(str(path))


def lower(module: Any, target: str, prefix: str) -> Lowered:
    """Lower a module to kernels, each symbol of which begins with ``prefix`` and ``_``.

    To be called in the context of a ``relay.build``: records, pass options, instruments.

    Args:
        module: ``IRModule`` as ``build.folding.optimized`` leaves it, weights bound.
        target: TVM's target string.
        prefix: an identifier of C.

    Raises:
        tvm.TVMError: as ``relay.build`` does.
        AotError: TVM's result is not what this reads.
    """
    toolchain.activate()
    import tvm
    from tvm import relay
    from tvm.driver import _ffi_api
    from tvm.relay.backend import Executor, Runtime
    from tvm.target import Target

    attributes = {
        "executor": Executor(
            "aot",
            {
                "interface-api": "c",
                "unpacked-api": True,
                # Weights are arguments as in a .so, or Ansor's keys would be others, and layers
                # that are alike would have a kernel each.
                "link-params": False,
                "workspace-byte-alignment": ALIGNMENT,
                "constant-byte-alignment": ALIGNMENT,
            },
        ),
        "runtime": Runtime("crt"),
    }
    context = tvm.transform.PassContext.current()
    options = {**dict(context.config), "tir.usmp.enable": True}
    options["tir.add_lower_pass"] = [*options.get("tir.add_lower_pass", []), (3, _own_places())]
    with tvm.transform.PassContext(
        opt_level=context.opt_level,
        config=options,
        disabled_pass=list(context.disabled_pass),
        required_pass=list(context.required_pass),
        instruments=list(context.instruments or []),
    ):
        fused, _ = relay.optimize(_with(module, attributes), target)
        generator = tvm.get_global_func("relay.build_module._AOTExecutorCodegen")()
        generator["init"](None, Target.canon_multi_target_and_host(target))
        main = _with(tvm.IRModule.from_expr(fused["main"]), attributes)
        generator["codegen"](main, main["main"], prefix)
        by_target = generator["get_irmodule"]()
        if len(by_target) != 1:
            raise AotError(f"kernels for {len(by_target)} targets, not one")
        ((resolved, functions),) = by_target.items()
        runner = functions["__tvm_main__"]
        calls = _calls(runner, _parameters(runner, len(main["main"].params)))
        kernels = tvm.IRModule(
            {
                variable: _without_false_promise(
                    function, [call for call in calls if call.symbol == variable.name_hint]
                )
                for variable, function in functions.functions.items()
                if not function.same_as(runner)
            },
            attrs=functions.attrs,
        )
        compiled = _ffi_api.tir_to_runtime({resolved: kernels}, resolved)
    return Lowered(compiled, tuple(calls), *_pools(runner))


def _with(module: Any, attributes: Mapping[str, Any]) -> Any:
    for name, value in attributes.items():
        module = module.with_attr(name, value)
    return module


def _own_places() -> Any:
    """A TIR pass that tells the memory planner what LLVM will be told of a kernel.

    LLVM is promised that no two buffers of a kernel meet. The planner gives one place to two
    that are not in use at once, an input and an output even: so all are in use from the kernel's
    beginning to its end. And small scratch is no part of the workspace.
    """
    import tvm
    from tvm import tir

    def place(allocation: Any) -> Any:
        variable = allocation.buffer_var
        if _is_small(allocation):
            own = tir.Var(variable.name, tvm.ir.PointerType(_element(variable), "local"))
            body = tir.stmt_functor.substitute(allocation.body, {variable: own})
            more = {"disable_lower_builtin": True}
        else:
            own, body, more = variable, _used_throughout([variable], allocation.body), {}
        return tir.Allocate(
            own,
            allocation.dtype,
            allocation.extents,
            allocation.condition,
            body,
            {**allocation.annotations, **more},
        )

    def apply(function: Any, module: Any, context: Any) -> Any:
        body = tir.stmt_functor.ir_transform(function.body, None, place, ["tir.Allocate"])
        arguments = [buffer.data for buffer in function.buffer_map.values()]
        return function.with_body(_used_throughout(arguments, body))

    return tir.transform.prim_func_pass(apply, opt_level=0, name="OwnPlaces")


def _is_small(allocation: Any) -> bool:
    """Whether scratch of a kernel stays on the stack."""
    scope = allocation.buffer_var.type_annotation.storage_scope
    lengths = [getattr(extent, "value", None) for extent in allocation.extents]
    if scope not in ("", "global") or None in lengths:
        return False
    return _bytes(allocation.dtype, lengths) < _MOST_ON_STACK


def _element(variable: Any) -> Any:
    return variable.type_annotation.element_type


def _used_throughout(variables: Sequence[Any], body: Any) -> Any:
    """``body`` with statements around it that name the variables and do nothing."""
    from tvm import tir

    uses = [tir.Evaluate(variable) for variable in variables]
    return tir.SeqStmt([*uses, body, *uses])


def _bytes(dtype: str, lengths: Iterable[Any]) -> int:
    import tvm

    parsed = tvm.DataType(dtype)
    return math.prod(map(int, lengths)) * int(parsed.lanes) * int(parsed.bits) // 8


def _without_false_promise(function: Any, calls: Sequence[KernelCall]) -> Any:
    """Take back that no two buffers meet where two of them do all the same: one allocated after
    the other, of which ``_own_places`` knows nothing."""
    from tvm import tir

    starts: dict[Any, int] = {}
    sizes: dict[Any, int] = {}

    def visit(node: Any) -> None:
        if isinstance(node, tir.LetStmt) and (place := _pool_place(node.value)) is not None:
            pool, offset = place
            if pool.name.startswith(_WORKSPACE):
                starts[node.var] = offset
        elif isinstance(node, (tir.BufferLoad, tir.BufferStore)):
            buffer = node.buffer
            size = _bytes(buffer.dtype, buffer.shape)
            sizes[buffer.data] = max(sizes.get(buffer.data, 0), size)

    tir.stmt_functor.post_order_visit(function.body, visit)
    scratch = [(start, start + sizes.get(data, 0)) for data, start in starts.items()]
    buffers = [
        function.buffer_map[parameter]
        for parameter in function.params
        if not parameter.name.startswith((_CONSTANTS, _WORKSPACE))
    ]
    for call in calls:
        spans = [
            (place.offset, place.offset + _bytes(buffer.dtype, buffer.shape))
            for place, buffer in zip(call.arguments, buffers, strict=False)
            if place.base == "workspace"
        ]
        spans = sorted(set(spans + scratch))  # one buffer may be two arguments
        if any(later < end for (_, end), (later, _) in itertools.pairwise(spans)):
            return function.without_attr("tir.noalias")
    return function


def _parameters(runner: Any, inputs: int) -> dict[Any, str]:
    """What C calls the memory behind each parameter of the function that calls the kernels."""
    names: dict[Any, str] = {}
    ours = [p for p in runner.params if not p.name.startswith((_CONSTANTS, _WORKSPACE))]
    for index, parameter in enumerate(ours):
        is_input = index < inputs
        names[parameter] = f"input_{index}" if is_input else f"output_{index - inputs}"
    for parameter in runner.params:
        if parameter.name.startswith(_CONSTANTS):
            names[parameter] = "constants"
        elif parameter.name.startswith(_WORKSPACE):
            names[parameter] = "workspace"
    return {runner.buffer_map[parameter].data: name for parameter, name in names.items()}


def _pools(runner: Any) -> tuple[bytes, int]:
    """The constants, each at its place, and the size of the workspace."""
    constants, workspace_bytes = bytearray(), 0
    for pool in runner.attrs["pool_args"]:
        if str(pool.pool_info.pool_name) == _WORKSPACE:
            workspace_bytes = int(pool.allocated_size)
            continue
        constants = bytearray(int(pool.allocated_size))
        for info in pool.pool_info.constant_info_array or ():
            data, offset = info.data.numpy().tobytes(), int(info.byte_offset)
            constants[offset : offset + len(data)] = data
    return bytes(constants), workspace_bytes


def _pool_place(value: Any) -> tuple[Any, int] | None:
    """The variable and the byte offset of ``address_of(pool[offset])``."""
    from tvm import tir

    if not isinstance(value, tir.Call) or value.op.name != "tir.address_of":
        return None
    (load,) = value.args
    return load.buffer.data, int(load.indices[0])


def _calls(runner: Any, names: Mapping[Any, str]) -> list[KernelCall]:
    """The calls of the function that calls the kernels, in order."""
    from tvm import tir

    places = {data: Place(name) for data, name in names.items()}
    found: list[KernelCall] = []

    def walk(statement: Any) -> None:
        if isinstance(statement, tir.SeqStmt):
            for one in statement:
                walk(one)
        elif isinstance(statement, tir.LetStmt):
            place = _pool_place(statement.value)
            if place is None:
                raise AotError(f"no place in a pool: {statement.value}")
            pool, offset = place
            places[statement.var] = Place(places[pool].base, offset)
            walk(statement.body)
        elif isinstance(statement, tir.Evaluate) and isinstance(statement.value, tir.Call):
            call = statement.value
            if call.op.name == "tir.tvm_check_return":
                call = call.args[2]
            if call.op.name != "tir.call_extern":
                raise AotError(f"not a call of a kernel: {call}")
            symbol, *arguments = call.args
            found.append(
                KernelCall(str(symbol.value), tuple(places[argument] for argument in arguments))
            )
        elif not isinstance(statement, tir.Evaluate):
            raise AotError(f"neither a call nor a place: {type(statement).__name__}")

    walk(runner.body)
    return found
