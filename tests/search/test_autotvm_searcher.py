"""Which configuration is tried next, on real spaces with costs of a known shape."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from statistics import mean

import numpy as np
import pytest

import mobilenet_tvm.schedules
from mobilenet_tvm import frontend, targets, zoo
from mobilenet_tvm.records import Task, extract_tasks
from mobilenet_tvm.search import AutoTvmSearcher, Failure, Trial

Cost = Callable[[int], float]


@pytest.fixture(scope="module")
def large() -> Iterator[Task]:
    """A stock depthwise task: hundreds of configurations."""
    proto = zoo.build("mobilenet_v1", alpha=0.25, resolution=32, classes=10)
    relay = frontend.to_relay(frontend.clean(frontend.from_proto(proto, "tiny")))
    tasks = extract_tasks(relay.module, targets.resolve("x86-avx512"), schedules="stock")
    yield max(tasks, key=lambda task: len(task.candidates))
    mobilenet_tvm.schedules.use("ours")


@pytest.fixture(scope="module")
def bowl(large: Task) -> Cost:
    """Costs that grow with the distance of the knobs from those of one configuration."""
    space = large.handle.config_space
    features = {c: np.asarray(space.get(c).get_flatten_feature(), float) for c in large.candidates}
    scale = np.maximum(np.ptp(list(features.values()), axis=0), 1)
    best = features[large.candidates[len(large.candidates) // 3]]
    return lambda config: 1e-6 * (1 + float(np.abs((features[config] - best) / scale).sum()))


def search(
    task: Task, cost: Cost, *, trials: int, seed: int = 0, done: Mapping[int, float] | None = None
) -> list[int]:
    """Everything that a searcher proposes, told the costs as it goes."""
    searcher = AutoTvmSearcher(task, trials=trials, seed=seed, done=done)
    asked = []
    while (config := searcher.next()) is not None:
        asked.append(config)
        searcher.tell(Trial(config, (cost(config),)))
        assert searcher.tried == len(asked) + len(done or {})
    assert searcher.limit == min(trials, len(task.candidates))
    return asked


def test_small_space_is_tried_whole_and_each_once(tiny_tasks: tuple[Task, ...]) -> None:
    for task in tiny_tasks:
        asked = search(task, float, trials=len(task.candidates))
        assert sorted(asked) == sorted(task.candidates)
        assert asked == search(task, float, trials=10**6)


def test_order_follows_from_the_seed(tiny_tasks: tuple[Task, ...]) -> None:
    task = tiny_tasks[2]
    first = search(task, float, trials=100, seed=1)
    assert first == search(task, float, trials=100, seed=1)
    assert first != search(task, float, trials=100, seed=2)
    assert first != sorted(first)


def test_default_comes_first(tiny_tasks: tuple[Task, ...]) -> None:
    for seed in range(3):
        for task in tiny_tasks:
            assert AutoTvmSearcher(task, trials=3, seed=seed).next() == task.default


@pytest.mark.parametrize("trials", [1, 16, 17, 40])
def test_large_space_gives_as_many_as_asked_for(large: Task, bowl: Cost, trials: int) -> None:
    asked = search(large, bowl, trials=trials)
    assert len(asked) == len(set(asked)) == trials
    assert set(asked) <= set(large.candidates)


def test_learning_is_the_same_for_the_same_seed(large: Task, bowl: Cost) -> None:
    random.seed(1)
    first = search(large, bowl, trials=40, seed=5)
    random.seed(2)  # what others draw in between has no say
    np.random.seed(2)  # noqa: NPY002
    assert search(large, bowl, trials=40, seed=5) == first
    assert search(large, bowl, trials=40, seed=6) != first


def test_learning_beats_a_random_order(large: Task, bowl: Cost) -> None:
    seeds, trials = range(4), 48
    learnt = [min(map(bowl, search(large, bowl, trials=trials, seed=seed))) for seed in seeds]
    drawn = [
        min(map(bowl, random.Random(seed).sample(large.candidates, trials))) for seed in range(200)
    ]
    ranks = sorted(map(bowl, large.candidates))
    assert mean(learnt) < mean(drawn)
    assert max(learnt) <= ranks[len(ranks) // 50]  # always among the best 2 %


def test_what_a_resumed_run_is_told_to_begin_with_comes_first(large: Task, bowl: Cost) -> None:
    done = {config: bowl(config) for config in search(large, bowl, trials=16)}
    first = [config for config in large.candidates if config not in done][-2:]
    searcher = AutoTvmSearcher(large, trials=40, seed=0, done=done, first=first)
    assert [searcher.next(), searcher.next()] == first


@pytest.mark.parametrize("after", [1, 5, 16, 21, 32, 39])
def test_resumed_search_goes_on_where_it_was(large: Task, bowl: Cost, after: int) -> None:
    whole = search(large, bowl, trials=40, seed=7)
    done = {config: bowl(config) for config in whole[:after]}
    assert search(large, bowl, trials=40, seed=7, done=done) == whole[after:]


def test_more_trials_go_on_behind_the_earlier_ones(large: Task, bowl: Cost) -> None:
    earlier = search(large, bowl, trials=20, seed=7)
    done = {config: bowl(config) for config in earlier}
    later = search(large, bowl, trials=40, seed=8, done=done)
    assert len(later) == 20
    assert not set(earlier) & set(later)


def test_configurations_that_are_no_candidates_do_not_count(tiny_tasks: tuple[Task, ...]) -> None:
    task = tiny_tasks[0]
    outside = [c for c in range(10**4) if c not in task.candidates][:50]
    done = dict.fromkeys([*outside, 10**9, task.candidates[0]], 1e-6)
    searcher = AutoTvmSearcher(task, trials=4, seed=0, done=done)
    assert searcher.tried == 1
    assert searcher.next() is not None


def test_search_goes_on_when_everything_fails(large: Task) -> None:
    searcher = AutoTvmSearcher(large, trials=36, seed=0)
    asked = set()
    while (config := searcher.next()) is not None:
        asked.add(config)
        searcher.tell(Trial(config, (), Failure.BUILD_ERROR, "no"))
    assert len(asked) == searcher.tried == 36


def test_failed_trials_teach_too(large: Task, bowl: Cost) -> None:
    limit = sorted(map(bowl, large.candidates))[len(large.candidates) // 2]
    searcher = AutoTvmSearcher(large, trials=48, seed=0)
    asked = []
    while (config := searcher.next()) is not None:
        asked.append(bowl(config))
        failed = asked[-1] > limit
        outcome = (config, (), Failure.RUN_ERROR) if failed else (config, (asked[-1],))
        searcher.tell(Trial(*outcome))
    random_part, learnt_part = asked[:16], asked[16:]
    assert sum(cost > limit for cost in learnt_part) / 32 < sum(c > limit for c in random_part) / 16
