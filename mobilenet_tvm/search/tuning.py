"""The tuning run: spend a budget on tasks, keep every finished trial, pick up where it ended.

The run goes in two passes. The first goes round the tasks until each layer has one configuration
that runs, so that even a short budget leaves each with a record. In the second the budget goes
where it pays, a turn at a time (``search.allocation``), until no turn is worth its time.

The logs are the state. A resumed run takes the same decisions once more, fed with the finished
trials in place of new ones, so it arrives where the first was cut and goes on as if it had not
been. That is why a line's ``all_cost`` holds all that the trial took, searching included: the
seconds of a turn decide too. What does not fit (other tasks, another searcher beside the first)
is taken into account before the first new trial.

Where a measurer takes several trials at once (``FleetMeasurer``) they are measured in groups. A
group is never more than what one device would have been given next whatever came of it: trials of
one batch and one turn, or in the first pass of different layers. Its trials are written and
learnt from in the order in which they were proposed, so the log is that of one device, and a run
is resumed with more boards or fewer and takes the same decisions. A trial's seconds are those
since the line before it: those of all lines together are what the run took.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from mobilenet_tvm.errors import DeviceError
from mobilenet_tvm.records import Config, Record, RecordLog, SearcherName, Task
from mobilenet_tvm.records.lines import trial_seconds
from mobilenet_tvm.records.serving import current
from mobilenet_tvm.search.allocation import Allocation, Arm, make_arms
from mobilenet_tvm.search.interface import Budget, MakeSearcher, Searcher, Summary
from mobilenet_tvm.search.measure import FleetMeasurer, Measurer, Request
from mobilenet_tvm.search.progress import Progress
from mobilenet_tvm.search.trial import Failure, Trial

# Rounds of the first pass. A layer of which so many trials failed waits for its turn.
_FIRST_ROUNDS = 4
# How much the model's estimate must improve to be noted.
_NOTED = 0.001

_TIMEOUTS = (Failure.BUILD_TIMEOUT, Failure.RUN_TIMEOUT)


def tune_tasks(
    tasks: Sequence[Task],
    *,
    make_searcher: MakeSearcher,
    measurer: Measurer,
    logs: Mapping[SearcherName, RecordLog],
    budget: Budget,
    progress: Progress,
    floor_s: Callable[[Task], float] = lambda task: 0.0,
    summary: Summary | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Summary:
    """Search the tasks and append every finished trial to the log of its searcher.

    Args:
        tasks: what to tune; those with the same label are the same layer of the model, searched
            by more than one searcher.
        make_searcher: a searcher for a task, given the cost of what was tried before.
        measurer: where trials are measured.
        logs: open; their records of these tasks are not tried again, but for those of another
            version of a template.
        budget: when to stop.
        progress: told about every trial.
        floor_s: the task's roofline, seconds of one call that no kernel can beat.
        summary: filled while the run goes on, for callers that outlive an interrupt.
        clock: seconds; a test may turn it.

    Raises:
        DeviceError: nothing has ever succeeded for any task (with the first real error), or
            a log cannot be written. What was measured is in the logs.
    """
    summary = Summary() if summary is None else summary
    start_s = clock()
    # An older template's index stands for another configuration by now, or for none.
    known = {name: current(tasks, log.records) for name, log in logs.items()}
    remembered = [_remember(task, known[task.searcher]) for task in tasks]
    searchers = [
        make_searcher(task, {config: cost for config, (cost, _) in done.items()})
        for task, done in zip(tasks, remembered, strict=True)
    ]
    arms = make_arms(tasks, [floor_s(task) for task in tasks], [s.batch for s in searchers])
    run = _Run(
        [
            _Search(arm, searcher, deque(done.values()))
            for arm, searcher, done in zip(arms, searchers, remembered, strict=True)
        ],
        measurer,
        logs,
        budget,
        progress,
        summary,
        clock,
        start_s,
    )
    try:
        run.go()
    finally:
        summary.spent_s = clock() - start_s
    if arms and all(arm.best_s == float("inf") for arm in arms):
        _raise_nothing_succeeded(summary)
    return summary


@dataclass(eq=False)
class _Search:
    """An arm, who searches it, and what earlier runs found: ``(cost_s, seconds)`` a trial.

    ``learning_s`` is what the searcher took to learn from its last trial. The next one is
    charged with it, for a trial's line is written before anybody learns from it.
    """

    arm: Arm
    searcher: Searcher
    remembered: deque[tuple[float, float]]
    learning_s: float = 0.0


_Group = list[tuple[Arm, Config]]


class _Run:
    """One tuning run."""

    def __init__(
        self,
        searches: Sequence[_Search],
        measurer: Measurer,
        logs: Mapping[SearcherName, RecordLog],
        budget: Budget,
        progress: Progress,
        summary: Summary,
        clock: Callable[[], float],
        start_s: float,
    ) -> None:
        self._searches = {search.arm: search for search in searches}
        self._allocation = Allocation([search.arm for search in searches])
        self._measurer = measurer
        self._logs = logs
        self._progress = progress
        self._summary = summary
        self._clock = clock
        self._start_s = start_s
        self._time_s = float("inf") if budget.time_s is None else budget.time_s
        # The last trial may run over by so much; a shorter one could not finish anything.
        self._grace_s = min(2.0, 0.05 * self._time_s)
        # Longest wait for a configuration: in this turn, and in the last turns of each searcher.
        self._proposed_s = 0.0
        self._propose_s: dict[SearcherName, float] = {}
        self._untold = list(self._searches)
        summary.resumed += sum(len(search.remembered) for search in searches)
        summary.by_searcher |= {search.arm.task.searcher: 0 for search in searches}
        left = sum(search.searcher.limit - search.searcher.tried for search in searches)
        progress.started(len(searches), left, budget.time_s)

    def go(self) -> None:
        """Search until nothing is worth it or the budget is used up."""
        self._first_pass()
        while True:
            self._allocation.stop_hopeless()
            self._tell_stopped()
            waiting = [arm for arm in self._searches if not arm.stopped]
            in_time = [arm for arm in waiting if self._in_time(arm)]
            if not in_time:
                break
            self._turn(self._allocation.choose(in_time))
        self._recall()
        for arm in waiting:
            arm.stopped = "out of time"
        self._summary.out_of_time = bool(waiting)
        self._tell_stopped()

    def _left_s(self) -> float:
        return self._time_s - (self._clock() - self._start_s)

    def _in_time(self, arm: Arm) -> bool:
        """Whether there is time for a turn: Ansor may need seconds to propose a batch."""
        return self._left_s() > self._propose_s.get(arm.task.searcher, 0.0)

    def _first_pass(self) -> None:
        """Go round until each layer has something that runs, the cheaper searcher first."""
        arms = sorted(self._searches, key=lambda arm: arm.task.searcher != "autotvm")
        for _ in range(_FIRST_ROUNDS):
            group: list[Arm] = []
            for arm in arms:
                # What the others of a layer bring decides whether this one is needed.
                if any(other.layer is arm.layer for other in group):
                    self._first_trials(group)
                new = arm.tried == 0 and arm.task.searcher == "autotvm"
                if (new or arm.layer_best_s == float("inf")) and not arm.stopped:
                    group.append(arm)
                if len(group) >= self._width():
                    self._first_trials(group)
            self._first_trials(group)

    def _first_trials(self, arms: list[Arm]) -> None:
        """One trial of each of these arms, which are none afterwards."""
        begun_s, group = self._clock(), []
        for arm in arms:
            if not self._recalled(arm):
                group += self._propose(arm, 1)
        self._measure(group, begun_s)
        for arm in arms:
            if arm.at_end_of_turn:
                arm.end_turn()
        arms.clear()

    def _turn(self, arm: Arm) -> None:
        self._proposed_s = 0.0
        while self._trials(arm) and not arm.at_end_of_turn:
            pass
        arm.end_turn()
        # A turn that proposed nothing does not tell that the next one will not.
        fading_s = self._propose_s.get(arm.task.searcher, 0.0) / 2
        self._propose_s[arm.task.searcher] = max(self._proposed_s, fading_s)

    def _trials(self, arm: Arm) -> bool:
        """Some trials of a turn; False when there is none left, or no time for them."""
        if self._recalled(arm):
            return True
        begun_s = self._clock()
        group = self._propose(arm, min(self._width(), arm.left_of_turn))
        return bool(group) and self._measure(group, begun_s)

    def _width(self) -> int:
        """How many trials are measured at once."""
        return self._measurer.width() if isinstance(self._measurer, FleetMeasurer) else 1

    def _recalled(self, arm: Arm) -> bool:
        """Take one trial of an earlier run in place of a new one, if there is one left."""
        remembered = self._searches[arm].remembered
        if remembered:
            arm.learn(*remembered.popleft())
            return True
        return False

    def _propose(self, arm: Arm, count: int) -> _Group:
        """At most so many configurations of an arm; none where there is no time for them."""
        found: _Group = []
        while len(found) < count and self._left_s() > 0:
            begun_s = self._clock()
            config = self._searches[arm].searcher.next()
            if config is None:
                if not found:
                    arm.stopped = "nothing left to try"
                break
            self._proposed_s = max(self._proposed_s, self._clock() - begun_s)
            found.append((arm, config))
        return found if self._left_s() > 0 else []

    def _measure(self, group: _Group, begun_s: float) -> bool:
        """Measure a group that has been proposed since ``begun_s``, and write it down.

        False when there was no time for all of it.
        """
        if not group:
            return False
        self._recall()
        whole = True
        for arm, trial in self._outcomes(group, self._left_s() + self._grace_s):
            if trial.failure in _TIMEOUTS and self._left_s() <= 0:
                whole = False  # the budget cut it short: says nothing about the configuration
                continue
            search = self._searches[arm]
            seconds = self._clock() - begun_s + search.learning_s
            line = search.searcher.record_line(replace(trial, elapsed_s=seconds))
            self._logs[arm.task.searcher].append(line)
            told_s = self._clock()
            search.searcher.tell(trial)
            begun_s = self._clock()
            search.learning_s = begun_s - told_s
            arm.learn(trial.cost_s, seconds)
            self._count(arm, trial)
        return whole

    def _outcomes(self, group: _Group, deadline_s: float) -> Iterator[tuple[Arm, Trial]]:
        """The trials of a group, in its order."""
        if isinstance(self._measurer, FleetMeasurer):
            requests = [Request(arm.task, config, arm.best_s) for arm, config in group]
            for index, trial in self._measurer.measure_all(requests, deadline_s):
                yield group[index][0], trial
        else:
            for arm, config in group:
                yield arm, self._measurer.measure(arm.task, config, deadline_s, arm.best_s)

    def _count(self, arm: Arm, trial: Trial) -> None:
        """Keep the summary and tell the progress."""
        summary, searcher = self._summary, self._searches[arm].searcher
        summary.trials += 1
        summary.by_searcher[arm.task.searcher] += 1
        if trial.failure is not None:
            kind = trial.failure.value
            summary.failures[kind] = summary.failures.get(kind, 0) + 1
            summary.first_error = summary.first_error or trial.message
        self._note_model()
        model_s = summary.trace[-1][1] if summary.trace else None
        self._progress.trial(
            arm.task, searcher.tried, searcher.limit, arm.best_gflops, trial, model_s
        )

    def _recall(self) -> None:
        """Take into account all that earlier runs found, where it did not fit this run's way."""
        for arm, search in self._searches.items():
            while search.remembered:
                arm.learn(*search.remembered.popleft())
                if arm.at_end_of_turn:
                    arm.end_turn()
        self._note_model()

    def _note_model(self) -> None:
        """Add to the trace when the model's estimate improved."""
        if not self._allocation.all_run:
            return
        trace, cost_s = self._summary.trace, self._allocation.model_cost_s
        if not trace or cost_s < trace[-1][1] * (1 - _NOTED):
            trace.append((self._clock() - self._start_s, cost_s))

    def _tell_stopped(self) -> None:
        """Tell which arms stopped; not before all that is known of them is counted."""
        stopped = self._summary.stopped
        for arm in list(self._untold):
            search, reason = self._searches[arm], arm.stopped
            if reason is None or search.remembered:
                continue
            self._untold.remove(arm)
            stopped[reason] = stopped.get(reason, 0) + 1
            self._progress.finished(
                arm.task, search.searcher.tried, arm.best_gflops, arm.failed, reason
            )


def _remember(task: Task, records: Sequence[Record]) -> dict[Config, tuple[float, float]]:
    """Cost of one call and seconds of the trial of each finished configuration, oldest first."""
    done: dict[Config, tuple[float, float]] = {}
    for record in records:
        if (record.searcher, record.key, record.target) == (task.searcher, task.key, task.target):
            cost_s = float("inf") if record.cost_s is None else record.cost_s
            known_s, seconds = done.get(record.config, (float("inf"), trial_seconds(record)))
            done[record.config] = min(cost_s, known_s), seconds
    return done


def _raise_nothing_succeeded(summary: Summary) -> None:
    if summary.trials:
        kinds = ", ".join(f"{count} {kind}" for kind, count in summary.failures.items())
        raise DeviceError(
            f"not one of {summary.trials} trials succeeded ({kinds}); the first error: "
            f"{summary.first_error}"
        )
    if summary.resumed:
        raise DeviceError(
            f"not one of the {summary.resumed} trials in the log succeeded, and there is nothing "
            "left to try: use --fresh to try again, or a larger --trials"
        )
    raise DeviceError("no trial finished within the time budget: give a longer --time-budget")
