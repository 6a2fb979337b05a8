"""Where the budget goes: which task, and which of its searchers, is worth the next turn.

An *arm* is one task with its searcher; the arms of one *layer* of the model compete for it, and
the layer costs what the best of them found. A *turn* is about one batch of trials. Each turn
goes to the arm that promises the greatest gain per second, for the whole model:

- What an arm may reach next lies between its best time and its roofline. The share of that way
  that it may still go shrinks with the turns it had, ``1 / sqrt(turns)``, and faster with those
  that brought nothing, ``0.7 ** stale``.
- An arm that found nothing yet is taken to start at its layer's best and to go ``UNPROVEN`` of
  the way at once. To expect the roofline of whatever is untried lets short budgets drown in
  Ansor's first batches, the more so the longer these take.
- Gain counts from the best of the *layer*: an arm that is far behind the other searcher's
  promises nothing, however fast it improves.
- A second of Ansor's, which must evolve its candidates, buys fewer trials than one of
  AutoTVM's: so the gain is divided by what a turn of that arm takes, searching included.

In simulation (tests/search/test_allocation.py) this leaves the model 1.5 % faster than an even
split of the same five minutes does.

TVM's own scheduler (tvm/auto_scheduler/task_scheduler.py, ``gradient``) follows the same idea
for one searcher, with zero as every task's floor and with trials in place of seconds.

Nothing here reads a clock or a file: the same costs and seconds lead to the same choices.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from mobilenet_tvm.records import SearcherName, Task

Reason = Literal["nothing left to try", "near the roofline", "no gain expected", "out of time"]

# A turn that improves by less brought nothing.
IMPROVEMENT = 0.005
# What is left of an arm's promise after a turn that brought nothing.
STALE_DECAY = 0.7
# Nothing is to be had any more below so many times the roofline.
NEAR_ROOFLINE = 1.03
# The share of the way to the roofline that the first turn of an untried arm may go.
UNPROVEN = 0.2
# Gains below so much of the model's whole cost are not worth a turn.
WORTH = 2e-5
# An arm that found nothing yet has short turns, and gives up after so many of them.
TRIALS_WITHOUT_SUCCESS = 4
TURNS_WITHOUT_SUCCESS = 4
# Seconds of a trial, while nothing is known.
PRIOR_TRIAL_S = 0.25
# Throughput that a layer is taken to run at while nothing of it ran.
_GUESS_FLOPS = 20e9


@dataclass(frozen=True)
class Outlook:
    """What is known of an arm when the next turn is given away.

    Attributes:
        weight: calls of the kernel in one inference.
        best_s: seconds of one call, the arm's best; infinite before the first success.
        layer_best_s: the same of all arms of the layer, or a guess.
        floor_s: the roofline: no kernel can be faster.
        turns: how many it had.
        stale: how many of them came after its last improvement.
    """

    weight: int
    best_s: float
    layer_best_s: float
    floor_s: float
    turns: float
    stale: int

    @property
    def gain_s(self) -> float:
        """Seconds of one inference that the next turn may win."""
        best_s = self.best_s
        share = STALE_DECAY**self.stale / math.sqrt(max(self.turns, 1.0))
        if best_s == float("inf"):
            if self.stale >= TURNS_WITHOUT_SUCCESS:
                return 0.0
            best_s, share = self.layer_best_s, UNPROVEN * share
        reached_s = best_s - max(best_s - self.floor_s, 0.0) * share
        return self.weight * max(0.0, self.layer_best_s - reached_s)


@dataclass(eq=False)
class Layer:
    """One layer of the model: the best of all arms that search it.

    Attributes:
        weight: calls in one inference.
        guess_s: seconds of one call, taken while nothing of it ran.
        best_by: seconds of one call, the best of each searcher's arms.
    """

    weight: int
    guess_s: float
    best_by: dict[SearcherName, float] = field(default_factory=dict)

    @property
    def best_s(self) -> float:
        """Seconds of one call, the best of all arms; infinite before the first success."""
        return min(self.best_by.values(), default=float("inf"))

    @property
    def cost_s(self) -> float:
        """Seconds of one inference spent in this layer."""
        return self.weight * (self.guess_s if self.best_s == float("inf") else self.best_s)


@dataclass(eq=False)
class Arm:
    """One task with its searcher, and what its trials brought.

    Attributes:
        task: what is searched.
        layer: the layer that it is one way to compute.
        floor_s: the roofline of one call of the layer.
        batch: trials of a turn.
        best_s: seconds of one call; infinite before the first success.
        tried: trials.
        failed: those of them without a result.
        stopped: why it gets no more turns; None while it may.
    """

    task: Task
    layer: Layer
    floor_s: float
    batch: int
    best_s: float = float("inf")
    tried: int = 0
    failed: int = 0
    stopped: Reason | None = None
    stale: int = 0
    _improved: bool = False
    _improved_to_s: float = float("inf")
    _turn_trials: int = 0
    _turn_s: float = 0.0
    # Trials and seconds of the turns that tell how long the next one takes.
    _last_turns: deque[tuple[int, float]] = field(default_factory=lambda: deque(maxlen=2))

    def learn(self, cost_s: float, seconds: float) -> None:
        """Count one trial: the cost of one call, infinite if it failed, and what it took."""
        self.tried += 1
        self._turn_trials += 1
        self._turn_s += seconds
        if cost_s == float("inf"):
            self.failed += 1
        if cost_s < self._improved_to_s * (1 - IMPROVEMENT):
            self._improved, self._improved_to_s = True, cost_s
        self.best_s = min(self.best_s, cost_s)
        by = self.layer.best_by
        by[self.task.searcher] = min(cost_s, by.get(self.task.searcher, float("inf")))

    def end_turn(self) -> None:
        """The trials since the last call were one turn."""
        if self._turn_trials:
            self.stale = 0 if self._improved else self.stale + 1
            self._last_turns.append((self._turn_trials, self._turn_s))
            self._improved, self._turn_trials, self._turn_s = False, 0, 0.0

    @property
    def layer_best_s(self) -> float:
        """The best of the layer that this arm competes with: its own and the other searcher's.

        A searcher may have two tasks for a layer (a convolution with and without an addition
        behind it). The model needs both: they are no rivals.
        """
        others = [s for name, s in self.layer.best_by.items() if name != self.task.searcher]
        return min([self.best_s, *others])

    @property
    def best_gflops(self) -> float:
        """Throughput of the best, 0 before the first success."""
        return 0.0 if self.best_s == float("inf") else self.task.flops / self.best_s / 1e9

    @property
    def at_end_of_turn(self) -> bool:
        """Whether the trials since the last turn make a whole one."""
        if self.best_s == float("inf") and self._turn_trials >= TRIALS_WITHOUT_SUCCESS:
            return True
        return self._turn_trials > 0 and self.tried % self.batch == 0

    @property
    def left_of_turn(self) -> int:
        """Trials that belong to the turn at hand whatever comes of them, at least 1."""
        left = self.batch - self.tried % self.batch
        if self.best_s == float("inf"):
            left = min(left, max(TRIALS_WITHOUT_SUCCESS - self._turn_trials, 1))
        return left

    @property
    def next_turn_trials(self) -> int:
        """Trials of the next turn: what is left of the searcher's batch."""
        left = self.batch - self.tried % self.batch
        return min(left, TRIALS_WITHOUT_SUCCESS) if self.best_s == float("inf") else left

    @property
    def trial_s(self) -> float | None:
        """Seconds of one trial in the last turns, searching included; None before the first."""
        trials = sum(trials for trials, _ in self._last_turns)
        return sum(seconds for _, seconds in self._last_turns) / trials if trials else None

    @property
    def outlook(self) -> Outlook:
        """What the next turn's worth follows from."""
        known_s = self.layer_best_s
        layer_best_s = self.layer.guess_s if known_s == float("inf") else known_s
        turns = self.tried / self.batch
        return Outlook(self.task.weight, self.best_s, layer_best_s, self.floor_s, turns, self.stale)


class Allocation:
    """The arms of a tuning run, and the choice between them."""

    def __init__(self, arms: Sequence[Arm]) -> None:
        self.arms = arms
        self.layers = list(dict.fromkeys(arm.layer for arm in arms))

    @property
    def model_cost_s(self) -> float:
        """Seconds of one inference, as far as the layers are known: their costs added up."""
        return sum(layer.cost_s for layer in self.layers)

    @property
    def all_run(self) -> bool:
        """Whether each layer has something that runs."""
        return all(layer.best_s < float("inf") for layer in self.layers)

    def stop_hopeless(self) -> list[Arm]:
        """Stop the arms that are not worth another turn; those that this call stopped."""
        worth_s = WORTH * self.model_cost_s
        stopped = []
        for arm in self.arms:
            if arm.stopped:
                continue
            if arm.layer_best_s <= NEAR_ROOFLINE * arm.floor_s:
                arm.stopped = "near the roofline"
            elif arm.outlook.gain_s < worth_s:
                arm.stopped = "no gain expected"
            else:
                continue
            stopped.append(arm)
        return stopped

    def choose(self, arms: Iterable[Arm]) -> Arm:
        """Of these arms (at least one) the one whose next turn gains most per second."""
        usual_s = self._usual_trial_s()

        def rate(arm: Arm) -> float:
            trial_s = arm.trial_s
            if trial_s is None:
                trial_s = usual_s.get(arm.task.searcher, PRIOR_TRIAL_S)
            return arm.outlook.gain_s / max(trial_s * arm.next_turn_trials, 1e-9)

        return max(arms, key=rate)

    def _usual_trial_s(self) -> dict[SearcherName, float]:
        """Seconds of a trial by searcher: the mean over the arms that had a turn."""
        known: dict[SearcherName, list[float]] = {}
        for arm in self.arms:
            if (trial_s := arm.trial_s) is not None:
                known.setdefault(arm.task.searcher, []).append(trial_s)
        return {searcher: sum(values) / len(values) for searcher, values in known.items()}


def make_arms(
    tasks: Sequence[Task], floors_s: Sequence[float], batches: Sequence[int]
) -> list[Arm]:
    """An arm for each task. Tasks with the same label are the same layer.

    Args:
        tasks: AutoTVM's and Ansor's.
        floors_s: the roofline of each task.
        batches: trials of a turn of each task.
    """
    same: dict[str, list[tuple[Task, float]]] = {}
    for task, floor_s in zip(tasks, floors_s, strict=True):
        same.setdefault(task.label, []).append((task, floor_s))
    layers = {}
    # Ansor's kernels do the layer's epilogue too, AutoTVM's tasks leave it out: the floor is
    # that of the lesser work, or Ansor would be stopped where it may still win.
    least_s = {label: min(floor_s for _, floor_s in members) for label, members in same.items()}
    for label, members in same.items():
        # A searcher may have cut the layer into kernels of its own, each with some of the calls.
        calls: dict[SearcherName, int] = {}
        for task, _ in members:
            calls[task.searcher] = calls.get(task.searcher, 0) + task.weight
        guess_s = max(max(task.flops / _GUESS_FLOPS, 2 * floor_s) for task, floor_s in members)
        layers[label] = Layer(max(calls.values()), guess_s)
    return [
        Arm(task, layers[task.label], least_s[task.label], batch)
        for task, batch in zip(tasks, batches, strict=True)
    ]
