"""The tuning run: spend a budget on tasks, keep every finished trial, pick up where it ended.

The run goes in two passes. The first goes round the tasks until each has one configuration
that runs, so that even a short budget leaves each with a record. The second gives each task a
share of the time left by what it costs the whole model; what a task does not use, the next
ones get.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from mobilenet_tvm import toolchain
from mobilenet_tvm.errors import DeviceError
from mobilenet_tvm.records import Record, RecordLog, Task
from mobilenet_tvm.search.measure import Measurer
from mobilenet_tvm.search.progress import Progress
from mobilenet_tvm.search.trial import Failure, Trial

# Rounds of the first pass. A task of which so many trials failed waits for its share of time.
_FIRST_ROUNDS = 4

_TIMEOUTS = (Failure.BUILD_TIMEOUT, Failure.RUN_TIMEOUT)


class Searcher(Protocol):
    """Proposes configurations of one task. See ``AutoTvmSearcher``."""

    @property
    def limit(self) -> int:
        """How many configurations will have been tried at the end."""

    @property
    def tried(self) -> int:
        """How many have been, those of earlier runs included."""

    def next(self) -> int | None:
        """The configuration to try next, or None when there is nothing left to try."""

    def tell(self, trial: Trial) -> None:
        """Learn from a finished trial."""


@dataclass(frozen=True)
class Budget:
    """What a run may spend.

    Attributes:
        trials: at most so many of one task, those of earlier runs included.
        time_s: at most so many seconds of searching in this run; None is no limit.
    """

    trials: int
    time_s: float | None = None


@dataclass
class Summary:
    """What a run did.

    Attributes:
        trials: finished in this run.
        resumed: taken over from earlier runs.
        failures: of this run, by kind.
        first_error: the first failure's message.
        spent_s: wall-clock seconds.
        out_of_time: whether the time budget ended the run.
    """

    trials: int = 0
    resumed: int = 0
    failures: dict[str, int] = field(default_factory=dict)
    first_error: str = ""
    spent_s: float = 0.0
    out_of_time: bool = False


@dataclass
class _State:
    """One task during the run."""

    task: Task
    searcher: Searcher
    best_s: float
    failed: int = 0

    @property
    def best_gflops(self) -> float:
        return 0.0 if self.best_s == float("inf") else self.task.flops / self.best_s / 1e9

    @property
    def cost_s(self) -> float:
        """Seconds of one inference spent in this task; a guess before anything ran."""
        best_s = self.task.flops / 20e9 if self.best_s == float("inf") else self.best_s
        return self.task.weight * best_s


def tune_tasks(
    tasks: Sequence[Task],
    *,
    make_searcher: Callable[[Task, Mapping[int, float]], Searcher],
    measurer: Measurer,
    log: RecordLog,
    budget: Budget,
    progress: Progress,
    summary: Summary | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Summary:
    """Search every task and append every finished trial to the log.

    Args:
        tasks: what to tune.
        make_searcher: a searcher for a task, given the cost of what was tried before.
        measurer: where trials are measured.
        log: open; its records of these tasks are not tried again.
        budget: when to stop.
        progress: told about every trial.
        summary: filled while the run goes on, for callers that outlive an interrupt.
        clock: seconds; a test may turn it.

    Raises:
        DeviceError: nothing has ever succeeded for any task (with the first real error), or
            the log cannot be written. What was measured is in the log.
    """
    summary = Summary() if summary is None else summary
    start = clock()
    states = [_resume(task, log.records, make_searcher, summary) for task in tasks]

    def left_s() -> float:
        return float("inf") if budget.time_s is None else budget.time_s - (clock() - start)

    # The last trial may run over by so much; a shorter one could not finish anything.
    grace_s = 2.0 if budget.time_s is None else min(2.0, 0.05 * budget.time_s)

    def one_trial(state: _State) -> bool:
        config = state.searcher.next()
        if config is None or left_s() <= 0:
            return False
        trial = measurer.measure(state.task, config, left_s() + grace_s)
        if trial.failure in _TIMEOUTS and left_s() <= 0:
            return False  # the budget cut it short: that says nothing about the configuration
        log.append(record_line(state.task, trial))
        state.searcher.tell(trial)
        state.best_s = min(state.best_s, trial.cost_s)
        summary.trials += 1
        if trial.failure is not None:
            state.failed += 1
            kind = trial.failure.value
            summary.failures[kind] = summary.failures.get(kind, 0) + 1
            summary.first_error = summary.first_error or trial.message
        progress.trial(
            state.task, state.searcher.tried, state.searcher.limit, state.best_gflops, trial
        )
        return True

    try:
        progress.started(len(states), budget.time_s)
        for _ in range(_FIRST_ROUNDS):
            for state in states:
                if state.best_s == float("inf") and left_s() > 0:
                    one_trial(state)
        waiting = sorted(states, key=lambda state: -state.cost_s)
        while waiting:
            state, *rest = waiting
            share = state.cost_s / sum(other.cost_s for other in waiting)
            until_s = 0.0 if budget.time_s is None else left_s() * (1.0 - share)
            while left_s() > max(until_s, 0.0) and one_trial(state):
                pass
            waiting = rest
            progress.finished(state.task, state.searcher.tried, state.best_gflops, state.failed)
        summary.out_of_time = left_s() <= 0
    finally:
        summary.spent_s = clock() - start
    if states and all(state.best_s == float("inf") for state in states):
        _raise_nothing_succeeded(summary)
    return summary


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


def _resume(
    task: Task,
    records: Sequence[Record],
    make_searcher: Callable[[Task, Mapping[int, float]], Searcher],
    summary: Summary,
) -> _State:
    done: dict[int, float] = {}
    for record in records:
        if record.key == task.key:
            cost = float("inf") if record.cost_s is None else record.cost_s
            done[record.config] = min(cost, done.get(record.config, float("inf")))
    summary.resumed += len(done)
    failed = sum(cost == float("inf") for cost in done.values())
    return _State(task, make_searcher(task, done), min(done.values(), default=float("inf")), failed)


def record_line(task: Task, trial: Trial) -> str:
    """A trial as TVM's own record line."""
    toolchain.activate()
    from tvm.autotvm.measure import MeasureInput, MeasureResult
    from tvm.autotvm.record import encode

    handle = task.handle
    given = MeasureInput(handle.target, handle, handle.config_space.get(trial.config))
    error = 0 if trial.failure is None else trial.failure.measure_error
    result = MeasureResult(trial.costs_s, error, trial.elapsed_s, time.time())
    return str(encode(given, result, "json"))


def failures_of(records: Sequence[Record]) -> dict[str, int]:
    """Failed trials of a log by kind, for its run file."""
    counts = Counter(Failure.of_measure_error(r.error).value for r in records if r.error)
    return dict(sorted(counts.items()))
