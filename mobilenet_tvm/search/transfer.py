"""Transfer: where records of other models and machines tell this run to begin.

A record of the very same task is tried first as it is. A record of another shape is carried
over where it has a meaning there: a template's knobs to the nearest candidate of this space.
Ansor's steps fit one shape only; records of other shapes teach its cost model
(``CostModel.learn_records``). Whatever comes from elsewhere is a proposal: it is measured here
before it counts. What is of a CPU says nothing of a GPU, though Ansor's key of a task may be the
same for both.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mobilenet_tvm.records import Config, Record, Task, best_records
from mobilenet_tvm.records.lines import autotvm_knobs, autotvm_task
from mobilenet_tvm.records.tasks import knob_values

# Records of other shapes that a task begins with, the nearest shapes first.
_NEAREST = 3


def first_configs(tasks: Sequence[Task], records: Iterable[Record]) -> dict[str, list[Config]]:
    """Configurations to try first, by task key, the most promising one first.

    Args:
        tasks: of this run, of either searcher, for one target.
        records: of other logs; several of one task count by the fastest.
    """
    # Times of different targets do not compare; the same task for another target does tell.
    best: dict[tuple[str, str], Record] = {}
    by_target: dict[str, list[Record]] = {}
    kinds = {kind_of(task.target) for task in tasks}
    for record in records:
        if kind_of(record.target) in kinds:
            by_target.setdefault(record.target, []).append(record)
    for target, known in by_target.items():
        best |= {(key, target): record for key, record in best_records(known).items()}
    found: dict[str, list[Config]] = {}
    for task in tasks:
        own = [record for (key, _), record in best.items() if key == task.key]
        own.sort(key=lambda record: record.target != task.target)
        if task.searcher == "ansor":
            configs: list[Config] = [record.config for record in own]
        else:
            configs = _nearest_configs(task, [*own, *_nearest_records(task, best)])
        if configs:
            found[task.key] = list(dict.fromkeys(configs))
    return found


def kind_of(target: str) -> str:
    """``llvm`` or ``cuda``, of a TVM target string."""
    return target.partition(" ")[0]


def _nearest_records(task: Task, best: Mapping[tuple[str, str], Record]) -> list[Record]:
    """Records of the task's template for other shapes, the nearest first."""
    name, arguments = task.handle.name, task.handle.args
    near = []
    for (key, _), record in best.items():
        if record.searcher != "autotvm" or key == task.key:
            continue
        template, others = autotvm_task(record)
        if template == name:
            distance = _shape_distance(arguments, others)
            if distance < math.inf:
                near.append((distance, key, record))
    near.sort(key=lambda entry: entry[:2])
    return [record for _, _, record in near[:_NEAREST]]


def _shape_distance(ours: Any, theirs: Any) -> float:
    """How far apart two workloads are: the ratios of their sizes; infinite where one cannot
    stand for the other."""
    if isinstance(ours, (tuple, list)) and isinstance(theirs, (tuple, list)):
        if len(ours) != len(theirs):
            return math.inf
        return sum(_shape_distance(a, b) for a, b in zip(ours, theirs, strict=True))
    if isinstance(ours, (tuple, list)) or isinstance(theirs, (tuple, list)):
        return math.inf
    return _distance(ours, theirs)


def _distance(ours: Any, theirs: Any) -> float:
    """|log ratio| of two positive numbers; else 0 if equal, 1 if both are numbers."""
    if ours == theirs:
        return 0.0
    numbers = all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in (ours, theirs))
    if numbers and min(ours, theirs) > 0:
        return abs(math.log(ours / theirs))
    return 1.0


def _nearest_configs(task: Task, records: Sequence[Record]) -> list[Config]:
    """For each record the candidate whose knobs are nearest to its own."""
    if not records or not task.candidates:
        return []
    space = task.handle.config_space
    known = {index: knob_values(space.get(index), space) for index in task.candidates}
    configs: list[Config] = []
    for record in records:
        wanted = {
            name: tuple(value[1:]) if kind == "sp" and isinstance(value, list) else value
            for name, kind, value in autotvm_knobs(record)
        }
        if wanted.keys() != space.space_map.keys():
            continue  # a template of another version
        distances = {
            index: sum(_shape_distance(knobs[name], wanted[name]) for name in wanted)
            for index, knobs in known.items()
        }
        nearest = min(distances, key=lambda index: distances[index])
        if distances[nearest] < math.inf:  # else its knobs have other forms
            configs.append(nearest)
    return configs
