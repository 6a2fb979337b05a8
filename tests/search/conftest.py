"""Real tasks, recorded trials of them, and a clock that the test turns."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

import pytest

from mobilenet_tvm import frontend, targets, zoo
from mobilenet_tvm.records import RecordLog, Task, extract_tasks
from mobilenet_tvm.search import AutoTvmSearcher, Budget, Measurer, Summary, Trial, tune_tasks

Table = dict[tuple[str, int], Trial]


@pytest.fixture(scope="session")
def tiny_tasks() -> tuple[Task, ...]:
    """The tasks of MobileNet V1 0.25-32 with our schedules for AVX-512; they are only looked at."""
    proto = zoo.build("mobilenet_v1", alpha=0.25, resolution=32, classes=10)
    relay = frontend.to_relay(frontend.clean(frontend.from_proto(proto, "tiny")))
    return extract_tasks(relay.module, targets.resolve("x86-avx512"))


@pytest.fixture(scope="session")
def recorded(tiny_tasks: tuple[Task, ...]) -> Mapping[tuple[str, int], Trial]:
    """A trial of every configuration; each task's best one differs."""
    draw = random.Random(0).uniform
    return {
        (task.key, config): Trial(config, (draw(1, 9) * 1e-6,))
        for task in tiny_tasks
        for config in task.candidates
    }


@dataclass
class Clock:
    """Seconds that pass only where the test says so."""

    now_s: float = 1000.0

    def __call__(self) -> float:
        return self.now_s

    def advance(self, seconds: float) -> None:
        self.now_s += seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


@dataclass
class Recorder:
    """Progress that remembers what it was told."""

    trials: list[tuple[str, int, int, float]] = field(default_factory=list)
    finished_tasks: list[tuple[str, int, float, int]] = field(default_factory=list)

    def __enter__(self) -> Recorder:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        return None

    def started(self, tasks: int, budget_s: float | None) -> None:
        self.budget = (tasks, budget_s)

    def trial(self, task: Task, tried: int, limit: int, best_gflops: float, trial: Trial) -> None:
        self.trials.append((task.key, tried, limit, best_gflops))

    def finished(self, task: Task, tried: int, best_gflops: float, failed: int) -> None:
        self.finished_tasks.append((task.key, tried, best_gflops, failed))


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture
def tune(tmp_path: Path, clock: Clock) -> Callable[..., Summary]:
    """``tune(tasks, measurer, trials=..., time_s=..., seed=...)`` on ``tmp_path/log.jsonl``."""

    def run(
        tasks: Sequence[Task],
        measurer: Measurer,
        *,
        trials: int = 10**6,
        time_s: float | None = None,
        seed: int = 0,
        progress: Recorder | None = None,
        summary: Summary | None = None,
        path: Path = tmp_path / "log.jsonl",
    ) -> Summary:
        with RecordLog(path, pytest.fail) as log:
            return tune_tasks(
                tasks,
                make_searcher=lambda task, done: AutoTvmSearcher(
                    task, trials=trials, seed=seed, done=done
                ),
                measurer=measurer,
                log=log,
                budget=Budget(trials, time_s),
                progress=progress or Recorder(),
                summary=summary,
                clock=clock,
            )

    return run
