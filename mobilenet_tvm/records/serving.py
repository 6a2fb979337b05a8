"""Which record serves which layer of a model that was never tuned itself.

A record of the very same layer serves it as it is. Where there is none, the nearest recorded
shape of the same template lends its knobs: the nearest candidate of this layer's own space
stands in, and its time is an estimate. A shape lends only what was seen to be clearly faster than
its own untuned default, whose time must be in the log as well; and nothing to what is too far
away or has no such tile. Such a layer runs the untuned default.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from mobilenet_tvm import toolchain
from mobilenet_tvm.records.choose import (
    CLEARLY,
    WRONG_OUTPUT,
    best_records,
    choose_records,
    comparable,
    gain,
)
from mobilenet_tvm.records.lines import Record, autotvm_task, parse_line
from mobilenet_tvm.records.nearest import fits, is_default, nearest_config, nearest_records
from mobilenet_tvm.records.tasks import Config, Task

# Sums of |ln ratio| (``records.nearest``): with half the channels in and out a pointwise layer is
# 2.1 away from another (the input's channels count twice), with half the pixels each way 1.4; and
# a depthwise layer of another stride, with the padding that goes with it, 3.4.
FAR = 2.5
# How many times as fast as its own default a configuration must be to be lent.
GAIN = 1.05
# A tile of 14 vectors that becomes one of 16 is 0.27 away, one of 2 x 7 that becomes 1 x 14 is 1.4.
FAR_KNOBS = 1.2


@dataclass(frozen=True)
class Served:
    """What a model is built with.

    Attributes:
        best: the record of each task that has one, by key. Those of ``transferred`` tasks are
            made up here: their configuration is another shape's, and their time an estimate.
        transferred: keys of the tasks that the nearest shape serves.
        groups: of which group each task's own record is, by key.
        stale: records of the tasks that are of another version of the templates.
    """

    best: dict[str, Record]
    transferred: frozenset[str] = frozenset()
    groups: Mapping[str, int] = field(default_factory=dict)
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
        # Only of the right number of threads: how the work is shared out is part of a schedule.
        source = _Source([*usable[0], *wrong] if usable else [])
        for task in tasks:
            if task.searcher != "autotvm" or task.key in best:
                continue
            barred = {record.config for record in wrong if record.key == task.key}
            near = _nearest(task, source, barred)
            if near is not None and near.config != task.default:
                best[task.key] = near
                transferred.add(task.key)
    return Served(best, frozenset(transferred), of_group, stale)


def current(tasks: Iterable[Task], records: Iterable[Record]) -> list[Record]:
    """The records without those of the tasks that another version of a template made."""
    by_key = {task.key: task for task in tasks}
    return [one for one in records if one.key not in by_key or fits(by_key[one.key], one)]


def _nearest(task: Task, source: _Source, barred: Collection[Config]) -> Record | None:
    """The task's own candidate that the nearest shape proposes: the default where that shape's
    is as good as any; None where all shapes are too far away, or nobody knows what they gained."""
    ranked = []
    for distance, record in nearest_records(task, source.best(task.target)):
        if distance > FAR:
            break
        gained = source.gain(record)
        if gained is None:  # asked first: all candidates are looked at below
            continue
        near = nearest_config(task, record)
        if near is None or near[0] > FAR_KNOBS or near[1] in barred:
            continue
        config = near[1] if gained >= GAIN or task.default is None else task.default
        ranked.append((distance + near[0], record.key, record, config))
    if not ranked:
        return None
    _, _, lender, config = min(ranked, key=lambda entry: entry[:2])
    return _carried(task, lender, config)


class _Source:
    """Records whose times compare, as lenders."""

    def __init__(self, records: Iterable[Record]) -> None:
        self._by_target: dict[str, list[Record]] = {}
        for record in records:
            self._by_target.setdefault(record.target, []).append(record)
        self._best = {target: best_records(known) for target, known in self._by_target.items()}

    def best(self, target: str) -> list[Record]:
        """The fastest of every shape."""
        return list(self._best.get(target, {}).values())

    def gain(self, best: Record) -> float | None:
        """How many times as fast as the untuned default the best record of a shape is; None where
        the default was not measured."""
        shape = [one for one in self._by_target[best.target] if one.key == best.key]
        default = comparable(best, [one for one in shape if is_default(one)])
        return None if default is None else gain(best, default)


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
