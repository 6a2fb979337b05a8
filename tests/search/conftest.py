"""Real tasks, recorded trials of them, and a clock that the test turns."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace, TracebackType

import pytest

from mobilenet_tvm import frontend, targets, zoo
from mobilenet_tvm.records import Config, RecordLog, Task, extract_tasks
from mobilenet_tvm.records.ansor_tasks import extract_ansor_tasks
from mobilenet_tvm.search import (
    AutoTvmSearcher,
    Budget,
    Measurer,
    Searcher,
    Summary,
    Trial,
    tune_tasks,
)
from mobilenet_tvm.search.allocation import Reason

TARGET = "llvm -keys=cpu"  # of Ansor's stand-in
Table = dict[tuple[str, int], Trial]


@pytest.fixture(scope="session")
def tiny_tasks() -> tuple[Task, ...]:
    """The tasks of MobileNet V1 0.25-32 with our schedules for AVX-512; they are only looked at."""
    proto = zoo.build("mobilenet_v1", alpha=0.25, resolution=32, classes=10)
    relay = frontend.to_relay(frontend.clean(frontend.from_proto(proto, "tiny")))
    return extract_tasks(relay.module, targets.resolve("x86-avx512"))


@pytest.fixture(scope="session")
def tiny_ansor() -> Mapping[str, Task]:
    """Ansor's tasks of the same model for this machine, by label."""
    proto = zoo.build("mobilenet_v1", alpha=0.25, resolution=32, classes=10)
    relay = frontend.to_relay(frontend.clean(frontend.from_proto(proto, "tiny")))
    return {task.label: task for task in extract_ansor_tasks(relay.module, targets.resolve("x86"))}


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
    models_s: list[float | None] = field(default_factory=list)
    finished_tasks: list[tuple[str, int, float, int]] = field(default_factory=list)
    reasons: dict[str, Reason] = field(default_factory=dict)

    def __enter__(self) -> Recorder:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        return None

    def started(self, tasks: int, trials: int, budget_s: float | None) -> None:
        self.budget = (tasks, trials, budget_s)
        self.reasons.clear()

    def trial(
        self,
        task: Task,
        tried: int,
        limit: int,
        best_gflops: float,
        trial: Trial,
        model_s: float | None,
    ) -> None:
        self.trials.append((task.key, tried, limit, best_gflops))
        self.models_s.append(model_s)

    def finished(
        self, task: Task, tried: int, best_gflops: float, failed: int, reason: Reason
    ) -> None:
        assert task.key not in self.reasons, "told twice"
        self.finished_tasks.append((task.key, tried, best_gflops, failed))
        self.reasons[task.key] = reason


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


class SteppingSearcher:
    """Ansor's stand-in: proposes ``steps`` one after the other, and writes Ansor's lines.

    ``propose`` is called before each new batch and ``learn`` after each trial, for a test to let
    time pass in them.
    """

    batch = 8

    def __init__(
        self,
        task: Task,
        trials: int,
        done: Mapping[Config, float],
        propose: Callable[[Task], None] = lambda task: None,
        learn: Callable[[], None] = lambda: None,
    ) -> None:
        self._task, self._done = task, dict(done)
        self._propose, self._learn = propose, learn
        self.limit = trials

    @property
    def tried(self) -> int:
        return len(self._done)

    def next(self) -> Config | None:
        if self.tried >= self.limit:
            return None
        if self.tried % self.batch == 0:
            self._propose(self._task)
        return _steps(self.tried)

    def tell(self, trial: Trial) -> None:
        self._done[trial.config] = trial.cost_s
        self._learn()

    def record_line(self, trial: Trial) -> str:
        hardware = [1, 64, 64, 0, 0, 0, 0, 0]
        given = [self._task.key, TARGET, hardware, "", 0, []]
        error = 0 if trial.failure is None else trial.failure.measure_error
        result = [list(trial.costs_s), error, trial.elapsed_s, 1_700_000_000]
        assert isinstance(trial.config, str)
        state = [[], json.loads(trial.config)]
        return json.dumps({"i": [given, state], "r": result, "v": "v0.6"})


def _steps(number: int) -> str:
    """The number-th configuration of a ``SteppingSearcher``."""
    return f'[["SP",0,0,{number + 1},[1],1]]'


def _ansor_task(label: str, *, weight: int = 1, flops: float = 1e5) -> Task:
    """Ansor's task for the layer of this label."""
    key = json.dumps(["0123456789abcdef", label])
    return Task(key, label, flops, weight, (), None, SimpleNamespace(target=TARGET), "ansor")


@pytest.fixture
def steps() -> Callable[[int], str]:
    """``steps(n)``: the n-th configuration that Ansor's stand-in proposes."""
    return _steps


@pytest.fixture
def ansor_task() -> Callable[..., Task]:
    """``ansor_task(label, weight=..., flops=...)``."""
    return _ansor_task


@pytest.fixture
def ansor_log() -> Callable[[Path], Path]:
    """``ansor_log(path)``: where ``tune(..., path=path)`` keeps Ansor's trials."""
    return _ansor_log


@pytest.fixture
def both(tiny_tasks: tuple[Task, ...]) -> tuple[Task, ...]:
    """Each layer of the tiny model twice: AutoTVM's task and Ansor's."""
    ansor = (_ansor_task(t.label, weight=t.weight, flops=t.flops) for t in tiny_tasks)
    return (*tiny_tasks, *ansor)


def _ansor_log(path: Path) -> Path:
    """``log.jsonl`` -> ``log.ansor.jsonl``."""
    return path.with_suffix(".ansor.jsonl")


@pytest.fixture
def tune(tmp_path: Path, clock: Clock) -> Callable[..., Summary]:
    """``tune(tasks, measurer, trials=..., time_s=..., seed=...)`` on ``tmp_path/log.jsonl``.

    Ansor's trials go to ``log.ansor.jsonl``.
    """

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
        floor_s: Callable[[Task], float] = lambda task: 0.0,
        propose: Callable[[Task], None] = lambda task: None,
        learn: Callable[[], None] = lambda: None,
    ) -> Summary:
        def make_searcher(task: Task, done: Mapping[Config, float]) -> Searcher:
            if task.searcher == "ansor":
                return SteppingSearcher(task, min(trials, 4000), done, propose, learn)
            return AutoTvmSearcher(task, trials=trials, seed=seed, done=done)

        with RecordLog(path, pytest.fail) as log, RecordLog(_ansor_log(path), pytest.fail) as other:
            return tune_tasks(
                tasks,
                make_searcher=make_searcher,
                measurer=measurer,
                logs={"autotvm": log, "ansor": other},
                budget=Budget(time_s),
                progress=progress or Recorder(),
                floor_s=floor_s,
                summary=summary,
                clock=clock,
            )

    return run
