"""Transfer: where records of other models and machines tell this run to begin.

A record of the very same task is tried first as it is. A record of another shape is carried
over where it has a meaning there: a template's knobs to the nearest candidate of this space.
Ansor's steps fit one shape only; records of other shapes teach its cost model
(``CostModel.learn_records``). Whatever comes from elsewhere is a proposal: it is measured here
before it counts. What is of a CPU says nothing of a GPU, though Ansor's key of a task may be the
same for both.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from mobilenet_tvm.records import Config, Record, Task, best_records
from mobilenet_tvm.records.nearest import kind_of, nearest_config, nearest_records

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


def _nearest_records(task: Task, best: Mapping[tuple[str, str], Record]) -> list[Record]:
    """Records of the task's template for other shapes, the nearest first."""
    return [record for _, record in nearest_records(task, best.values())[:_NEAREST]]


def _nearest_configs(task: Task, records: Sequence[Record]) -> list[Config]:
    """For each record the candidate whose knobs are nearest to its own."""
    found = (nearest_config(task, record) for record in records)
    return [near[1] for near in found if near is not None]
