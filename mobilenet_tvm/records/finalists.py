"""Whose kernels are worth being timed in the model: the few of each layer that are the fastest
alone."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from mobilenet_tvm.records.choose import by_task, usable
from mobilenet_tvm.records.lines import Record
from mobilenet_tvm.records.tasks import Config, Task

# Who takes at most so many times as long as the fastest, alone, may be the fastest in the model.
NEAR = 1.3


def find_finalists(
    tasks: Iterable[Task], records: Sequence[Record], limit: int
) -> dict[str, tuple[Record, ...]]:
    """At most ``limit`` records of different configurations for each of AutoTVM's tasks, by key.
    The records are of the templates as they are today (``records.serving.current``).

    The fastest alone come first, as far as they are within ``NEAR`` of it. The untuned default
    is always one of them where it was measured and did not fail, for it may be the fastest of
    all in the model. Tasks without a successful record have no entry.
    """
    known_of = by_task(usable(records))
    found = {}
    for task in tasks:
        if task.searcher == "autotvm":
            ranked = _ranked(known_of.get((task.key, task.target), []))
            if ranked:
                found[task.key] = tuple(_best_of(ranked, task.default, limit))
    return found


def _ranked(records: Iterable[Record]) -> list[tuple[float, Record]]:
    """The fastest successful trial of each configuration, with its seconds alone."""
    fastest: dict[Config, tuple[float, Record]] = {}
    for record in records:
        if record.cost_s is None:
            continue
        known = fastest.get(record.config)
        if known is None or record.cost_s < known[0]:
            fastest[record.config] = record.cost_s, record
    return sorted(fastest.values(), key=lambda entry: entry[0])


def _best_of(
    ranked: Sequence[tuple[float, Record]], default: Config | None, limit: int
) -> list[Record]:
    near = [record for cost_s, record in ranked if cost_s <= NEAR * ranked[0][0]]
    chosen = near[:limit]
    untuned = [record for _, record in ranked if record.config == default]
    if untuned and untuned[0] not in chosen:
        chosen = [*near[: max(limit - 1, 1)], *untuned]
    return chosen
