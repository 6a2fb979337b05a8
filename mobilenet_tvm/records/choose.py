"""Which record a task is built with."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from mobilenet_tvm.records.lines import Record
from mobilenet_tvm.records.tasks import Config, Task

# How many times as fast as the default a configuration must be to replace it.
CLEARLY = 1.02
# The same where both are estimates, which are worse than a measurement (docs/estimate.md).
CLEARLY_ESTIMATED = 1.10

# The same of two times in the model, where one alone says less.
CLEARLY_IN_MODEL = 1.01

# A kernel that takes so many times as long as a GPU's launch at most is not told from others.
LAUNCH_BOUND = 1.25

# TVM's MeasureErrorNo of a kernel that computed something else.
WRONG_OUTPUT = 5


def best_records(records: Iterable[Record]) -> dict[str, Record]:
    """The fastest successful record of each task, by the median of its repeats.

    Where the fastest one alone was timed in the model too, it is the fastest there of those that
    were: alone a kernel meets other caches and other neighbours. A configuration that once
    computed something else is never the best, however often it was measured before and after.
    """
    records = list(records)
    wrong = wrong_outputs(records)
    by_key: dict[str, list[tuple[float, Record]]] = {}
    for record in records:
        if record.cost_s is not None and (record.key, record.config) not in wrong:
            by_key.setdefault(record.key, []).append((record.cost_s, record))
    return {key: _best(found) for key, found in by_key.items()}


def _best(found: Sequence[tuple[float, Record]]) -> Record:
    """The best of some successful records of one task, each with its seconds alone."""
    fastest = min(found, key=lambda entry: entry[0])[1]
    if fastest.in_model_s is None:  # nobody knows it there, or it was found since
        return fastest
    timed = [(record.in_model_s, s, record) for s, record in found if record.in_model_s is not None]
    return min(timed, key=lambda entry: entry[:2])[2]


def choose_records(
    tasks: Iterable[Task],
    records: Sequence[Record],
    *,
    clearly: float = CLEARLY,
    launch_s: float = 0.0,
) -> dict[str, Record]:
    """The record that each task is built with, by key.

    It is the fastest one measured for the task's target; but the untuned default, where that
    was measured too and nothing is ``clearly`` times as fast: a smaller difference is
    not repeatable in the model, where caches and neighbours decide; where both were timed there,
    ``CLEARLY_IN_MODEL`` is enough. A default that takes hardly
    longer than a GPU's launch (``launch_s``) stays, too. What was found to compute something
    else, for whatever target, is never taken.
    """
    wrong = wrong_outputs(records)
    by_task: dict[tuple[str, str], list[Record]] = {}
    for record in records:
        if (record.key, record.config) not in wrong:
            by_task.setdefault((record.key, record.target), []).append(record)
    chosen: dict[str, Record] = {}
    for task in tasks:
        known = by_task.get((task.key, task.target), [])
        best = best_records(known).get(task.key)
        default = best_records(r for r in known if r.config == task.default).get(task.key)
        if best is not None:
            stays = default is not None and _hardly_slower(default, best, clearly, launch_s)
            chosen[task.key] = default if default is not None and stays else best
    return chosen


def gain(record: Record, over: Record) -> float | None:
    """How many times as fast a record is as another one of its task: in the model, where both
    were timed there; None where one of them failed."""
    if record.in_model_s is not None and over.in_model_s is not None:
        return over.in_model_s / record.in_model_s
    if record.cost_s is None or over.cost_s is None:
        return None
    return over.cost_s / record.cost_s


def _hardly_slower(default: Record, best: Record, clearly: float, launch_s: float) -> bool:
    """Whether the untuned default may stay."""
    if default.cost_s is not None and default.cost_s <= LAUNCH_BOUND * launch_s:
        return True
    gained = gain(best, default)
    if best.in_model_s is not None and default.in_model_s is not None:
        clearly = min(clearly, CLEARLY_IN_MODEL)
    return gained is not None and gained <= clearly


def wrong_outputs(records: Iterable[Record]) -> set[tuple[str, Config]]:
    """Keys and configurations of what was found to compute something else."""
    return {(r.key, r.config) for r in records if r.error == WRONG_OUTPUT}
