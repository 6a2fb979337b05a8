"""The tasks of the smallest real MobileNet, and record lines of them."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from mobilenet_tvm import frontend, targets, zoo
from mobilenet_tvm.frontend import RelayModel
from mobilenet_tvm.records import Task, extract_tasks
from mobilenet_tvm.search import AutoTvmSearcher, Trial


@pytest.fixture(scope="session")
def tiny_relay() -> RelayModel:
    """MobileNet V1 0.25-32 with 10 classes, imported."""
    proto = zoo.build("mobilenet_v1", alpha=0.25, resolution=32, classes=10)
    return frontend.to_relay(frontend.clean(frontend.from_proto(proto, "tiny")))


@pytest.fixture(scope="session")
def tiny_tasks(tiny_relay: RelayModel) -> tuple[Task, ...]:
    """Its tasks with our schedules for AVX-512; they are only looked at."""
    return extract_tasks(tiny_relay.module, targets.resolve("x86-avx512"))


@pytest.fixture
def line(tiny_tasks: tuple[Task, ...]) -> Callable[..., str]:
    """``line(task_index, candidate_index, *costs_s)``: a record line; no costs, a failure."""

    def make(task: int = 0, candidate: int = 0, *costs_s: float, failure: object = None) -> str:
        chosen = tiny_tasks[task]
        trial = Trial(chosen.candidates[candidate], costs_s, failure)  # type: ignore[arg-type]
        return AutoTvmSearcher(chosen, trials=1, seed=0).record_line(trial)

    return make
