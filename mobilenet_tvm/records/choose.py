"""Which record a task is built with."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from mobilenet_tvm.records.lines import Record
from mobilenet_tvm.records.tasks import Task

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

    Where the fastest one alone was timed in a model too, it is the fastest there of those that
    were timed in the same model: alone a kernel meets other caches and other neighbours. A
    configuration that once computed something else is never the best, however often it was
    measured before and after.
    """
    by_key: dict[str, list[Record]] = {}
    for record in usable(list(records)):
        if record.cost_s is not None:
            by_key.setdefault(record.key, []).append(record)
    return {key: _best(found) for key, found in by_key.items()}


def fastest_alone(records: Iterable[Record]) -> Record | None:
    """The fastest successful record of one task in its own trials, whatever the model says."""
    timed = [(record.cost_s, record) for record in records if record.cost_s is not None]
    return min(timed, key=lambda entry: entry[0])[1] if timed else None


def _best(found: Sequence[Record]) -> Record:
    """The best of some successful records of one task."""
    fastest = fastest_alone(found)
    assert fastest is not None
    timed = [one for one in found if one.in_model_s is not None]
    # Which model, if any, this configuration was timed in; another copy of its line may say it.
    of = next((one.in_model_of for one in timed if one.config == fastest.config), None)
    if of is None:  # it was found since
        return fastest
    return min((one for one in timed if one.in_model_of == of), key=_in_model_s)


def _in_model_s(record: Record) -> tuple[float, float]:
    """With the time alone, where two take equally long."""
    assert record.in_model_s is not None
    assert record.cost_s is not None
    return record.in_model_s, record.cost_s


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
    ``CLEARLY_IN_MODEL`` is enough. A default that takes hardly longer than a GPU's launch
    (``launch_s``) stays, too. What was found to compute something else, for whatever target, is
    never taken.
    """
    known_of = by_task(usable(records))
    chosen: dict[str, Record] = {}
    for task in tasks:
        known = known_of.get((task.key, task.target), [])
        best = best_records(known).get(task.key)
        if best is not None:
            default = comparable(best, [one for one in known if one.config == task.default])
            stays = default is not None and _hardly_slower(default, best, clearly, launch_s)
            chosen[task.key] = default if default is not None and stays else best
    return chosen


def gain(record: Record, over: Record) -> float | None:
    """How many times as fast a record is as another one of its task: in the model, where both
    were timed in the same one; None where one of them failed."""
    mine_s, its_s = record.cost_s, over.cost_s
    if _in_one_model(record, over):
        mine_s, its_s = record.in_model_s, over.in_model_s
    return None if mine_s is None or its_s is None else its_s / mine_s


def comparable(best: Record, records: Sequence[Record]) -> Record | None:
    """One of several records of a configuration: timed in the model that ``best`` was, or else
    the fastest alone."""
    timed = [one for one in records if one.cost_s is not None and _in_one_model(one, best)]
    return fastest_alone(timed or records)


def _in_one_model(one: Record, other: Record) -> bool:
    both = one.in_model_s is not None and other.in_model_s is not None
    return both and one.in_model_of == other.in_model_of


def _hardly_slower(default: Record, best: Record, clearly: float, launch_s: float) -> bool:
    """Whether the untuned default may stay."""
    if default.cost_s is not None and default.cost_s <= LAUNCH_BOUND * launch_s:
        return True
    if _in_one_model(best, default):
        clearly = min(clearly, CLEARLY_IN_MODEL)
    gained = gain(best, default)
    return gained is not None and gained <= clearly


def by_task(records: Iterable[Record]) -> dict[tuple[str, str], list[Record]]:
    """The records of each task, by its key and target, in the order the tasks first came."""
    found: dict[tuple[str, str], list[Record]] = {}
    for record in records:
        found.setdefault((record.key, record.target), []).append(record)
    return found


def usable(records: Sequence[Record]) -> list[Record]:
    """The records without the configurations that were found to compute something else."""
    wrong = {(r.key, r.config) for r in records if r.error == WRONG_OUTPUT}
    return [one for one in records if (one.key, one.config) not in wrong]
