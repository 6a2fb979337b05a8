"""Both searchers in one tuning run, on recorded trials. Nothing is compiled."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from mobilenet_tvm.errors import DeviceError
from mobilenet_tvm.records import Config, Task, best_records, read_log
from mobilenet_tvm.records.lines import trial_seconds
from mobilenet_tvm.search import Failure, ReplayMeasurer, Summary, Trial

Tune = Callable[..., Summary]
Table = dict[tuple[str, Config], Trial]


def asked_of(replay: ReplayMeasurer, tasks: tuple[Task, ...]) -> Counter[str]:
    """Trials by searcher."""
    searchers = {task.key: task.searcher for task in tasks}
    return Counter(searchers[key] for key, _ in replay.asked)


def in_logs(path: Path, ansor: Path) -> set[tuple[str, str, Config]]:
    found = [(r.searcher, r.key, r.config) for p in (path, ansor) for r in read_log(p, pytest.fail)]
    assert len(found) == len(set(found)), "a trial was repeated"
    return set(found)


@pytest.fixture
def wide(tiny_tasks: tuple[Task, ...]) -> Task:
    """The AutoTVM task with the most candidates."""
    return max(tiny_tasks, key=lambda task: len(task.candidates))


@pytest.fixture
def layer(wide: Task, ansor_task: Callable[..., Task]) -> tuple[Task, Task]:
    """One layer, for either searcher."""
    return wide, ansor_task(wide.label)


@pytest.fixture
def table(steps: Callable[[int], str]) -> Callable[..., Table]:
    """``table({task: cost_s of the n-th trial, or None where it fails})``."""

    def make(curves: Mapping[Task, Callable[[int], float | None]], count: int = 400) -> Table:
        trials: Table = {}
        for task, curve in curves.items():
            # AutoTVM's default comes first, and the rest in an order that nobody knows here.
            rest = [c for c in task.candidates if c != task.default]
            configs: list[Config] = (
                [task.default, *rest] if rest else list(map(steps, range(count)))
            )
            for number, config in enumerate(configs):
                cost_s = curve(number)
                trials[task.key, config] = (
                    Trial(config, (), Failure.RUN_ERROR, f"it crashed: {task.label}")
                    if cost_s is None
                    else Trial(config, (cost_s,))
                )
        return trials

    return make


def test_each_layer_has_a_record_first_by_the_cheaper_searcher(
    tune: Tune, both: tuple[Task, ...], table: Any, clock: Any
) -> None:
    replay = ReplayMeasurer(
        table({task: lambda _: 1e-6 for task in both}), lambda *_: clock.advance(1.0)
    )
    summary = tune(both, replay, time_s=len(both) / 2 - 0.5)
    assert asked_of(replay, both) == {"autotvm": len(both) // 2}
    assert summary.by_searcher == {"autotvm": len(both) // 2, "ansor": 0}
    assert len({key for key, _ in replay.asked}) == len(both) // 2
    assert summary.stopped == {"out of time": len(both)}


def test_a_layer_that_no_template_runs_gets_ansors_trial_at_once(
    tune: Tune, both: tuple[Task, ...], table: Any, clock: Any
) -> None:
    count = len(both) // 2
    broken = both[3]
    curves = {task: (lambda _: None) if task == broken else (lambda _: 1e-6) for task in both}
    replay = ReplayMeasurer(table(curves), lambda *_: clock.advance(1.0))
    summary = tune(both, replay, time_s=count + 0.5)
    assert replay.asked[count][0] == both[count + 3].key
    assert len(summary.trace) == 1  # from then on each layer has something that runs


def test_with_ansor_alone_each_task_gets_its_trial(
    tune: Tune, both: tuple[Task, ...], table: Any, clock: Any
) -> None:
    ansor = both[len(both) // 2 :]
    replay = ReplayMeasurer(
        table({task: lambda _: 1e-6 for task in ansor}), lambda *_: clock.advance(1.0)
    )
    summary = tune(ansor, replay, time_s=len(ansor) + 0.5)
    assert [key for key, _ in replay.asked[: len(ansor)]] == [task.key for task in ansor]
    assert summary.by_searcher == {"ansor": summary.trials}


def test_ansor_wins_late(
    tune: Tune, layer: tuple[Task, Task], table: Any, clock: Any, tmp_path: Path, ansor_log: Any
) -> None:
    ours, theirs = layer
    curves = {ours: lambda _: 4e-6, theirs: lambda n: 9e-6 * 0.985**n}
    replay = ReplayMeasurer(table(curves), lambda *_: clock.advance(0.25))
    summary = tune(layer, replay, time_s=90.0, floor_s=lambda task: 1e-6)
    best = best_records(read_log(ansor_log(tmp_path / "log.jsonl"), pytest.fail))[theirs.key]
    assert best.cost_s is not None
    assert best.cost_s <= 1.03e-6  # down to the roofline
    assert summary.stopped == {"no gain expected": 1, "near the roofline": 1}
    assert summary.trace[0][1] > 3.5e-6 > 1.1e-6 > summary.trace[-1][1]


def test_near_the_roofline_ansor_gets_nothing(
    tune: Tune, both: tuple[Task, ...], table: Any, clock: Any, recorder: Any
) -> None:
    curves = {task: lambda _: 1.02e-6 for task in both}
    replay = ReplayMeasurer(table(curves), lambda *_: clock.advance(0.25))
    summary = tune(both, replay, time_s=600.0, floor_s=lambda _: 1e-6, progress=recorder)
    assert asked_of(replay, both) == {"autotvm": len(both) // 2}
    assert summary.stopped == {"near the roofline": len(both)}
    assert set(recorder.reasons.values()) == {"near the roofline"}
    assert not summary.out_of_time


def test_time_goes_to_the_heavy_layer_first(
    tune: Tune, both: tuple[Task, ...], table: Any, clock: Any
) -> None:
    heavy = both[6]
    curves = {t: (lambda _: 50e-6) if t.label == heavy.label else (lambda _: 1e-6) for t in both}
    replay = ReplayMeasurer(table(curves), lambda *_: clock.advance(0.25))
    tune(both, replay, time_s=20.0)
    labels = {task.key: task.label for task in both}
    after_the_first_pass = [labels[key] for key, _ in replay.asked[len(both) // 2 :]]
    assert set(after_the_first_pass[:40]) == {heavy.label}


def test_searchers_that_only_fail_are_given_up(
    tune: Tune, both: tuple[Task, ...], table: Any, clock: Any
) -> None:
    curves = {t: (lambda _: None) if t.searcher == "ansor" else (lambda _: 1e-6) for t in both}
    replay = ReplayMeasurer(table(curves), lambda *_: clock.advance(0.25))
    summary = tune(both, replay, time_s=3000.0)
    asked = Counter(key for key, _ in replay.asked)
    assert max(asked[t.key] for t in both if t.searcher == "ansor") <= 16
    assert not summary.out_of_time
    assert summary.failures == {"run_error": summary.by_searcher["ansor"]}


def test_nothing_of_any_layer_succeeded(tune: Tune, both: tuple[Task, ...], table: Any) -> None:
    curves = {task: lambda _: None for task in both}
    with pytest.raises(DeviceError, match=rf"first error: it crashed: {both[0].label[:4]}"):
        tune(both, ReplayMeasurer(table(curves)))


def test_one_layer_is_enough(tune: Tune, both: tuple[Task, ...], table: Any) -> None:
    curves = {t: (lambda _: 1e-6) if t is both[-1] else (lambda _: None) for t in both}
    summary = tune(both, ReplayMeasurer(table(curves)))
    assert summary.trace == []  # no estimate of a model of which a layer does not run


@pytest.mark.parametrize("budget_s", [20.0, 100.0])
@pytest.mark.parametrize("propose_s", [0.5, 6.0])
def test_waiting_for_a_batch_counts_and_keeps_the_budget(
    tune: Tune,
    both: tuple[Task, ...],
    table: Any,
    clock: Any,
    budget_s: float,
    propose_s: float,
    tmp_path: Path,
    ansor_log: Any,
) -> None:
    replay = ReplayMeasurer(
        table({task: lambda n: 1e-6 * (1 + 1 / (n + 1)) for task in both}),
        lambda *_: clock.advance(0.25),
    )
    summary = tune(both, replay, time_s=budget_s, propose=lambda task: clock.advance(propose_s))
    # At the very first batch nobody knows yet how long it takes.
    assert budget_s - propose_s - 0.25 <= summary.spent_s <= 1.1 * budget_s + 0.25
    # A short budget may end before the second searcher has its turn.
    paths = tmp_path / "log.jsonl", ansor_log(tmp_path / "log.jsonl")
    written = [path for path in paths if path.exists()]
    assert written
    for path in written:
        for number, record in enumerate(read_log(path, pytest.fail)):
            took_s = json.loads(record.line)["r" if record.searcher == "ansor" else "result"][2]
            assert took_s in (0.25, 0.25 + propose_s), number


def test_what_a_searcher_takes_to_learn_is_charged_to_its_next_trial(
    tune: Tune, layer: tuple[Task, Task], table: Any, clock: Any, tmp_path: Path, ansor_log: Any
) -> None:
    """A cost model's training belongs to the turns that it serves."""
    replay = ReplayMeasurer(table({layer[1]: lambda _: 1e-6}), lambda *_: clock.advance(0.25))
    tune(layer[1:], replay, trials=4, learn=lambda: clock.advance(2.0))
    took_s = [trial_seconds(r) for r in read_log(ansor_log(tmp_path / "log.jsonl"), pytest.fail)]
    assert took_s == [0.25, 2.25, 2.25, 2.25]


def test_every_new_winner_is_checked(tune: Tune, layer: tuple[Task, Task], table: Any) -> None:
    curves = {layer[0]: lambda _: 5e-6, layer[1]: lambda n: (9 - n % 3) * 1e-6}
    replay = ReplayMeasurer(table(curves))
    tune(layer, replay, trials=12)
    best = {task.key: float("inf") for task in layer}
    costs = table(curves)
    for asked, below_s in zip(replay.asked, replay.best_s, strict=True):
        assert below_s == best[asked[0]]
        best[asked[0]] = min(best[asked[0]], costs[asked].cost_s)
    assert best[layer[1].key] == 7e-6


def test_trace_falls_and_the_summary_is_json(
    tune: Tune, both: tuple[Task, ...], table: Any, clock: Any, recorder: Any
) -> None:
    curves = {task: lambda n: 1e-6 * (1 + 3 / (n + 1)) for task in both}
    replay = ReplayMeasurer(table(curves), lambda *_: clock.advance(0.25))
    summary = tune(both, replay, time_s=120.0, progress=recorder)
    times, costs = zip(*summary.trace, strict=True)
    assert len(times) > 10
    assert list(times) == sorted(times)
    assert times[0] == 0.25 * len(both) / 2  # when each layer has something that runs
    assert all(b < a * 0.999 for a, b in pairwise(costs))
    assert recorder.models_s[0] is None
    assert recorder.models_s[-1] == costs[-1]
    payload = json.loads(json.dumps(dataclasses.asdict(summary)))
    assert payload["by_searcher"]["ansor"] + payload["by_searcher"]["autotvm"] == summary.trials
    assert sum(payload["stopped"].values()) == len(both)


@pytest.fixture
def uneven(both: tuple[Task, ...], table: Any) -> Table:
    """Curves of all shapes; some never run, some find something better late."""
    curves: dict[Task, Callable[[int], float | None]] = {}
    for number, task in enumerate(both):

        def curve(trial: int, number: int = number) -> float | None:
            if number % 7 == 5 or (trial + number) % 9 == 8:
                return None
            return 1e-6 * (1 + number % 5 + 3 / (1 + trial % (5 + number)))

        curves[task] = curve
    return table(curves, 4000)


def run_s(task: Task) -> float:
    """Seconds of a trial, a binary fraction: the same wherever the clock stands."""
    return 0.25 + len(task.label) % 4 / 8


@pytest.mark.parametrize("after", [1, 21, 80, 333])
def test_a_resumed_run_takes_the_very_way_of_an_uninterrupted_one(
    tune: Tune,
    both: tuple[Task, ...],
    uneven: Table,
    clock: Any,
    tmp_path: Path,
    ansor_log: Any,
    after: int,
) -> None:
    def measuring(task: Task, config: Config) -> None:
        clock.advance(run_s(task))

    def interrupted(task: Task, config: Config) -> None:
        if len(first.asked) > after:
            raise KeyboardInterrupt
        measuring(task, config)

    def go(replay: ReplayMeasurer, name: str, **options: Any) -> Summary:
        propose = lambda task: clock.advance(1.5)  # noqa: E731
        return tune(both, replay, trials=40, path=tmp_path / name, propose=propose, **options)

    whole = ReplayMeasurer(uneven, measuring)
    expected = go(whole, "whole.jsonl")
    assert len(whole.asked) > after
    first, second = ReplayMeasurer(uneven, interrupted), ReplayMeasurer(uneven, measuring)
    with pytest.raises(KeyboardInterrupt):
        go(first, "log.jsonl")
    summary = go(second, "log.jsonl")
    assert first.asked[:-1] + second.asked == whole.asked
    assert second.best_s == whole.best_s[after:]
    assert summary.resumed == after
    assert summary.stopped == expected.stopped
    assert summary.trace[-1][1] == expected.trace[-1][1]
    path = tmp_path / "log.jsonl"
    assert len(in_logs(path, ansor_log(path))) == len(whole.asked)


def test_what_one_searcher_left_counts_for_the_other(
    tune: Tune, layer: tuple[Task, Task], table: Any, clock: Any, recorder: Any
) -> None:
    """A log of AutoTVM alone, and then both: it is known from the start how good it was."""
    ours, theirs = layer
    curves = {ours: lambda _: 1.5e-6, theirs: lambda _: 2e-6}
    floor_s = lambda task: 1e-6  # noqa: E731
    tune([ours], ReplayMeasurer(table(curves)), floor_s=floor_s)
    replay = ReplayMeasurer(table(curves), lambda *_: clock.advance(0.25))
    summary = tune(layer, replay, floor_s=floor_s, progress=recorder)
    assert summary.resumed == len(ours.candidates)
    assert asked_of(replay, layer) == {"ansor": summary.trials}
    assert summary.trace == [(0.0, 1.5e-6 * ours.weight)]
    finished = {key: (tried, failed) for key, tried, _, failed in recorder.finished_tasks}
    assert finished[ours.key] == (len(ours.candidates), 0)
    assert recorder.reasons[theirs.key] == "no gain expected"
