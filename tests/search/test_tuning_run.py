"""The tuning run on recorded trials: budget, resume, failures. Nothing is compiled."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mobilenet_tvm.errors import DeviceError
from mobilenet_tvm.records import Task, best_records, read_log
from mobilenet_tvm.search import Failure, ReplayMeasurer, Summary, Trial
from mobilenet_tvm.search.trial import count_failures

Tune = Callable[..., Summary]
Recorded = Mapping[tuple[str, int], Trial]


def in_log(path: Path) -> list[tuple[str, int]]:
    return [(record.key, record.config) for record in read_log(path, pytest.fail)]


def everything(tasks: tuple[Task, ...], trials: int) -> int:
    return sum(min(trials, len(task.candidates)) for task in tasks)


def test_budget_by_trials_is_one_of_each_task(
    tune: Tune, tiny_tasks: tuple[Task, ...], recorded: Recorded, tmp_path: Path, recorder: Any
) -> None:
    replay = ReplayMeasurer(recorded)
    summary = tune(tiny_tasks, replay, trials=5, progress=recorder)
    count = Counter(key for key, _ in replay.asked)
    assert count == {task.key: min(5, len(task.candidates)) for task in tiny_tasks}
    assert len(set(replay.asked)) == len(replay.asked)
    assert in_log(tmp_path / "log.jsonl") == replay.asked
    assert (summary.trials, summary.resumed, summary.failures) == (len(replay.asked), 0, {})
    assert not summary.out_of_time
    assert recorder.budget == (len(tiny_tasks), everything(tiny_tasks, 5), None)
    assert len(recorder.trials) == summary.trials
    assert {key for key, *_ in recorder.finished_tasks} == {task.key for task in tiny_tasks}


def test_the_first_of_each_task_is_its_default(
    tune: Tune, tiny_tasks: tuple[Task, ...], recorded: Recorded
) -> None:
    replay = ReplayMeasurer(recorded)
    tune(tiny_tasks, replay, trials=3)
    assert replay.asked[: len(tiny_tasks)] == [(task.key, task.default) for task in tiny_tasks]


def test_progress_reports_the_best_so_far(
    tune: Tune, tiny_tasks: tuple[Task, ...], recorded: Recorded, recorder: Any
) -> None:
    task = tiny_tasks[2]
    tune([task], ReplayMeasurer(recorded), trials=8, progress=recorder)
    gflops = [best for *_, best in recorder.trials]
    assert gflops == sorted(gflops)
    assert [tried for _, tried, _, _ in recorder.trials] == list(range(1, 9))
    ((key, tried, best, failed),) = recorder.finished_tasks
    assert (key, tried, failed) == (task.key, 8, 0)
    assert best == gflops[-1] > gflops[0]


@pytest.mark.parametrize("trial_s", [0.05, 0.7, 2.0])
@pytest.mark.parametrize("budget_s", [20.0, 75.0])
def test_time_budget_is_kept_within_a_tenth(
    tune: Tune,
    tiny_tasks: tuple[Task, ...],
    recorded: Recorded,
    clock: Any,
    trial_s: float,
    budget_s: float,
) -> None:
    replay = ReplayMeasurer(recorded, lambda *_: clock.advance(trial_s))
    start = clock()
    summary = tune(tiny_tasks, replay, time_s=budget_s, trials=12)
    left = everything(tiny_tasks, 12) - summary.trials
    assert clock() - start <= 1.1 * budget_s
    assert summary.spent_s == clock() - start
    assert summary.out_of_time == (summary.spent_s >= budget_s)
    assert summary.out_of_time or not left  # it stops early only when all is done


class Hanging:
    """A device on which every candidate but each task's default runs until it is stopped."""

    def __init__(self, clock: Any) -> None:
        self._clock = clock
        self.asked: list[tuple[str, int]] = []

    def measure(
        self, task: Task, config: int, deadline_s: float, best_s: float = float("inf")
    ) -> Trial:
        self.asked.append((task.key, config))
        if config == task.default:
            self._clock.advance(0.1)
            return Trial(config, (1e-6,))
        self._clock.advance(min(10.0, deadline_s))
        return Trial(config, (), Failure.BUILD_TIMEOUT, "too long")

    def close(self) -> None: ...


@pytest.mark.parametrize("budget_s", [10.0, 33.0, 120.0])
def test_hanging_candidates_do_not_break_the_time_budget(
    tune: Tune, tiny_tasks: tuple[Task, ...], clock: Any, tmp_path: Path, budget_s: float
) -> None:
    device = Hanging(clock)
    summary = tune(tiny_tasks, device, time_s=budget_s)
    assert budget_s <= summary.spent_s <= 1.1 * budget_s
    # The one that the budget cut short may be a good one: it is not written off.
    assert in_log(tmp_path / "log.jsonl") == device.asked[:-1]
    assert sum(summary.failures.values()) == len(device.asked) - 1 - len(tiny_tasks)


def test_short_budget_leaves_every_task_with_a_record(
    tune: Tune, tiny_tasks: tuple[Task, ...], recorded: Recorded, clock: Any, tmp_path: Path
) -> None:
    replay = ReplayMeasurer(recorded, lambda *_: clock.advance(1.0))
    summary = tune(tiny_tasks, replay, time_s=len(tiny_tasks) - 0.5)
    assert summary.trials == len(tiny_tasks)
    assert summary.out_of_time
    assert {key for key, _ in in_log(tmp_path / "log.jsonl")} == {task.key for task in tiny_tasks}


def test_task_that_always_fails_takes_nothing_from_the_others(
    tune: Tune, tiny_tasks: tuple[Task, ...], recorded: Recorded, clock: Any, tmp_path: Path
) -> None:
    bad = tiny_tasks[0].key
    table = {
        key: Trial(key[1], (), Failure.RUN_ERROR, "it crashed") if key[0] == bad else trial
        for key, trial in recorded.items()
    }
    replay = ReplayMeasurer(table, lambda *_: clock.advance(1.0))
    tune(tiny_tasks, replay, time_s=len(tiny_tasks) + 5)
    best = best_records(read_log(tmp_path / "log.jsonl", pytest.fail))
    assert set(best) == {task.key for task in tiny_tasks[1:]}


def test_trials_of_an_older_template_are_tried_again(
    tune: Tune, tiny_tasks: tuple[Task, ...], recorded: Recorded, tmp_path: Path
) -> None:
    """Their indices stand for other knobs by now: a fast one says nothing of those."""
    log = tmp_path / "log.jsonl"
    task = tiny_tasks[2]
    tune([task], ReplayMeasurer(recorded), trials=3)
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    indices = [line["config"]["index"] for line in lines]
    for line, index in zip(lines, [*indices[1:], indices[0]], strict=True):
        line["config"]["index"] = index
        line["result"][0] = [1e-12]
    log.write_text("".join(json.dumps(line) + "\n" for line in lines))

    replay = ReplayMeasurer(recorded)
    summary = tune([task], replay, trials=3)
    assert (summary.resumed, summary.trials) == (0, 3)
    assert [config for _, config in replay.asked] == indices
    best_s = min(recorded[task.key, index].cost_s for index in indices)
    assert summary.trace[-1][1] == pytest.approx(best_s * task.weight)


def equal_spaces(tasks: tuple[Task, ...]) -> tuple[Task, Task]:
    """Two tasks with as many candidates, each in the model once."""
    once = sorted((t for t in tasks if t.weight == 1), key=lambda t: len(t.candidates))
    assert len(once[-1].candidates) == len(once[-2].candidates) > 40
    return once[-2], once[-1]


def constant(costs_s: Mapping[Task, float]) -> Recorded:
    return {
        (task.key, config): Trial(config, (cost_s,))
        for task, cost_s in costs_s.items()
        for config in task.candidates
    }


def test_the_time_goes_to_what_costs_the_model_most(
    tune: Tune, tiny_tasks: tuple[Task, ...], clock: Any
) -> None:
    cheap, dear = equal_spaces(tiny_tasks)
    replay = ReplayMeasurer(constant({cheap: 1e-6, dear: 4e-6}), lambda *_: clock.advance(1.0))
    tune([cheap, dear], replay, time_s=33.5)
    # One second each, and then whole batches of the dearer one.
    assert [key for key, _ in replay.asked] == [cheap.key] + [dear.key] * 33


def test_weight_counts_as_cost(tune: Tune, tiny_tasks: tuple[Task, ...], clock: Any) -> None:
    once, other = equal_spaces(tiny_tasks)
    often = replace(other, weight=5)
    replay = ReplayMeasurer(constant({once: 1e-6, often: 1e-6}), lambda *_: clock.advance(1.0))
    tune([once, often], replay, time_s=30.5)
    assert Counter(key for key, _ in replay.asked) == {often.key: 30, once.key: 1}


def test_what_a_task_does_not_use_the_next_ones_get(
    tune: Tune, tiny_tasks: tuple[Task, ...], clock: Any
) -> None:
    small = min(tiny_tasks, key=lambda task: len(task.candidates))
    large = max(tiny_tasks, key=lambda task: len(task.candidates))
    table = {
        (task.key, config): Trial(config, (cost_s,))
        for task, cost_s in ((small, 9e-6), (large, 1e-6))
        for config in task.candidates
    }
    replay = ReplayMeasurer(table, lambda *_: clock.advance(1.0))
    tune([small, large], replay, time_s=30.0)
    count = Counter(key for key, _ in replay.asked)
    assert count == {small.key: len(small.candidates), large.key: 30 - len(small.candidates)}


def test_resumed_run_repeats_no_finished_trial(
    tune: Tune, tiny_tasks: tuple[Task, ...], recorded: Recorded, tmp_path: Path
) -> None:
    first, second, third = (ReplayMeasurer(recorded) for _ in range(3))
    tune(tiny_tasks, first, trials=2)
    summary = tune(tiny_tasks, second, trials=6)
    assert not set(first.asked) & set(second.asked)
    assert summary.resumed == len(first.asked)
    assert len(first.asked) + len(second.asked) == everything(tiny_tasks, 6)
    summary = tune(tiny_tasks, third, trials=6)
    assert third.asked == []
    assert (summary.trials, summary.resumed) == (0, everything(tiny_tasks, 6))
    assert len(in_log(tmp_path / "log.jsonl")) == everything(tiny_tasks, 6)


def test_other_models_records_in_the_log_are_no_ones_business(
    tune: Tune, tiny_tasks: tuple[Task, ...], recorded: Recorded
) -> None:
    tune(tiny_tasks[:3], ReplayMeasurer(recorded), trials=2)
    summary = tune(tiny_tasks[3:5], ReplayMeasurer(recorded), trials=2)
    assert (summary.trials, summary.resumed) == (4, 0)


def test_failures_are_typed_counted_and_kept(
    tune: Tune, tiny_tasks: tuple[Task, ...], recorded: Recorded, tmp_path: Path, recorder: Any
) -> None:
    task = tiny_tasks[4]
    kinds = list(Failure)
    failing = {
        config: kinds[number % len(kinds)]
        for number, config in enumerate(task.candidates[::3])
        if config != task.default
    }
    table = {
        (task.key, config): Trial(config, (), failing[config], f"first of {config}")
        if config in failing
        else recorded[task.key, config]
        for config in task.candidates
    }
    replay = ReplayMeasurer(table)
    summary = tune([task], replay, progress=recorder)
    expected = Counter(failure.value for failure in failing.values())
    assert summary.failures == expected
    first = next(config for _, config in replay.asked if config in failing)
    assert summary.first_error == f"first of {first}"
    assert recorder.finished_tasks[0][3] == len(failing)
    records = read_log(tmp_path / "log.jsonl", pytest.fail)
    assert count_failures(record.error for record in records) == expected
    for record in records:
        failure = Failure.of_measure_error(record.error) if record.error else None
        assert failure == failing.get(record.config)
        assert (record.cost_s is None) == (failure is not None)
    # A second run knows them as failed.
    again = ReplayMeasurer(table)
    tune([task], again, progress=recorder)
    assert again.asked == []
    assert recorder.finished_tasks[1] == recorder.finished_tasks[0]


def test_run_in_which_nothing_succeeds_tells_the_first_error(
    tune: Tune, tiny_tasks: tuple[Task, ...], tmp_path: Path
) -> None:
    table = {
        (task.key, config): Trial(config, (), Failure.BUILD_ERROR, f"cannot build {task.label}")
        for task in tiny_tasks
        for config in task.candidates
    }
    count = everything(tiny_tasks, 2)
    summary = Summary()
    with pytest.raises(DeviceError) as caught:
        tune(tiny_tasks, ReplayMeasurer(table), trials=2, summary=summary)
    assert str(caught.value) == (
        f"not one of {count} trials succeeded ({count} build_error); the first error: "
        f"cannot build {tiny_tasks[0].label}"
    )
    assert summary.trials == len(in_log(tmp_path / "log.jsonl")) == count
    # The same command again has nothing left to try, and must not pass for a success.
    with pytest.raises(DeviceError, match=rf"not one of the {count} trials in the log.*--fresh"):
        tune(tiny_tasks, ReplayMeasurer(table), trials=2)


def test_budget_too_short_for_a_single_trial_is_said(
    tune: Tune, tiny_tasks: tuple[Task, ...], clock: Any
) -> None:
    class Slow(Hanging):
        def measure(
            self, task: Task, config: int, deadline_s: float, best_s: float = float("inf")
        ) -> Trial:
            clock.advance(deadline_s)
            return Trial(config, (), Failure.BUILD_TIMEOUT, "too long")

    with pytest.raises(DeviceError, match=r"no trial finished .* longer --time-budget"):
        tune(tiny_tasks, Slow(clock), time_s=3.0)


def test_one_success_is_enough(
    tune: Tune, tiny_tasks: tuple[Task, ...], recorded: Recorded
) -> None:
    good = tiny_tasks[-1].key
    table = {
        key: trial if key[0] == good else Trial(key[1], (), Failure.BUILD_ERROR, "no")
        for key, trial in recorded.items()
    }
    summary = tune(tiny_tasks, ReplayMeasurer(table), trials=2)
    assert summary.failures["build_error"] > 0


@pytest.mark.parametrize("after", [1, 20, 45, 70])
def test_interrupted_run_goes_on_as_if_nothing_had_happened(
    tune: Tune, tiny_tasks: tuple[Task, ...], recorded: Recorded, tmp_path: Path, after: int
) -> None:
    # Spaces larger than the number of trials: the cost model has its say too.
    tasks = [task for task in tiny_tasks if len(task.candidates) > 40][:2]
    whole = ReplayMeasurer(recorded)
    tune(tasks, whole, trials=36, seed=3, path=tmp_path / "whole.jsonl")
    assert len(whole.asked) == 36 * len(tasks) > after

    def interrupt(*_: object) -> None:
        if len(first.asked) > after:
            raise KeyboardInterrupt

    first, second = ReplayMeasurer(recorded, interrupt), ReplayMeasurer(recorded)
    summary = Summary()
    with pytest.raises(KeyboardInterrupt):
        tune(tasks, first, trials=36, seed=3, summary=summary)
    assert summary.trials == after
    assert in_log(tmp_path / "log.jsonl") == first.asked[:-1]
    tune(tasks, second, trials=36, seed=3)
    assert sorted(first.asked[:-1] + second.asked) == sorted(whole.asked)
    by_task = [key for key, _ in whole.asked]
    for key in set(by_task):  # and each task in the same order
        assert [c for k, c in first.asked[:-1] + second.asked if k == key] == [
            c for k, c in whole.asked if k == key
        ]


def test_full_disk_ends_the_run_and_keeps_its_trials(
    tune: Tune,
    tiny_tasks: tuple[Task, ...],
    recorded: Recorded,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import os

    def fill(task: Task, config: int) -> None:
        if len(replay.asked) == 4:
            monkeypatch.setattr(os, "write", lambda *_: 0)

    replay = ReplayMeasurer(recorded, fill)
    with pytest.raises(DeviceError, match="make room and run the same command again"):
        tune(tiny_tasks, replay, trials=3)
    monkeypatch.undo()
    assert in_log(tmp_path / "log.jsonl") == replay.asked[:3]
    second = ReplayMeasurer(recorded)
    tune(tiny_tasks, second, trials=3)
    assert second.asked[0] == replay.asked[3]


@pytest.mark.parametrize("failure", list(Failure))
def test_failure_comes_back_from_its_error_number(failure: Failure) -> None:
    assert Failure.of_measure_error(failure.measure_error) is failure


@pytest.mark.parametrize("number", [1, 3, 99])
def test_tvms_other_error_numbers_are_build_errors(number: int) -> None:
    assert Failure.of_measure_error(number) is Failure.BUILD_ERROR


def test_cost_is_the_median_and_infinite_without_one() -> None:
    assert Trial(0, (1.0, 50.0, 2.0)).cost_s == 2.0
    assert Trial(0, (), Failure.RUN_ERROR).cost_s == float("inf")
