"""Which record serves which layer of a model that was never tuned itself.

A record of the very same layer serves it as it is. Where there is none, the nearest recorded
shape of the same template lends its knobs: the nearest candidate of this layer's own space
stands in, and its time is an estimate. A shape that is too far away lends nothing, nor one
whose tile has no like here; such a layer runs the untuned default. So does a layer whose
nearest shape was found to be best served by its own default: there the default knows best.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from mobilenet_tvm import toolchain
from mobilenet_tvm.records.choose import CLEARLY, WRONG_OUTPUT, best_records, choose_records
from mobilenet_tvm.records.lines import Record, autotvm_task, parse_line
from mobilenet_tvm.records.nearest import fits, nearest_config, nearest_records, record_knobs
from mobilenet_tvm.records.tasks import Task, default_config, knob_values

# Sums of |ln ratio| (``records.nearest``). With half the channels in and out and half the pixels
# each way a pointwise layer is 3.5 away from another (the input's channels count twice), and
# another stride of a depthwise layer with the padding that goes with it is 3.4.
FAR = 3.6
# A tile of 14 vectors that becomes one of 16 is 0.27 away, one of 2 x 7 that becomes 1 x 14 is 1.4.
FAR_KNOBS = 1.2


@dataclass(frozen=True)
class Served:
    """What a model is built with.

    Attributes:
        best: the record of each task that has one, by key. Those of ``transferred`` tasks are
            made up here: their configuration is another shape's, and their time an estimate.
        transferred: keys of the tasks that the nearest shape serves.
        other_threads: keys of the tasks, whichever way served, whose record was measured with
            another number of threads than the model will run on.
        stale: records of the tasks that are of another version of the templates.
    """

    best: dict[str, Record]
    transferred: frozenset[str] = frozenset()
    other_threads: frozenset[str] = frozenset()
    stale: int = 0

    @property
    def exact(self) -> dict[str, Record]:
        """The measured records alone."""
        return {key: one for key, one in self.best.items() if key not in self.transferred}


def serve(
    tasks: Sequence[Task],
    groups: Sequence[Sequence[Record]],
    *,
    transfer: bool = True,
    clearly: float = CLEARLY,
) -> Served:
    """Find what serves each task.

    Args:
        tasks: the model's, of either searcher. Only AutoTVM's take other shapes' knobs.
        groups: records whose times compare, such as those measured with equally many threads.
            An earlier group comes before a later one; the first is of the right number of threads.
        transfer: whether other shapes may serve.
        clearly: see ``choose_records``.
    """
    stale = 0
    usable: list[list[Record]] = []
    for group in groups:
        usable.append(current(tasks, group))
        stale += len(group) - len(usable[-1])
    # What once computed something else is barred, whatever number of threads found out.
    wrong = [r for group in usable for r in group if r.error == WRONG_OUTPUT]
    best: dict[str, Record] = {}
    of_group: dict[str, int] = {}
    for number, group in enumerate(usable):
        missing = [task for task in tasks if task.key not in best]
        found = choose_records(missing, [*group, *wrong], clearly=clearly)
        best |= found
        of_group |= dict.fromkeys(found, number)
    transferred: set[str] = set()
    if transfer:
        targets = {task.target for task in tasks}
        sources = [_sources([*group, *wrong], targets) for group in usable]
        for task in tasks:
            if task.searcher != "autotvm" or task.key in best:
                continue
            for number, group in enumerate(sources):
                near = _nearest(task, group, wrong)
                if near is None:
                    continue
                if near.config != task.default:
                    best[task.key] = near
                    transferred.add(task.key)
                    of_group[task.key] = number
                break
    others = frozenset(key for key, number in of_group.items() if number > 0)
    return Served(best, frozenset(transferred), others, stale)


def current(tasks: Iterable[Task], records: Iterable[Record]) -> list[Record]:
    """The records without those of the tasks that another version of a template made."""
    by_key = {task.key: task for task in tasks}
    return [one for one in records if one.key not in by_key or fits(by_key[one.key], one)]


def _sources(records: Iterable[Record], targets: Collection[str]) -> list[Record]:
    """The best records of every shape, for each target."""
    by_target: dict[str, list[Record]] = {target: [] for target in targets}
    for record in records:
        if record.target in by_target:
            by_target[record.target].append(record)
    return [one for known in by_target.values() for one in best_records(known).values()]


def _nearest(task: Task, sources: Iterable[Record], wrong: Iterable[Record]) -> Record | None:
    """The task's own candidate that the nearest record proposes, the default where that record
    is no better than its own; None where all are too far away."""
    barred = {record.config for record in wrong if record.key == task.key}
    own = [record for record in sources if record.target == task.target]
    ranked = []
    for distance, record in nearest_records(task, own):
        if distance > FAR:
            break
        near = nearest_config(task, record)
        if near is not None and near[0] <= FAR_KNOBS and near[1] not in barred:
            ranked.append((distance + near[0], record.key, record, near[1]))
    if not ranked:
        return None
    _, _, source, config = min(ranked, key=lambda entry: entry[:2])
    if task.default is not None and is_default(source):
        config = task.default
    return _carried(task, source, config)


def is_default(record: Record) -> bool:
    """Whether an AutoTVM record's configuration is what its layer runs untuned today."""
    template, arguments = autotvm_task(record)
    knobs = _default_knobs(template, arguments, record.target)
    return knobs is not None and knobs == record_knobs(record)


@functools.lru_cache(maxsize=1024)
def _default_knobs(template: str, arguments: Any, target: str) -> dict[str, Any] | None:
    toolchain.activate()
    import tvm
    from tvm import autotvm

    handle = autotvm.task.create(template, arguments, tvm.target.Target(target))
    index = default_config(handle)
    space = handle.config_space
    return None if index is None else knob_values(space.get(index), space)


def _carried(task: Task, source: Record, config: int) -> Record:
    """A record of a task that nobody measured: ``source``'s time, scaled by the operations.

    Its line is TVM's own, to be built with; the seconds and the time of day that a trial would
    have are 0 in it.
    """
    toolchain.activate()
    from tvm import autotvm
    from tvm.autotvm.measure import MeasureInput, MeasureResult
    from tvm.autotvm.record import encode

    template, arguments = autotvm_task(source)
    other = autotvm.task.create(template, arguments, task.handle.target)
    assert source.cost_s is not None
    cost_s = source.cost_s * task.flops / float(other.flop)
    handle = task.handle
    given = MeasureInput(handle.target, handle, handle.config_space.get(config))
    line = str(encode(given, MeasureResult((cost_s,), 0, 0.0, 0.0), "json"))
    return dataclasses.replace(parse_line(line), key=task.key)
