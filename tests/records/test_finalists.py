"""Which kernels are timed in the model, and what those times decide."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest

from mobilenet_tvm.records import Record, Task, best_records, choose_records, parse_line
from mobilenet_tvm.records.choose import CLEARLY, CLEARLY_IN_MODEL, gain
from mobilenet_tvm.records.finalists import NEAR, find_finalists
from mobilenet_tvm.records.lines import with_in_model
from mobilenet_tvm.records.merge import distil_records, merge_records
from mobilenet_tvm.search import Failure


def record(
    task: Task,
    config: int | None,
    cost_s: float | None,
    in_model_s: float | None = None,
    of: str = "net",
) -> Record:
    assert config is not None
    return Record(
        task.key,
        config,
        cost_s,
        0 if cost_s else 4,
        "",
        str(task.handle.target),
        in_model_s=in_model_s,
        in_model_of="" if in_model_s is None else of,
    )


@pytest.fixture
def task(tiny_tasks: tuple[Task, ...]) -> Task:
    return tiny_tasks[1]


@pytest.fixture
def others(task: Task) -> list[int]:
    return [config for config in task.candidates if config != task.default]


def configs(records: tuple[Record, ...]) -> list[object]:
    return [one.config for one in records]


def test_the_fastest_few_and_the_default_are_finalists(task: Task, others: list[int]) -> None:
    records = [
        record(task, others[0], 1.10),
        record(task, others[1], 1.00),
        record(task, others[2], NEAR * 1.01),
        record(task, others[3], None),
        record(task, others[4], 1.05),
        record(task, others[1], 1.20),  # measured twice: the faster time counts, and once
        record(task, task.default, 1.40),
    ]
    found = find_finalists([task], records, 9)[task.key]
    assert configs(found) == [others[1], others[4], others[0], task.default]
    found = find_finalists([task], records, 2)[task.key]
    assert configs(found) == [others[1], task.default]
    found = find_finalists([task], [record(task, task.default, 1.01), *records[:-1]], 2)[task.key]
    assert configs(found) == [others[1], task.default]


def test_no_finalist_computes_something_else(task: Task, others: list[int]) -> None:
    wrong = dataclasses.replace(record(task, others[0], None), error=5)
    records = [record(task, others[0], 1.0), wrong, record(task, others[1], 2.0)]
    assert configs(find_finalists([task], records, 4)[task.key]) == [others[1]]
    assert find_finalists([task], [wrong], 4) == {}


def test_the_fastest_in_the_model_wins(task: Task, others: list[int]) -> None:
    alone = record(task, others[0], 1.00, 2.0)
    in_model = record(task, others[1], 1.10, 1.9)
    unknown = record(task, others[2], 1.05)
    assert best_records([alone, in_model, unknown])[task.key] is in_model
    # What was found since and is the fastest alone was never timed there.
    newer = record(task, others[3], 0.99)
    assert best_records([alone, in_model, unknown, newer])[task.key] is newer


def test_the_default_stays_if_it_is_as_good_in_the_model(task: Task, others: list[int]) -> None:
    default = record(task, task.default, 2.0, CLEARLY_IN_MODEL * 0.999)
    other = record(task, others[0], 1.0, 1.0)
    assert choose_records([task], [other, default])[task.key] is default
    default = record(task, task.default, 1.0, CLEARLY_IN_MODEL * 1.001)
    assert CLEARLY_IN_MODEL * 1.001 < CLEARLY
    assert choose_records([task], [other, default])[task.key] is other


def test_times_of_two_models_are_not_compared(task: Task, others: list[int]) -> None:
    mine = [record(task, others[0], 1.0, 20.0), record(task, task.default, 1.2, 21.0)]
    its = [
        record(task, others[1], 1.1, 5.0, "other"),
        record(task, task.default, 1.1, 6.0, "other"),
    ]
    for records in ([*mine, *its], [*its, *mine]):
        assert best_records(records)[task.key] is mine[0]
        assert choose_records([task], records)[task.key] is mine[0]


def test_a_copy_of_the_line_without_a_time_does_not_hide_it(task: Task, others: list[int]) -> None:
    timed = [record(task, others[0], 1.0, 3.0), record(task, others[1], 1.1, 2.0)]
    copy = record(task, others[0], 1.0)
    assert best_records([copy, *timed])[task.key] is timed[1]


def test_a_gain_is_of_times_that_compare(task: Task, others: list[int]) -> None:
    one, two = record(task, others[0], 1.0, 4.0), record(task, others[1], 2.0, 6.0)
    assert gain(one, over=two) == 1.5
    assert gain(one, over=dataclasses.replace(two, in_model_s=None)) == 2.0
    assert gain(one, over=dataclasses.replace(two, in_model_of="other")) == 2.0
    assert gain(one, over=record(task, others[2], None)) is None


def test_a_merged_log_keeps_the_times(line: Callable[..., str]) -> None:
    slower, faster = parse_line(line(1, 0, 1.1)), parse_line(line(1, 0, 1.0))
    timed = with_in_model(slower, 2.0, "net")
    for records in ([timed, faster], [faster, timed]):
        (kept,) = merge_records(records)
        assert (kept.cost_s, kept.in_model_s, kept.in_model_of) == (1.0, 2.0, "net")
    (kept,) = merge_records([with_in_model(faster, 3.0, "other"), timed])
    assert (kept.cost_s, kept.in_model_s, kept.in_model_of) == (1.0, 3.0, "other")
    failed = parse_line(line(1, 0, failure=Failure.RUN_ERROR))
    assert merge_records([failed, timed]) == [timed]


def test_a_distilled_log_has_the_winner(task: Task, others: list[int]) -> None:
    fast, winner = record(task, others[1], 1.0, 3.0), record(task, others[0], 1.1, 2.0)
    assert distil_records([fast, winner]) == [winner]
