"""Which convolutions run whose schedule: the plans worth building for one model.

AutoTVM's templates want NCHW, in blocks of channels, and Ansor's sketches NHWC. A plan says
which convolutions go to Ansor. Kernels that are fast alone may be slow in the model, where each
change of the layout copies an activation: so plans are estimated here and then measured.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from mobilenet_tvm import toolchain
from mobilenet_tvm.frontend.layout import convolutions
from mobilenet_tvm.records import Record, Task
from mobilenet_tvm.records.tasks import Schedules, convolution_label, tensor_bytes

if TYPE_CHECKING:
    from mobilenet_tvm.targets.gpus import Gpu

# What one CPU core reads and writes while it changes the layout of an activation that is partly
# out of its caches. Measured on Zen 4: 65-110 GB/s within them, for channels in whole blocks.
TRANSFORM_BYTES_PER_S = 40e9
LAUNCH_S = 3e-6  # of one more kernel

# A plan whose estimate is so many times the best one's is not built.
HOPELESS = 1.5


@dataclass(frozen=True)
class Plan:
    """Who schedules what in one build of a model.

    Attributes:
        name: ``autotvm``, ``ansor``, ``mix`` (transforms weighed against gains), or ``fastest``
            (each layer's faster schedule, whatever the transforms cost); of the rivals that those
            are held against (``rivals``) ``untuned`` or ``stock``.
        positions: convolutions in NHWC with Ansor's schedule, counted in post-order from 0.
        estimate_s: of one inference's tuned convolutions and layout transforms.
        dropped: why it is not worth building, or None.
        untuned: convolutions that run untuned here and tuned in another plan. Nobody knows
            their time: the estimate leaves them out, and is compared with no other.
        schedules: whose templates its layers have, ``ours`` or ``stock`` (TVM's).
        records: whether records are used; without them every layer runs the untuned default.
    """

    name: str
    positions: tuple[int, ...]
    estimate_s: float
    dropped: str | None = None
    untuned: int = 0
    schedules: Schedules = "ours"
    records: bool = True


@dataclass(frozen=True)
class Layer:
    """A convolution's seconds with either searcher's record, infinite where there is none.

    ``input_bytes`` and ``output_bytes`` are the sizes of its activations.
    """

    autotvm_s: float
    ansor_s: float
    input_bytes: int
    output_bytes: int


def transform_bytes_per_s(gpu: Gpu | None) -> float:
    """What a layout transform reads and writes in a second: on a GPU, or on a CPU (None)."""
    # The memory's: an activation of some MB stays in L2, which is faster, so that this rather says
    # too little. A GPU's transforms are mostly launch, which is counted apart (``LAUNCH_S``).
    return TRANSFORM_BYTES_PER_S if gpu is None else 1e9 * gpu.memory_gbps


def make_plans(
    module: Any,
    tasks: Sequence[Task],
    best: Mapping[str, Record],
    *,
    bytes_per_s: float = TRANSFORM_BYTES_PER_S,
    launch_s: float = LAUNCH_S,
) -> tuple[Plan, ...]:
    """The plans for a model, the ones that are not worth building included (``dropped``).

    Args:
        module: ``IRModule`` as ``frontend.to_relay`` leaves it.
        tasks: the model's tasks, of both searchers.
        best: the record of each task, by key. A layer with several Ansor tasks (for other
            epilogues) can be Ansor's only if each of them has a record.
        bytes_per_s: read and written by a layout transform (``transform_bytes_per_s``).
        launch_s: of a kernel.
    """
    return plan_layers(layers_of(module, tasks, best), bytes_per_s=bytes_per_s, launch_s=launch_s)


def rivals(
    tasks: Sequence[Task],
    best: Mapping[str, Record],
    *,
    schedules: Schedules = "ours",
    stock_tasks: Sequence[Task] = (),
) -> tuple[Plan, ...]:
    """What the plans of ``make_plans`` have to beat end to end, and only there: a kernel's trial
    does not see its neighbours, and of these kernels nothing is known that compares.

    The untuned defaults, where a record says otherwise for some layer; and TVM's own templates,
    where one of their layers has a record that ours have not.

    Args:
        tasks: AutoTVM's, of ``schedules``.
        best: the record of each task, by key.
        schedules: whose templates the plans have.
        stock_tasks: AutoTVM's with TVM's own templates, where the plans have ours.
    """
    found = []
    if any(task.key in best and best[task.key].config != task.default for task in tasks):
        found.append(Plan("untuned", (), math.inf, schedules=schedules, records=False))
    ours = {task.key for task in tasks}
    if any(task.key in best and task.key not in ours for task in stock_tasks):
        found.append(Plan("stock", (), math.inf, schedules="stock"))
    return tuple(found)


def layers_of(module: Any, tasks: Sequence[Task], best: Mapping[str, Record]) -> tuple[Layer, ...]:
    """The model's convolutions in post-order, with their costs."""
    autotvm = _by_label(tasks, "autotvm")
    ansor = _by_label(tasks, "ansor")
    typed = _typed_convolutions(module)
    labels = [convolution_label(call) for call in typed]
    # Ansor's mode takes dense layers from AutoTVM as well, and without a record they crawl.
    dense = [task for label in set(ansor) - set(labels) for task in ansor[label] if _is_dense(task)]
    possible = math.isfinite(_cost_s(dense, best)) if dense else True
    return tuple(
        Layer(
            _cost_s(autotvm.get(label, ()), best),
            _cost_s(ansor.get(label, ()), best) if possible else math.inf,
            tensor_bytes(call.args[0].checked_type.shape),
            tensor_bytes(call.checked_type.shape),
        )
        for label, call in zip(labels, typed, strict=True)
    )


def plan_tasks(module: Any, tasks: Iterable[Task], plan: Plan | None) -> tuple[Task, ...]:
    """The tasks that a plan's layers are scheduled by; None is AutoTVM's plan.

    Pooling and the like, which Ansor may tune as well, are not counted: TVM's own schedules
    are good enough for them.
    """
    ansor = set(plan.positions) if plan is not None else set()
    if not ansor:
        return tuple(task for task in tasks if task.searcher == "autotvm")
    labels: dict[bool, set[str]] = {True: set(), False: set()}
    for position, call in enumerate(_typed_convolutions(module)):
        labels[position in ansor].add(convolution_label(call))
    return tuple(
        task
        for task in tasks
        if task.label in labels[task.searcher == "ansor"]
        or (task.searcher == "ansor" and _is_dense(task))
    )


def plan_layers(
    layers: Sequence[Layer], *, bytes_per_s: float, launch_s: float
) -> tuple[Plan, ...]:
    """The plans for a chain of layers, without duplicates. Plain arithmetic.

    A layer that nobody has a record for runs AutoTVM's untuned default, in every plan, and
    counts nothing. ``autotvm`` is always one of the plans, with the untuned default where there
    is no record, so that what was tuned is never slower than what was not.
    """
    layers = [_runnable(layer) for layer in layers]
    borders_s = transform_costs_s(layers, bytes_per_s=bytes_per_s, launch_s=launch_s)
    everything = range(len(layers))
    choices = {
        "autotvm": (),
        "ansor": tuple(everything),
        "mix": cheapest(layers, borders_s),
        "fastest": tuple(i for i in everything if layers[i].ansor_s < layers[i].autotvm_s),
    }
    plans: list[Plan] = []
    for name, positions in choices.items():
        untuned = 0
        if not positions:
            untuned = sum(math.isinf(layer.autotvm_s) for layer in layers)
            estimate_s = sum(x.autotvm_s for x in layers if math.isfinite(x.autotvm_s))
        else:
            estimate_s = cost_s(layers, borders_s, positions)
        known = any(plan.positions == positions for plan in plans)
        if math.isfinite(estimate_s) and not known:
            plans.append(Plan(name, positions, estimate_s, untuned=untuned))
    return _drop_hopeless(plans)


def transform_costs_s(
    layers: Sequence[Layer], *, bytes_per_s: float, launch_s: float
) -> tuple[float, ...]:
    """What a change of the layout costs before each layer, and after the last one."""
    moved = [layer.input_bytes for layer in layers] + [layers[-1].output_bytes] if layers else []
    return tuple(launch_s + 2 * size / bytes_per_s for size in moved)


def cost_s(
    layers: Sequence[Layer], borders_s: Sequence[float], positions: Collection[int]
) -> float:
    """Seconds of one inference with Ansor's schedules at ``positions``.

    The model's input and output are in NCHW.
    """
    total_s, before = 0.0, False
    for index, layer in enumerate(layers):
        ansor = index in positions
        total_s += layer.ansor_s if ansor else layer.autotvm_s
        total_s += borders_s[index] if ansor != before else 0.0
        before = ansor
    return total_s + (borders_s[-1] if before else 0.0)


def cheapest(layers: Sequence[Layer], borders_s: Sequence[float]) -> tuple[int, ...]:
    """The positions with the least ``cost_s``, by dynamic programming along the chain.

    Of equal ones the first in which the chain leaves Ansor's layout sooner.
    """
    # For AutoTVM and Ansor: the least cost of all layers so far, this one with that searcher.
    best: list[tuple[float, tuple[int, ...]]] = [(0.0, ()), (math.inf, ())]
    for index, layer in enumerate(layers):
        border_s = borders_s[index]
        stay, go = best
        best = [
            _plus(min(stay, _plus(go, border_s), key=_first), layer.autotvm_s),
            _plus(min(_plus(stay, border_s), go, key=_first), layer.ansor_s, index),
        ]
    last_s = borders_s[-1] if borders_s else 0.0
    return min(best[0], _plus(best[1], last_s), key=_first)[1]


def _plus(
    way: tuple[float, tuple[int, ...]], more_s: float, *position: int
) -> tuple[float, tuple[int, ...]]:
    return way[0] + more_s, (*way[1], *position)


def _first(way: tuple[float, tuple[int, ...]]) -> float:
    return way[0]


def _drop_hopeless(plans: Sequence[Plan]) -> tuple[Plan, ...]:
    best = min((plan for plan in plans if not plan.untuned), key=_estimate_s)
    return tuple(
        replace(plan, dropped=f"estimated {times(plan, best)} the time of {best.name}")
        if not plan.untuned and plan.estimate_s > HOPELESS * best.estimate_s
        else plan
        for plan in plans
    )


def _estimate_s(plan: Plan) -> float:
    return plan.estimate_s


def by_estimate(plan: Plan) -> tuple[bool, float]:
    """The least first; an estimate that leaves something out says nothing against a whole one."""
    return plan.untuned > 0 or math.isinf(plan.estimate_s), plan.estimate_s


def times(plan: Plan, other: Plan) -> str:
    """``1.9x``: a plan's estimate as a multiple of another's.

    It is not told in seconds: the records may be of another machine, or not measured at all.
    """
    return f"{plan.estimate_s / other.estimate_s:.2g}x" if other.estimate_s > 0 else "many times"


def _runnable(layer: Layer) -> Layer:
    if math.isinf(layer.autotvm_s) and math.isinf(layer.ansor_s):
        return replace(layer, autotvm_s=0.0)
    return layer


def _cost_s(tasks: Sequence[Task], best: Mapping[str, Record]) -> float:
    """Mean seconds of one call over the tasks; infinite if one has no record, or there is none."""
    total_s = 0.0
    for task in tasks:
        record = best.get(task.key)
        if record is None or record.cost_s is None:
            return math.inf
        # What won in the model may be slow alone, and Ansor's were not timed there.
        in_model_s = math.inf if record.in_model_s is None else record.in_model_s
        total_s += task.weight * min(record.cost_s, in_model_s)
    calls = sum(task.weight for task in tasks)
    return total_s / calls if calls else math.inf


def _by_label(tasks: Iterable[Task], searcher: str) -> dict[str, list[Task]]:
    found: dict[str, list[Task]] = {}
    for task in tasks:
        if task.searcher == searcher:
            found.setdefault(task.label, []).append(task)
    return found


def _is_dense(task: Task) -> bool:
    return any(name in task.label for name in ("dense", "matmul"))


def _typed_convolutions(module: Any) -> list[Any]:
    toolchain.activate()
    from tvm import relay

    return convolutions(relay.transform.InferType()(module))
