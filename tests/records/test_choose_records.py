"""Which record a task is built with."""

from __future__ import annotations

from mobilenet_tvm.records import Record, Task, choose_records
from mobilenet_tvm.records.choose import CLEARLY, CLEARLY_ESTIMATED


def record(task: Task, config: int | None, cost_s: float | None, **changes: str) -> Record:
    assert config is not None
    fields = {"key": task.key, "target": str(task.handle.target), **changes}
    return Record(config=config, cost_s=cost_s, error=0 if cost_s else 4, line="", **fields)


def other_than(task: Task) -> int:
    return next(config for config in task.candidates if config != task.default)


def test_the_clearly_fastest_wins(tiny_tasks: tuple[Task, ...]) -> None:
    task = tiny_tasks[1]
    other = other_than(task)
    records = [record(task, task.default, CLEARLY * 1.001), record(task, other, 1.0)]
    assert choose_records([task], records)[task.key].config == other


def test_the_default_stays_where_nothing_is_clearly_faster(tiny_tasks: tuple[Task, ...]) -> None:
    task = tiny_tasks[1]
    records = [record(task, other_than(task), 1.0), record(task, task.default, CLEARLY * 0.999)]
    assert choose_records([task], records)[task.key].config == task.default


def test_an_estimate_must_be_clearer_to_replace_the_default(tiny_tasks: tuple[Task, ...]) -> None:
    task = tiny_tasks[1]
    records = [record(task, other_than(task), 1.0), record(task, task.default, CLEARLY * 1.01)]
    assert choose_records([task], records)[task.key].config != task.default
    chosen = choose_records([task], records, clearly=CLEARLY_ESTIMATED)
    assert chosen[task.key].config == task.default


def test_a_failed_default_never_wins(tiny_tasks: tuple[Task, ...]) -> None:
    task = tiny_tasks[1]
    other = other_than(task)
    records = [record(task, task.default, None), record(task, other, 1.0)]
    assert choose_records([task], records)[task.key].config == other


def test_records_of_other_targets_and_tasks_are_left_out(tiny_tasks: tuple[Task, ...]) -> None:
    task = tiny_tasks[1]
    records = [
        record(task, task.default, 1.0, target="llvm -mcpu=haswell"),
        record(task, task.default, 1.0, key="another"),
        record(task, task.default, None),
    ]
    assert choose_records([task], records) == {}
