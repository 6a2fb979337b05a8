"""What a log holds: trials, failures and the best of each task."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from mobilenet_tvm.records.choose import by_task, fastest_alone, usable
from mobilenet_tvm.records.lines import Record, autotvm_task
from mobilenet_tvm.records.tasks import SearcherName, template_label


@dataclass(frozen=True)
class TaskStats:
    """One task in one log.

    Attributes:
        key: the task's key.
        label: for people.
        searcher: whose records they are.
        target: what they were measured for.
        trials: how many.
        best_s: seconds of one call with the fastest record; None when all failed.
        flops: floating-point operations of one call; None where nobody knows.
        failures: failed trials by TVM's ``MeasureErrorNo``.
    """

    key: str
    label: str
    searcher: SearcherName
    target: str
    trials: int
    best_s: float | None
    flops: float | None
    failures: Mapping[int, int]

    @property
    def gflops(self) -> float | None:
        """Speed of the fastest record in GFLOP/s."""
        if self.best_s is None or self.flops is None:
            return None
        return self.flops / self.best_s / 1e9


def summarise(
    records: Iterable[Record],
    *,
    flops: Mapping[str, float] | None = None,
    labels: Mapping[str, str] | None = None,
) -> list[TaskStats]:
    """Count the records of each task, in the order the tasks first came.

    Args:
        records: of one log, or of several of the same machine.
        flops: floating-point operations of a call, by key.
        labels: by key, where they are known better than from the record.
    """
    stats = []
    for (key, target), found in by_task(records).items():
        best = fastest_alone(usable(found))
        stats.append(
            TaskStats(
                key=key,
                label=(labels or {}).get(key) or label_of_record(found[0]),
                searcher=found[0].searcher,
                target=target,
                trials=len(found),
                best_s=None if best is None else best.cost_s,
                flops=(flops or {}).get(key),
                failures=Counter(record.error for record in found if record.error),
            )
        )
    return stats


def label_of_record(record: Record) -> str:
    """A task's label as far as a line alone tells it: of Ansor a hash and the tensors' shapes."""
    if record.searcher == "autotvm":
        template, arguments = autotvm_task(record)
        try:
            return template_label(template, arguments)
        except (IndexError, TypeError, AttributeError):  # a template that tasks never have
            return template
    try:
        name, *shapes = json.loads(record.key)
        texts = ("x".join(map(str, shape)) for shape in shapes)
        return " ".join([str(name)[:8], *texts])
    except (ValueError, TypeError):  # no key of a Relay model
        return record.key
