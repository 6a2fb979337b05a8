"""Where the budget goes: pure arithmetic, and whole runs on curves of a known shape."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mobilenet_tvm.records import SearcherName, Task
from mobilenet_tvm.search.allocation import Allocation, Arm, Outlook, make_arms

INFINITE = float("inf")
seconds = st.floats(1e-7, 1e-2)
outlooks = st.builds(
    lambda behind, layer_best_s, **others: Outlook(
        best_s=behind * layer_best_s, layer_best_s=layer_best_s, **others
    ),
    behind=st.floats(1.0, 10.0) | st.just(INFINITE),
    weight=st.integers(1, 10),
    layer_best_s=seconds,
    floor_s=st.just(0.0) | seconds,
    turns=st.floats(0, 1000),
    stale=st.integers(0, 200),
)


def task(
    label: str, searcher: SearcherName = "autotvm", weight: int = 1, flops: float = 1e8
) -> Task:
    return Task(f"{searcher} {label}", label, flops, weight, (), None, None, searcher)


def arm(
    label: str = "a", searcher: SearcherName = "autotvm", *, floor_s: float = 0.0, batch: int = 4
) -> Arm:
    return make_arms([task(label, searcher)], [floor_s], [batch])[0]


class TestGain:
    @given(outlooks)
    def test_it_is_never_more_than_the_way_to_the_roofline(self, outlook: Outlook) -> None:
        most_s = outlook.weight * max(0.0, outlook.layer_best_s - outlook.floor_s)
        assert 0.0 <= outlook.gain_s <= most_s * (1 + 1e-9) + 1e-18

    @given(outlooks, st.integers(1, 20))
    def test_turns_that_bring_nothing_make_it_smaller(self, outlook: Outlook, more: int) -> None:
        later = replace(outlook, turns=outlook.turns + more, stale=outlook.stale + more)
        assert later.gain_s <= outlook.gain_s

    @given(outlooks, st.floats(1.0, 3.0))
    def test_who_is_behind_promises_less(self, outlook: Outlook, factor: float) -> None:
        behind = replace(outlook, best_s=outlook.best_s * factor)
        assert behind.best_s == INFINITE or behind.gain_s <= outlook.gain_s * (1 + 1e-9)

    @given(outlooks)
    def test_weight_multiplies_it(self, outlook: Outlook) -> None:
        twice = replace(outlook, weight=2 * outlook.weight)
        assert twice.gain_s == pytest.approx(2 * outlook.gain_s)

    def test_first_turn_after_a_success_may_reach_the_roofline(self) -> None:
        assert Outlook(3, 5e-6, 5e-6, 2e-6, 1.0, 0).gain_s == pytest.approx(9e-6)
        assert Outlook(3, 5e-6, 5e-6, 2e-6, 4.0, 0).gain_s == pytest.approx(4.5e-6)
        assert Outlook(3, 5e-6, 5e-6, 2e-6, 1.0, 2).gain_s == pytest.approx(9e-6 * 0.49)

    def test_who_never_succeeds_is_given_up(self) -> None:
        gains = [Outlook(1, INFINITE, 5e-6, 2e-6, turns, turns).gain_s for turns in range(6)]
        assert gains[3] > 0.0
        assert gains[4:] == [0.0, 0.0]


class TestArm:
    def test_a_turn_without_a_better_time_is_stale(self) -> None:
        tried = arm()
        for costs in ([INFINITE, 9.0, 5.0, 6.0], [4.99, 7.0, 7.0, 5.0], [4.0, 9.0, 9.0, 9.0]):
            before = tried.stale
            for cost in costs:
                tried.learn(cost, 1.0)
            assert tried.at_end_of_turn
            tried.end_turn()
            # 4.99 is better by less than half a percent.
            assert tried.stale == (before + 1 if costs[0] == 4.99 else 0)
        assert (tried.best_s, tried.tried, tried.failed) == (4.0, 12, 1)
        assert tried.layer.best_s == 4.0

    def test_turns_without_success_are_short(self) -> None:
        tried = arm(batch=64)
        assert tried.next_turn_trials == 4
        for _ in range(4):
            assert not tried.at_end_of_turn
            tried.learn(INFINITE, 1.0)
        assert tried.at_end_of_turn
        tried.end_turn()
        tried.learn(1.0, 1.0)
        assert not tried.at_end_of_turn
        assert tried.next_turn_trials == 59  # up to the searcher's own batch

    def test_seconds_of_a_trial_are_those_of_the_last_turns(self) -> None:
        tried = arm(batch=2)
        assert tried.trial_s is None
        for turn_s in (50.0, 4.0, 2.0):
            tried.learn(1.0, turn_s)  # the one that waited for the batch
            tried.learn(1.0, 0.0)
            tried.end_turn()
        assert tried.trial_s == 1.5
        tried.end_turn()  # no trials, no turn
        assert (tried.trial_s, tried.stale) == (1.5, 2)


class TestAllocation:
    def test_arms_of_one_label_share_a_layer(self) -> None:
        tasks = [
            task("a", weight=3),
            task("b"),
            task("a", "ansor", weight=2),
            replace(task("a", "ansor", weight=1), key="fused otherwise"),
        ]
        arms = make_arms(tasks, [0.0] * 4, [1] * 4)
        allocation = Allocation(arms)
        assert [layer.weight for layer in allocation.layers] == [3, 1]
        assert arms[0].layer is arms[2].layer is arms[3].layer is not arms[1].layer
        assert not allocation.all_run
        arms[2].learn(4e-3, 1.0)
        arms[0].learn(5e-3, 1.0)
        arms[1].learn(1e-3, 1.0)
        assert allocation.all_run
        assert allocation.model_cost_s == pytest.approx(13e-3)

    def test_before_anything_ran_a_layer_costs_a_guess(self) -> None:
        fast, slow = make_arms([task("a"), task("b")], [0.0, 1.0], [1, 1])
        assert fast.layer.cost_s == pytest.approx(5e-3)
        assert slow.layer.cost_s == 2.0  # never less than its roofline
        assert fast.outlook.gain_s > 0.0 < slow.outlook.gain_s

    def test_near_the_roofline_the_whole_layer_stops(self) -> None:
        tasks = [task("a"), task("a", "ansor"), task("b")]
        arms = make_arms(tasks, [1e-3] * 3, [4] * 3)
        arms[0].learn(1.02e-3, 1.0)
        arms[2].learn(1.04e-3, 1.0)
        allocation = Allocation(arms)
        assert allocation.stop_hopeless() == arms[:2]
        assert {a.stopped for a in arms[:2]} == {"near the roofline"}
        assert arms[2].stopped is None
        assert allocation.stop_hopeless() == []

    def test_the_roofline_is_that_of_the_lesser_work(self) -> None:
        """Ansor's task counts its epilogue's operations too."""
        arms = make_arms([task("a"), task("a", "ansor")], [1.0e-3, 1.2e-3], [4, 4])
        assert [each.floor_s for each in arms] == [1.0e-3] * 2
        arms[0].learn(1.22e-3, 1.0)
        assert Allocation(arms).stop_hopeless() == []

    def test_two_tasks_of_one_searcher_are_no_rivals(self) -> None:
        """The model needs both: with an addition behind the convolution, and without."""
        tasks = [task("a", "ansor"), task("a", "ansor", flops=1.1e8), task("a")]
        arms = make_arms(tasks, [1e-3] * 3, [4] * 3)
        arms[0].learn(1.02e-3, 1.0)
        allocation = Allocation(arms)
        assert allocation.stop_hopeless() == [arms[0], arms[2]]
        assert arms[1].layer_best_s == INFINITE
        assert allocation.choose(arms[1:2]).outlook.gain_s > 0
        arms[1].learn(3e-3, 1.0)
        assert (arms[1].layer_best_s, arms[2].layer_best_s) == (3e-3, 1.02e-3)

    def test_what_cannot_pay_stops(self) -> None:
        arms = make_arms([task("heavy"), task("light")], [0.0, 0.0], [4, 4])
        arms[0].learn(1.0, 1.0)
        arms[1].learn(1e-5, 1.0)
        assert Allocation(arms).stop_hopeless() == [arms[1]]
        assert arms[1].stopped == "no gain expected"

    def test_greatest_gain_a_second_is_chosen(self) -> None:
        slow, quick = make_arms([task("a"), task("b")], [0.0, 0.0], [2, 2])
        for tried, trial_s in ((slow, 8.0), (quick, 1.0)):
            for cost in (4e-3, 2e-3):
                tried.learn(cost if tried is quick else 2 * cost, trial_s)
            tried.end_turn()
        assert slow.outlook.gain_s > quick.outlook.gain_s
        assert Allocation([slow, quick]).choose([slow, quick]) is quick

    def test_an_untried_arm_is_timed_like_its_searchers_others(self) -> None:
        tasks = [task("a"), task("b"), task("a", "ansor"), task("b", "ansor")]
        arms = make_arms(tasks, [0.0] * 4, [2] * 4)
        for tried, trial_s in ((arms[0], 1.0), (arms[2], 1000.0)):
            tried.learn(1e-3, trial_s)
            tried.learn(1e-3, trial_s)
            tried.end_turn()
        # Both may win the same; Ansor's other task took a thousand times as long.
        assert Allocation(arms).choose([arms[3], arms[1]]) is arms[1]


@dataclass
class Curve:
    """What a searcher finds of one task: it nears ``optimum_s`` as it learns."""

    optimum_s: float
    spread: float
    learns_in: float
    space: int
    trial_s: float
    batch_s: float
    draw: random.Random

    def trial(self, number: int, batch: int) -> tuple[float, float] | None:
        """Cost and seconds of the trial; None past the end of the space."""
        if number >= self.space:
            return None
        took_s = self.trial_s + (self.batch_s if number % batch == 0 else 0.0)
        if self.draw.random() < 0.1:
            return INFINITE, took_s
        left = self.spread * math.exp(-number / self.learns_in) + 0.02
        return self.optimum_s * (1 + left * self.draw.random()), took_s


@dataclass
class Simulation:
    """A model of twenty layers under both searchers."""

    arms: list[Arm]
    curves: dict[str, Curve]
    now_s: float = 0.0

    @classmethod
    def draw(cls, seed: int, layers: int = 20) -> Simulation:
        draw = random.Random(seed)
        tasks: list[Task] = []
        curves = {}
        for number in range(layers):
            flops, weight = draw.choice([2e6, 4e6, 25e6, 51e6, 103e6]), draw.choice([1, 1, 1, 5])
            for searcher in ("autotvm", "ansor"):
                made = task(f"layer {number}", searcher, weight, flops)
                ours = searcher == "autotvm"
                tasks.append(made)
                curves[made.key] = Curve(
                    optimum_s=flops / 117e9 * draw.uniform(1.1, 1.7),
                    spread=draw.uniform(0.5, 3.0),
                    learns_in=draw.uniform(15, 100) if ours else draw.uniform(40, 300),
                    space=draw.choice([24, 100, 400]) if ours else 10**6,
                    trial_s=draw.uniform(0.15, 0.4) if ours else draw.uniform(0.4, 1.0),
                    batch_s=0.0 if ours else 3.0,
                    draw=random.Random(f"{seed} {made.key}"),
                )
        floors_s = [made.flops / 117e9 for made in tasks]
        batches = [16] * len(tasks)
        return cls(make_arms(tasks, floors_s, batches), curves)

    def trial(self, chosen: Arm) -> bool:
        outcome = self.curves[chosen.task.key].trial(chosen.tried, chosen.batch)
        if outcome is None:
            chosen.stopped = "nothing left to try"
            return False
        chosen.learn(*outcome)
        self.now_s += outcome[1]
        return True

    def first_pass(self) -> None:
        for chosen in self.arms:
            if chosen.task.searcher == "autotvm":
                self.trial(chosen)

    def greedy(self, budget_s: float) -> float:
        self.first_pass()
        allocation = Allocation(self.arms)
        while self.now_s < budget_s:
            allocation.stop_hopeless()
            waiting = [each for each in self.arms if not each.stopped]
            if not waiting:
                break
            chosen = allocation.choose(waiting)
            while self.now_s < budget_s and self.trial(chosen) and not chosen.at_end_of_turn:
                pass
            chosen.end_turn()
        return allocation.model_cost_s

    def evenly(self, budget_s: float) -> float:
        """Each arm gets the same time; what one leaves the next ones get."""
        self.first_pass()
        for number, chosen in enumerate(self.arms):
            share_s = (budget_s - self.now_s) / (len(self.arms) - number)
            end_s = self.now_s + share_s
            # Not even begun where the batch alone would take longer.
            if self.curves[chosen.task.key].batch_s < share_s:
                while self.now_s < end_s and self.trial(chosen):
                    pass
        return Allocation(self.arms).model_cost_s


@pytest.mark.parametrize("budget_s", [300.0, 1800.0])
def test_it_beats_an_even_split_of_the_same_time(budget_s: float) -> None:
    ratios = []
    for seed in range(6):
        greedy, even = Simulation.draw(seed), Simulation.draw(seed)
        ratios.append(greedy.greedy(budget_s) / even.evenly(budget_s))
        assert greedy.now_s <= budget_s + 12.0  # the last trial, which may begin a batch
    assert max(ratios) < 1.03
    assert sum(ratios) / len(ratios) < 0.99


def test_five_minutes_reach_nine_tenths_of_half_an_hour() -> None:
    for seed in range(6):
        half_an_hour = Simulation.draw(seed).greedy(1800.0)
        assert half_an_hour / Simulation.draw(seed).greedy(300.0) > 0.9


def test_choosing_looks_at_each_arm_a_few_times(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many turns there were: nothing beside a trial."""
    arms = Simulation.draw(0).arms
    allocation = Allocation(arms)
    looks = 0

    def outlook(arm: Arm, look: Any = Arm.outlook.fget) -> Any:  # type: ignore[attr-defined]
        nonlocal looks
        looks += 1
        return look(arm)

    monkeypatch.setattr(Arm, "outlook", property(outlook))
    draw = random.Random(0)
    for _ in range(500):
        looks = 0
        allocation.stop_hopeless()
        chosen = allocation.choose(arms)
        assert looks <= 2 * len(arms)
        for _ in range(chosen.next_turn_trials):
            chosen.learn(draw.uniform(0.9, 2.0) * chosen.layer.guess_s, 0.25)
        chosen.end_turn()
