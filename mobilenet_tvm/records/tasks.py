"""The tuning tasks of a model: every convolution and dense layer that has a template.

TVM's own ``autotvm.task.extract_from_program`` lowers the whole model to find them (5 s for
V1). Asking Relay's op strategy for each call finds the same tasks in a tenth of that, and
counts how often each one occurs.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from mobilenet_tvm import toolchain
from mobilenet_tvm.targets import Preset

SearcherName = Literal["autotvm", "ansor"]

# Whose templates: the project's, or TVM's own.
Schedules = Literal["ours", "stock"]

# A configuration: its index in a template's space, or the JSON text of Ansor's transform steps.
Config = int | str

_TUNED_OPERATORS = ("nn.conv2d", "nn.dense")
# TVM's templates that leave the transform of the weights out while they are tuned
# (topi/cuda/conv2d_winograd.py): what such a kernel computes alone cannot be checked. Those
# convolutions have another template, and Ansor has Winograd's method, too.
_NOT_TUNED = ("conv2d_nchw_winograd.cuda",)

# TVM's own templates for GPUs have up to a hundred million configurations. Of a space that cannot
# be listed, or that has more than so many for a GPU, a sample is tried.
_LISTED = 1 << 18
SAMPLED = 4096


@dataclass(frozen=True)
class Task:
    """One kernel to tune.

    Attributes:
        key: TVM's workload as text; equal for equal kernels of any model.
        label: for people: ``depthwise 3x3/2 64 @ 112x112``.
        flops: floating-point operations of one call.
        weight: calls in one inference.
        candidates: indices into the configuration space that may be tried. Of a GPU's large
            space they are ``SAMPLED`` and the default, drawn the same in every process.
        default: the candidate that is used where there is no record; None if it is none of them.
        handle: the ``autotvm.task.Task``, or the ``auto_scheduler.SearchTask``.
        searcher: who can search it. An Ansor task has no ``candidates`` and no ``default``; its
            label equals that of the AutoTVM task for the same layer.
        weight_bytes: size of the kernel's constant arguments.
    """

    key: str
    label: str
    flops: float
    weight: int
    candidates: tuple[int, ...] = field(repr=False)
    default: int | None
    handle: Any = field(repr=False, compare=False)
    searcher: SearcherName = "autotvm"
    weight_bytes: int = 0

    @property
    def target(self) -> str:
        """TVM's target string, as ``Record.target`` has it."""
        return str(self.handle.target)


def workload_key(workload: Any) -> str:
    """A workload tuple as text that compares equal wherever it came from."""
    return str(workload)


def extract_tasks(
    module: Any, preset: Preset, *, schedules: Schedules = "ours", threads: int = 1
) -> tuple[Task, ...]:
    """All tasks of a Relay module, in the model's order.

    Args:
        module: ``IRModule`` as ``frontend.to_relay`` leaves it, types inferred.
        preset: the target.
        schedules: ``ours`` or ``stock``.
        threads: that the model will run on. With several only those candidates are kept that leave
            each its own rows (``schedules.x86.template.keeps_rows``).
    """
    toolchain.activate()
    import tvm
    from tvm import autotvm, relay, te
    from tvm.autotvm.task.topi_integration import TaskExtractEnv

    import mobilenet_tvm.schedules
    from mobilenet_tvm.schedules.stock import keeps_layout
    from mobilenet_tvm.schedules.x86.template import keeps_rows

    mobilenet_tvm.schedules.use(schedules)
    target = preset.tvm_target()
    found: dict[tuple[str, Any], int] = {}

    def visit(node: Any) -> None:
        is_call = isinstance(node, relay.Call) and isinstance(node.op, tvm.ir.Op)
        if not is_call or node.op.name not in _TUNED_OPERATORS:
            return
        inputs = [
            te.placeholder(tuple(arg.checked_type.shape), arg.checked_type.dtype)
            for arg in node.args
        ]
        tracer = TaskExtractEnv.get()
        tracer.reset(None)
        with tracer, target:
            relay.backend.te_compiler.select_implementation(
                node.op, node.attrs, inputs, node.checked_type, target
            )
        for name, arguments in tracer.get_tasks():
            if name in _NOT_TUNED:
                continue
            found[name, arguments] = found.get((name, arguments), 0) + 1

    typed = relay.transform.InferType()(module)
    silent, autotvm.GLOBAL_SCOPE.silent = autotvm.GLOBAL_SCOPE.silent, True
    try:
        relay.analysis.post_order_visit(typed["main"], visit)
    finally:
        autotvm.GLOBAL_SCOPE.silent = silent
        mobilenet_tvm.schedules.use("ours")

    tasks = []
    for (name, arguments), weight in found.items():
        handle = autotvm.task.create(name, arguments, target)
        space = handle.config_space
        default = default_config(handle)
        candidates = _candidates(handle, default)
        if schedules == "ours":
            with target:
                kept = [i for i in candidates if keeps_layout(handle, space.get(i))]
            candidates = kept or candidates
            if threads > 1:
                kept = [i for i in candidates if keeps_rows(handle, space.get(i))]
                candidates = kept or candidates
        tasks.append(
            Task(
                key=workload_key(handle.workload),
                label=template_label(name, arguments),
                flops=float(handle.flop),
                weight=weight,
                candidates=tuple(candidates),
                default=default if default in candidates else None,
                handle=handle,
                weight_bytes=tensor_bytes(arguments[1][1]),
            )
        )
    return tuple(tasks)


def tensor_bytes(shape: Sequence[int]) -> int:
    """Size of a float32 tensor."""
    return 4 * math.prod(int(size) for size in shape)


def _candidates(handle: Any, default: int | None) -> list[int]:
    """The configurations of a task that may be tried: all, or a sample with the default in it."""
    from mobilenet_tvm.schedules.stock import is_sound

    space = handle.config_space
    draw = random.Random(workload_key(handle.workload))
    length = int(space.range_length)
    large = length > _LISTED
    indices = draw.sample(range(length), SAMPLED) if large else range(length)
    found = [i for i in indices if space.is_index_valid(i) and is_sound(handle, i)]
    if len(found) > SAMPLED and "gpu" in handle.target.keys:
        found, large = draw.sample(found, SAMPLED), True
    if large:
        found = sorted({*found, *(() if default is None else (default,))})
    return found


def default_config(handle: Any) -> int | None:
    """The configuration of an AutoTVM task with the knobs that its template falls back to; None
    where that is none of its space."""
    from tvm import autotvm

    fallback = autotvm.task.space.FallbackConfigEntity()
    with handle.target, autotvm.task.ApplyConfig(fallback):
        handle.func(*handle.args)
    space = handle.config_space
    wanted = knob_values(fallback, space)
    knobs = []
    for name, axis in space.space_map.items():
        values = [_knob_value(entity) for entity in axis.entities]
        if wanted[name] not in values:
            return None
        knobs.append(values.index(wanted[name]))
    return int(space.knob2point(knobs))


def knob_values(config: Any, space: Any) -> dict[str, Any]:
    """Values of a configuration's knobs; of a split all but the first, which follows."""
    return {name: _knob_value(config[name]) for name in space.space_map}


def _knob_value(entity: Any) -> Any:
    """A knob's value as its record has it: a split's sizes, an order, annotations, or a value."""
    if hasattr(entity, "size"):
        return tuple(entity.size[1:])
    for attribute in ("perm", "anns"):  # of TVM's own templates
        if hasattr(entity, attribute):
            return tuple(getattr(entity, attribute))
    return entity.val


def template_label(name: str, arguments: Any) -> str:
    """The label of a template's task; the template's own name where it is no layer of ours."""
    data, kernel = arguments[0][1], arguments[1][1]
    if name.startswith("dense"):
        return f"{name.partition('.')[0]} {data[1]}->{kernel[0]}"
    if len(data) != 4 or len(kernel) != 4:
        return name
    stride = arguments[2][0]
    return layer_label(data, kernel, stride, depthwise=name.startswith("depthwise"))


def layer_label(data: Sequence[int], kernel: Sequence[int], stride: int, *, depthwise: bool) -> str:
    """``depthwise 3x3/2 64 @ 112x112``: kind, kernel/stride, channels, input height x width.

    Args:
        data: ``[N, C, H, W]``.
        kernel: ``[O, I, H, W]``.
        stride: of the rows.
        depthwise: whether every channel has filters of its own.
    """
    kind = "depthwise" if depthwise else "conv"
    if kind == "conv" and tuple(kernel[2:]) == (1, 1):
        kind = "pointwise"
    channels = f"{data[1]}" if depthwise else f"{data[1]}->{kernel[0]}"
    size = f"{kernel[2]}x{kernel[3]}" + (f"/{stride}" if stride != 1 else "")
    return f"{kind} {size} {channels} @ {data[2]}x{data[3]}"


def convolution_label(call: Any) -> str:
    """The label of a typed ``nn.conv2d`` call in NCHW."""
    data, kernel = (tuple(map(int, arg.checked_type.shape)) for arg in call.args)
    groups = int(call.attrs.groups)
    return layer_label(
        data, kernel, int(call.attrs.strides[0]), depthwise=groups == data[1] and groups > 1
    )
