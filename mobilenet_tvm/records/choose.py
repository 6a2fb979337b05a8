"""Which record a task is built with."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from mobilenet_tvm.records.lines import Record
from mobilenet_tvm.records.tasks import Config, Task

# How many times as fast as the default a configuration must be to replace it.
CLEARLY = 1.02
# The same where both are estimates, which are worse than a measurement (docs/estimate.md).
CLEARLY_ESTIMATED = 1.10

# A kernel that takes so many times as long as a GPU's launch at most is not told from others.
LAUNCH_BOUND = 1.25

# TVM's MeasureErrorNo of a kernel that computed something else.
WRONG_OUTPUT = 5


def best_records(records: Iterable[Record]) -> dict[str, Record]:
    """The fastest successful record of each task, by the median of its repeats.

    A configuration that once computed something else is never the best, however often it was
    measured before and after.
    """
    records = list(records)
    wrong = _wrong_outputs(records)
    best: dict[str, Record] = {}
    for record in records:
        if record.cost_s is None or (record.key, record.config) in wrong:
            continue
        known = best.get(record.key)
        if known is None or known.cost_s is None or record.cost_s < known.cost_s:
            best[record.key] = record
    return best


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
    not repeatable in the model, where caches and neighbours decide. A default that takes hardly
    longer than a GPU's launch (``launch_s``) stays, too. What was found to compute something
    else, for whatever target, is never taken.
    """
    wrong = _wrong_outputs(records)
    by_task: dict[tuple[str, str], list[Record]] = {}
    for record in records:
        if (record.key, record.config) not in wrong:
            by_task.setdefault((record.key, record.target), []).append(record)
    chosen: dict[str, Record] = {}
    for task in tasks:
        known = by_task.get((task.key, task.target), [])
        best = best_records(known).get(task.key)
        default = best_records(r for r in known if r.config == task.default).get(task.key)
        if best is not None and best.cost_s is not None:
            limit_s = max(best.cost_s * clearly, LAUNCH_BOUND * launch_s)
            if default is not None and default.cost_s is not None and default.cost_s <= limit_s:
                best = default
            chosen[task.key] = best
    return chosen


def _wrong_outputs(records: Iterable[Record]) -> set[tuple[str, Config]]:
    return {(r.key, r.config) for r in records if r.error == WRONG_OUTPUT}
