"""The tuning run on several boards at once: the log of one board, sooner."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from mobilenet_tvm.errors import DeviceError
from mobilenet_tvm.records import Config, Task, read_log
from mobilenet_tvm.search import (
    AnsorSearcher,
    CostModel,
    Failure,
    ReplayMeasurer,
    Request,
    Summary,
    Trial,
)

Tune = Callable[..., Summary]
Recorded = Mapping[tuple[str, int], Trial]


class Fleet:
    """Answers recorded trials, ``width`` at once; notes the groups that it was given.

    ``gone_after`` trials the last board goes: of the group at hand what is ``finished`` (indices)
    is yielded, and then no more.
    """

    def __init__(
        self,
        recorded: Recorded,
        width: int,
        on_group: Callable[[], None] = lambda: None,
        gone_after: int | None = None,
        finished: Sequence[int] = (),
    ) -> None:
        self.recorded, self.at_once = recorded, width
        self.on_group = on_group
        self.gone_after, self.finished = gone_after, finished
        self.groups: list[list[Request]] = []

    def width(self) -> int:
        return self.at_once

    def measure(
        self, task: Task, config: Config, deadline_s: float, best_s: float = float("inf")
    ) -> Trial:
        raise AssertionError("one at a time")

    def measure_all(
        self, requests: Sequence[Request], deadline_s: float
    ) -> Iterator[tuple[int, Trial]]:
        self.groups.append(list(requests))
        self.on_group()
        gone = self.gone_after is not None and len(self.asked) > self.gone_after
        for index, request in enumerate(requests):
            if not gone or index in self.finished:
                yield index, self.recorded[request.task.key, request.config]  # type: ignore[index]
        if gone:
            raise DeviceError("no board with key rpi4")

    def close(self) -> None: ...

    @property
    def asked(self) -> list[tuple[str, Config]]:
        return [(one.task.key, one.config) for group in self.groups for one in group]


def in_log(path: Path) -> list[tuple[str, Config]]:
    return [(record.key, record.config) for record in read_log(path, pytest.fail)]


@pytest.fixture
def tasks(tiny_tasks: tuple[Task, ...]) -> list[Task]:
    """Spaces larger than the number of trials below: the cost model has its say."""
    return [task for task in tiny_tasks if len(task.candidates) > 40][:3]


@pytest.mark.parametrize("width", [2, 4, 7, 16])
def test_the_log_is_that_of_one_board(
    tune: Tune, tasks: list[Task], recorded: Recorded, tmp_path: Path, width: int
) -> None:
    one, fleet = ReplayMeasurer(recorded), Fleet(recorded, width)
    tune(tasks, one, trials=36, path=tmp_path / "one.jsonl")
    summary = tune(tasks, fleet, trials=36)
    assert in_log(tmp_path / "log.jsonl") == one.asked == fleet.asked
    assert summary.trials == 36 * len(tasks)
    assert max(map(len, fleet.groups)) == width
    assert len(fleet.groups) < 2 * len(one.asked) / width


def test_a_group_is_of_one_batch(tune: Tune, tasks: list[Task], recorded: Recorded) -> None:
    fleet = Fleet(recorded, 5)
    tune(tasks[:1], fleet, trials=36)
    # One in the first pass, then up to the end of each batch of 16.
    assert [len(group) for group in fleet.groups] == [1, 5, 5, 5, 5, 5, 5, 1, 4]


def test_the_first_pass_goes_over_layers_at_once(
    tune: Tune, tiny_tasks: tuple[Task, ...], recorded: Recorded
) -> None:
    fleet = Fleet(recorded, 4)
    tune(tiny_tasks, fleet, trials=1)
    assert fleet.asked == [(task.key, task.default) for task in tiny_tasks]
    assert len(fleet.groups) == -(-len(tiny_tasks) // 4)


def test_a_layer_waits_for_what_its_other_searcher_finds(
    tune: Tune, both: tuple[Task, ...], recorded: Recorded
) -> None:
    """In the first pass Ansor's task of a layer is tried only if AutoTVM's brought nothing."""
    trials = dict(recorded)
    failing = both[0]
    for config in failing.candidates:
        trials[failing.key, config] = Trial(config, (), Failure.RUN_ERROR, "no")
    fleet = Fleet(trials, 4)
    first = len(both) // 2
    ansor = {task.key for task in both[first:]}

    def stop() -> None:
        if any(one.task.key in ansor for one in fleet.groups[-1]):
            raise KeyboardInterrupt

    fleet.on_group = stop
    with pytest.raises(KeyboardInterrupt):
        tune(both, fleet, trials=2)
    assert fleet.asked[:first] == [(task.key, task.default) for task in both[:first]]
    (asked,) = {one.task.label for one in fleet.groups[-1] if one.task.key in ansor}
    assert asked == failing.label


def test_a_layer_that_fails_has_short_groups(
    tune: Tune, tasks: list[Task], recorded: Recorded
) -> None:
    """An arm without success has turns of four trials, whatever the width."""
    task = tasks[0]
    table = {
        (task.key, config): Trial(config, (), Failure.RUN_ERROR, "no") for config in task.candidates
    }
    one, fleet = ReplayMeasurer(table), Fleet(table, 16)
    for measurer in (one, fleet):
        with pytest.raises(DeviceError, match="not one of"):
            tune([task], measurer, path=Path(f"{id(measurer)}.jsonl").absolute())
    assert fleet.asked == one.asked
    assert max(map(len, fleet.groups)) <= 4


@pytest.fixture(autouse=True)
def _in_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("after", [3, 20, 45, 70])
@pytest.mark.parametrize("widths", [(4, 1), (4, 3), (1, 8)])
def test_a_killed_run_goes_on_with_another_number_of_boards(
    tune: Tune,
    tasks: list[Task],
    recorded: Recorded,
    tmp_path: Path,
    after: int,
    widths: tuple[int, int],
) -> None:
    whole = ReplayMeasurer(recorded)
    tune(tasks, whole, trials=36, path=tmp_path / "whole.jsonl")

    class Killed(Fleet):
        def measure_all(
            self, requests: Sequence[Request], deadline_s: float
        ) -> Iterator[tuple[int, Trial]]:
            for index, trial in super().measure_all(requests, deadline_s):
                log = tmp_path / "log.jsonl"
                if log.exists() and len(in_log(log)) >= after:
                    raise KeyboardInterrupt
                yield index, trial

    with pytest.raises(KeyboardInterrupt):
        tune(tasks, Killed(recorded, widths[0]), trials=36)
    # Within the group too, what came before the kill is written.
    assert in_log(tmp_path / "log.jsonl") == whole.asked[:after]
    second = Fleet(recorded, widths[1])
    summary = tune(tasks, second, trials=36)
    assert summary.resumed == after
    by_task = {key for key, _ in whole.asked}
    for key in by_task:
        assert [c for k, c in whole.asked[:after] + second.asked if k == key] == [
            c for k, c in whole.asked if k == key
        ]


def test_what_was_finished_when_the_last_board_went_is_kept(
    tune: Tune, tasks: list[Task], recorded: Recorded, tmp_path: Path
) -> None:
    first = Fleet(recorded, 4, gone_after=20, finished=(1, 3))
    with pytest.raises(DeviceError, match="no board"):
        tune(tasks, first, trials=36)
    group = [(one.task.key, one.config) for one in first.groups[-1]]
    kept = [pair for pair in first.asked if pair not in group] + [group[1], group[3]]
    assert in_log(tmp_path / "log.jsonl") == kept
    second = Fleet(recorded, 4)
    tune(tasks, second, trials=36)
    assert not set(second.asked) & set(kept)
    assert set(second.asked) >= {group[0], group[2]}


def test_boards_that_come_and_go_change_the_width(
    tune: Tune, tasks: list[Task], recorded: Recorded, tmp_path: Path
) -> None:
    one, fleet = ReplayMeasurer(recorded), Fleet(recorded, 1)
    widths = iter([4, 4, 1, 2, 8] * 99)

    def change() -> None:
        fleet.at_once = next(widths)

    fleet.on_group = change
    tune(tasks, one, trials=36, path=tmp_path / "one.jsonl")
    tune(tasks, fleet, trials=36)
    assert fleet.asked == one.asked
    assert {1, 4} <= set(map(len, fleet.groups))


def test_the_seconds_of_all_lines_are_those_of_the_run(
    tune: Tune, tasks: list[Task], recorded: Recorded, tmp_path: Path, clock: Any
) -> None:
    """Four trials in a second took a quarter of one each."""
    from mobilenet_tvm.records.lines import trial_seconds

    fleet = Fleet(recorded, 4, on_group=lambda: clock.advance(1.0))
    summary = tune(tasks, fleet, trials=16)
    written = sum(map(trial_seconds, read_log(tmp_path / "log.jsonl", pytest.fail)))
    assert written == pytest.approx(summary.spent_s) == len(fleet.groups)


def test_a_trial_that_the_budget_cut_short_is_not_written(
    tune: Tune, tasks: list[Task], recorded: Recorded, tmp_path: Path, clock: Any
) -> None:
    class Slow(Fleet):
        def measure_all(
            self, requests: Sequence[Request], deadline_s: float
        ) -> Iterator[tuple[int, Trial]]:
            for index, trial in super().measure_all(requests, deadline_s):
                if len(self.asked) > 12 and index == 1:
                    clock.advance(deadline_s)
                    yield index, Trial(trial.config, (), Failure.RUN_TIMEOUT, "cut short")
                else:
                    clock.advance(0.1)
                    yield index, trial

    fleet = Slow(recorded, 4)
    summary = tune(tasks, fleet, time_s=30.0)
    assert summary.out_of_time
    assert summary.failures == {}
    cut = fleet.groups[-1][1]
    expected = [pair for pair in fleet.asked if pair != (cut.task.key, cut.config)]
    assert in_log(tmp_path / "log.jsonl") == expected


def test_ansor_is_told_before_it_proposes_the_next_batch(
    tiny_ansor: Mapping[str, Task],
) -> None:
    task = tiny_ansor["pointwise 1x1 32->32 @ 8x8"]
    model = CostModel(seed=0, cores=1)
    searcher = AnsorSearcher(task, trials=100, seed=0, model=model)
    given: list[Config] = []
    while (config := searcher.next()) is not None:
        given.append(config)
    assert 0 < len(set(given)) == len(given) <= searcher.batch
    for config in given:
        assert searcher.next() is None
        searcher.tell(Trial(config, (1e-5,)))
    assert searcher.next() not in given


def test_ansor_never_gives_more_than_its_limit(tiny_ansor: Mapping[str, Task]) -> None:
    task = tiny_ansor["pointwise 1x1 32->32 @ 8x8"]
    searcher = AnsorSearcher(task, trials=3, seed=0, model=CostModel(seed=0, cores=1))
    given = [searcher.next() for _ in range(5)]
    assert [config is None for config in given] == [False, False, False, True, True]
