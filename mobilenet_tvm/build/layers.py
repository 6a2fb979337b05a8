"""Which kernel of an artifact computes which tensor of the ONNX model.

Relay's passes rename, fold and lay out anew, and keep no word of where a call came from. So the
module that was imported (whose calls carry the names of ONNX tensors, see ``frontend.to_relay``)
and the fused one, that becomes the kernels, are walked side by side: calls that do the same to
the same values are the same. What changes a layout or a shape alone is the same value.

A kernel whose result is not recognised has no ``output``.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mobilenet_tvm import toolchain
from mobilenet_tvm.build.manifest import LayerInfo, Serving
from mobilenet_tvm.build.plans import Plan
from mobilenet_tvm.frontend.dense import PIXELS
from mobilenet_tvm.records import Record, Task
from mobilenet_tvm.records.tasks import SearcherName, convolution_label

# Calls that hand a value on in another shape or layout.
_SAME_VALUE = {
    "annotation.stop_fusion",
    "contrib_reverse_reshape",
    "copy",
    "expand_dims",
    "layout_transform",
    "nn.batch_flatten",
    "nn.dropout",
    "reshape",
    "squeeze",
}
# Those of them that go by the order in memory.
_RESHAPES = _SAME_VALUE - {"annotation.stop_fusion", "copy", "layout_transform", "nn.dropout"}
# What a convolution does, and what only says how its operands lie.
_GEOMETRY = ("strides", "padding", "dilation", "groups", "kernel_size")
_OF_LAYOUT = {"axis", "out_dtype", "units"}
_COMMUTATIVE = {"add", "maximum", "minimum", "multiply"}
# With a constant: what TVM may drop where it does nothing.
_DROPPABLE = {"add", "clip", "divide", "multiply", "subtract"}
_ALIASES = {"nn.bias_add": "add", "nn.contrib_dense_pack": "nn.dense", "nn.matmul": "nn.dense"}

# So many dropped calls in a row are looked through.
_MOST_DROPPED = 3


@dataclass(frozen=True)
class Kernel:
    """What one kernel of the graph computes.

    Attributes:
        tensors: ONNX tensors computed in it, in order: those of its fused layers.
        output: the ONNX tensor that its result is, or None where it is none of them.
        layout: of the result where it is an activation: ``NCHW``, ``NCHW16c``, ``NHWC``; else
            empty.
        convolution: position of its convolution in the imported module, counted in post-order
            from 0; None where it has none, or one that is not recognised.
        label: of the convolution or dense layer in it, as ``records.tasks`` has it.
    """

    tensors: tuple[str, ...]
    output: str | None
    layout: str
    convolution: int | None
    label: str | None


class FusedModule:
    """Watches one ``relay.build`` and keeps the module that its kernels are made from."""

    def __init__(self) -> None:
        toolchain.activate()
        import tvm

        self.module: Any = None
        keep = self._keep

        @tvm.instrument.pass_instrument
        class Watch:
            """Asks for the module after fusion: the last that is Relay."""

            def run_after_pass(self, module: Any, info: Any) -> None:
                if info.name == "FuseOps":
                    keep(module)

        self.instrument = Watch()

    def _keep(self, module: Any) -> None:
        self.module = module


def safe_kernels_of(imported: Any, fused: Any, *, reshapes: bool = True) -> tuple[Kernel, ...]:
    """``kernels_of``, or nothing where Relay holds what nobody thought of: a build goes on."""
    try:
        return kernels_of(imported, fused, reshapes=reshapes)
    except Exception:
        return ()


def kernels_of(imported: Any, fused: Any, *, reshapes: bool = True) -> tuple[Kernel, ...]:
    """The kernels of a build, in the order of its graph.

    Args:
        imported: ``IRModule`` as ``frontend.to_relay`` leaves it.
        fused: ``IRModule`` after fusion, of the same model.
        reshapes: count kernels that only reshape; a static library has none.
    """
    toolchain.activate()
    from tvm import relay

    aligned = _Alignment(relay.transform.InferType()(imported)["main"])
    found: list[Kernel] = []
    values: dict[Any, _Value | None] = {}

    for node in _post_order(fused["main"].body):
        if isinstance(node, relay.Call) and isinstance(node.op, relay.Function):
            arguments = [values[argument] for argument in node.args]
            kernel, values[node] = _kernel(aligned, node.op, arguments)
            if reshapes or not (node.op.attrs and "relay.reshape_only" in node.op.attrs):
                found.append(kernel)
        else:
            values[node] = aligned.value(node, values)
    return tuple(found)


def kernel_names(graph_json: str) -> tuple[str, ...]:
    """Of TVM's graph: the names of its kernels, in the order in which they run."""
    nodes = json.loads(graph_json)["nodes"]
    return tuple(str(node["name"]) for node in nodes if node["op"] != "null")


def layer_infos(
    kernels: Sequence[Kernel],
    names: Sequence[str],
    *,
    plan: Plan | None,
    tasks: Sequence[Task],
    used: Sequence[Record],
    transferred: Collection[int] = (),
) -> tuple[LayerInfo, ...]:
    """What the manifest says of the kernels.

    Args:
        kernels: of the build.
        names: of the kernels in the same build, in the order in which they run.
        plan: whose convolution is whose; None gives all to AutoTVM.
        tasks: that the build's layers are scheduled by.
        used: the records of the build; indices in the result are into them.
        transferred: indices of those that the nearest shape lent.
    """
    if len(names) != len(kernels):  # a pass that nobody thought of; better silent than wrong
        return tuple(map(LayerInfo, names))
    ansor = set(plan.positions) if plan is not None else set()
    places: dict[str, list[int]] = defaultdict(list)
    for index, record in enumerate(used):
        places[record.key].append(index)
    infos = []
    for name, kernel in zip(names, kernels, strict=True):
        is_ansors = kernel.convolution in ansor
        if kernel.convolution is None:  # with Ansor's schedules about, dense layers are Ansor's too
            is_ansors = bool(ansor)
        searcher: SearcherName = "ansor" if is_ansors else "autotvm"
        own = [
            task
            for task in tasks
            if kernel.label and task.searcher == searcher and _is_of(task, kernel.label)
        ]
        records = tuple(index for task in own for index in places[task.key])
        served: Serving | None = "default" if own else None
        if records:
            served = "transfer" if set(records) & set(transferred) else "record"
        infos.append(
            LayerInfo(
                kernel=name,
                tensors=tuple(dict.fromkeys(map(_original, kernel.tensors))),
                output=kernel.output and _original(kernel.output),
                layout=kernel.layout,
                task=kernel.label,
                searcher=searcher if own else None,
                template=str(own[0].handle.name) if own and not is_ansors else None,
                records=records,
                served=served,
            )
        )
    return tuple(infos)


def _original(tensor: str) -> str:
    """The name that the model has for a tensor of the cleaned one."""
    return tensor.removesuffix(PIXELS)


def _is_of(task: Task, label: str) -> bool:
    """Whether a task is of the layer with this label; dense layers have one of many names."""
    kind, _, size = label.partition(" ")
    if kind != "dense":
        return task.label == label
    if task.searcher == "ansor":
        return "dense" in task.label or "matmul" in task.label
    return task.label.startswith("dense") and task.label.endswith(f" {size}")


@dataclass(frozen=True)
class _Value:
    """A value of the imported module (its representative), as a fused call has it laid out.

    Where None stands in its place nobody knows what the value is. Of a constant ``same`` is None,
    and ``constant`` its node, or None where it is computed.
    """

    same: Any
    layout: str
    constant: Any = None

    @property
    def is_constant(self) -> bool:
        return self.same is None


def _kernel(
    aligned: _Alignment, function: Any, arguments: Sequence[_Value | None]
) -> tuple[Kernel, _Value | None]:
    values: dict[Any, _Value | None] = dict(zip(function.params, arguments, strict=True))
    before = len(aligned.matched)
    for node in _post_order(function.body):
        if node not in values:
            values[node] = aligned.value(node, values)
    inside = aligned.matched[before:]
    result = values.get(function.body)
    tensors = dict.fromkeys(aligned.span[call] for call in inside if call in aligned.span)
    position = next((aligned.positions[call] for call in inside if call in aligned.positions), None)
    output = None
    if result is not None and not result.is_constant and _is_tensor(function.body):
        size = _size(function.body)
        output = aligned.tensor(result.same, size)
    layout = result.layout if result else ""
    return Kernel(tuple(tensors), output, layout, position, _label(inside)), result


def _label(calls: Sequence[Any]) -> str | None:
    for call in calls:
        name = _name(call) or ""
        if name == "nn.conv2d":
            return convolution_label(call)
        if _ALIASES.get(name, name) == "nn.dense":
            weight = tuple(map(int, call.args[1].checked_type.shape))
            return f"dense {weight[1]}->{weight[0]}"
    return None


@dataclass
class _Alignment:
    """The imported function, taken apart, and what was found of it so far.

    ``matched`` are its calls in the order in which the fused module does them; ``span`` the ONNX
    tensor that a call makes; ``positions`` the convolutions, counted.
    """

    function: Any
    matched: list[Any] = field(default_factory=list)
    span: dict[Any, str] = field(default_factory=dict)
    positions: dict[Any, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._same: dict[Any, Any] = {}  # node -> representative of its value
        self._members: dict[Any, list[Any]] = defaultdict(list)
        self._waiting: dict[Any, list[Any]] = defaultdict(list)  # key -> calls not matched yet
        self._droppable: dict[Any, list[Any]] = defaultdict(list)  # value -> calls on it
        self._variables = {var.name_hint: var for var in self.function.params}
        for node in _post_order(self.function.body):
            self._take(node)
        # A span is of an ONNX node: its last call makes the tensor.
        last = {name: call for call, name in self.span.items()}
        self._maker = {call: name for name, call in last.items()}

    def _take(self, node: Any) -> None:
        from tvm import relay

        name = _name(node)
        if isinstance(node, relay.Constant) or (name and not self._inputs(node.args)):
            return  # a constant, or made of nothing else
        if name in _SAME_VALUE:
            self._same[node] = self._same.get(node.args[0])
        else:
            self._same[node] = node
        if self._same[node] is not None:
            self._members[self._same[node]].append(node)
        if name is None:
            return
        if node.span is not None and hasattr(node.span, "source_name"):
            self.span[node] = str(node.span.source_name.name)
        if _is_convolution(name):
            self.positions[node] = len(self.positions)
        if name in _SAME_VALUE:
            return
        inputs = self._inputs(node.args)
        self._waiting[_key(name, inputs)].append(node)
        if len(inputs) == 1 and name in _DROPPABLE:
            self._droppable[inputs[0]].append(node)

    def _inputs(self, arguments: Sequence[Any]) -> list[Any]:
        """Representatives of the arguments that are no constants; a tuple counts as its fields."""
        from tvm import relay

        found: list[Any] = []
        for argument in arguments:
            if isinstance(argument, relay.Tuple):
                found += self._inputs(argument.fields)
            elif self._same.get(argument) is not None:
                found.append(self._same[argument])
        return found

    def value(self, node: Any, values: dict[Any, _Value | None]) -> _Value | None:
        """What a node of the fused module is, its arguments' values being known."""
        from tvm import relay

        if isinstance(node, relay.Constant):
            return _Value(None, "", node)
        if isinstance(node, relay.Var):
            known = self._variables.get(node.name_hint)
            return None if known is None else _Value(known, _layout_of(node))
        name = _name(node)
        if name is None:
            return None
        every = _flat(node.args, values)
        arguments = [value for value in every if value is None or not value.is_constant]
        if not arguments:
            return _Value(None, "", every[0].constant if name in _SAME_VALUE and every[0] else None)
        layout = _layout(name, node, arguments)
        if name in _SAME_VALUE:
            first = values.get(node.args[0])
            if first is None or (name in _RESHAPES and _is_shuffled(first, node.args[0])):
                return None
            return _Value(first.same, layout)
        constants = [value.constant for value in every if value is not None and value.is_constant]
        call = self._match(
            node, name, [None if a is None else a.same for a in arguments], constants
        )
        if call is None:
            return None
        self.matched.append(call)
        return _Value(call, layout)

    def _match(self, node: Any, name: str, inputs: list[Any], constants: list[Any]) -> Any:
        """The call of the imported module that does the same to the same values."""
        if None not in inputs:
            for steps in range(_MOST_DROPPED + 1):
                for found in self._behind(inputs, steps):
                    waiting = self._waiting.get(_key(name, found), [])
                    if call := _pick(waiting, node, constants):
                        waiting.remove(call)
                        return call
        if _is_convolution(name):
            # Convolutions are never dropped or doubled: it is one that nobody has matched yet.
            return self._unmatched_convolution(node, constants)
        return None

    def _behind(self, inputs: list[Any], steps: int) -> list[list[Any]]:
        """Inputs that are ``steps`` dropped calls further on."""
        if steps == 0:
            return [inputs]
        return [
            [*before[:place], call, *before[place + 1 :]]
            for before in self._behind(inputs, steps - 1)
            for place, value in enumerate(before)
            for call in self._droppable.get(value, ())
        ]

    def _unmatched_convolution(self, node: Any, constants: list[Any]) -> Any:
        for waiting in self._waiting.values():
            left = [call for call in waiting if call in self.positions]
            if call := _pick(left, node, constants, by_weights=True):
                waiting.remove(call)
                return call
        return None

    def tensor(self, same: Any, size: int) -> str | None:
        """The ONNX tensor of ``size`` elements that a value is, or None."""
        for node in reversed(self._members[same]):
            if node in self._maker and _size(node) == size:
                return self._maker[node]
        return None


def _key(name: str, inputs: Sequence[Any]) -> Any:
    name = "convolution" if _is_convolution(name) else _ALIASES.get(name, name)
    hashes = [hash(value) for value in inputs]
    return name, tuple(sorted(hashes) if name in _COMMUTATIVE else hashes)


def _pick(
    candidates: Sequence[Any], node: Any, constants: Sequence[Any], *, by_weights: bool = False
) -> Any:
    """The one of ``candidates`` with the attributes and, where that leaves several, the constants
    of ``node``; of equal ones the first. None where none fits.
    """
    wanted = _attributes(node)
    fit = [call for call in candidates if _attributes(call) == wanted]
    if len(fit) > 1 or (by_weights and fit):
        numbers = _numbers(constants)
        fit = [call for call in fit if _numbers(_constants_of(call)) == numbers]
    return fit[0] if fit else None


def _attributes(call: Any) -> dict[str, str]:
    """What a call does, as far as the layout has no say in it."""
    if call.attrs is None:
        return {}
    found = {str(field.name): str(call.attrs[field.name]) for field in call.attrs.list_field_info()}
    if _is_convolution(_name(call) or ""):
        return {name: found[name] for name in _GEOMETRY}
    return {name: text for name, text in found.items() if not _of_layout(name)}


def _of_layout(attribute: str) -> bool:
    return "layout" in attribute or attribute in _OF_LAYOUT


def _constants_of(call: Any) -> list[Any]:
    from tvm import relay

    return [argument for argument in call.args if isinstance(argument, relay.Constant)]


def _numbers(constants: Sequence[Any]) -> list[bytes] | None:
    """The numbers of constants in an order that no layout changes; None if some are computed."""
    if any(constant is None for constant in constants):
        return None
    return [np.sort(constant.data.numpy(), axis=None).tobytes() for constant in constants]


def _is_shuffled(value: _Value, node: Any) -> bool:
    """Whether an activation lies in memory in another order than ONNX has it."""
    if value.layout in ("", "NCHW") or not _is_tensor(node):
        return False
    shape = dict(zip(re.findall("[A-Za-z]", value.layout), node.checked_type.shape, strict=False))
    # Of a single pixel the channels lie one behind the other in any layout.
    return any(int(shape.get(axis, 1)) != 1 for axis in "HW")


def _flat(arguments: Sequence[Any], values: dict[Any, _Value | None]) -> list[_Value | None]:
    """Values of the arguments, a tuple's fields in its place."""
    from tvm import relay

    found: list[_Value | None] = []
    for argument in arguments:
        if isinstance(argument, relay.Tuple):
            found += _flat(argument.fields, values)
        else:
            found.append(values.get(argument))
    return found


def _post_order(body: Any) -> list[Any]:
    """The nodes of an expression, each after what it is made of; functions are not entered."""
    from tvm import relay

    found: dict[Any, None] = {}
    stack = [(body, False)]
    while stack:
        node, entered = stack.pop()
        if node in found:
            continue
        if entered:
            found[node] = None
            continue
        stack.append((node, True))
        below: Sequence[Any] = ()
        if isinstance(node, relay.Call):
            below = node.args
        elif isinstance(node, relay.Tuple):
            below = node.fields
        elif isinstance(node, relay.TupleGetItem):
            below = (node.tuple_value,)
        stack += [(one, False) for one in reversed(list(below))]
    return list(found)


def _name(node: Any) -> str | None:
    """The operator of a call, or None of any other expression."""
    import tvm
    from tvm import relay

    if isinstance(node, relay.Call) and isinstance(node.op, tvm.ir.Op):
        return str(node.op.name)
    return None


def _is_convolution(name: str) -> bool:
    return "conv2d" in name and "transpose" not in name


def _layout(name: str, call: Any, arguments: Sequence[_Value | None]) -> str:
    """Layout of a call's result; the arguments' where it has no say in it."""
    attrs = call.attrs
    if name == "layout_transform":
        return str(attrs.dst_layout)
    if _is_convolution(name):
        return str(attrs.out_layout or attrs.data_layout)
    if "pool2d" in name:
        return str(getattr(attrs, "out_layout", "") or attrs.layout)
    if name in _SAME_VALUE and _rank(call) != _rank(call.args[0]):
        return "NCHW" if _rank(call) == 4 else ""
    layouts = [value.layout for value in arguments if value is not None and value.layout]
    return max(layouts, key=len, default="")


def _layout_of(node: Any) -> str:
    return "NCHW" if _rank(node) == 4 else ""


def _rank(node: Any) -> int:
    return len(node.checked_type.shape) if _is_tensor(node) else 0


def _is_tensor(node: Any) -> bool:
    import tvm

    return isinstance(node.checked_type, tvm.ir.TensorType)


def _size(node: Any) -> int:
    if not _is_tensor(node):
        return -1
    size = 1
    for length in node.checked_type.shape:
        size *= int(length)
    return size
