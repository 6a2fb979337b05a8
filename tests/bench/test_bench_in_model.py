"""Builds of one model, timed kernel by kernel: which is the slower one, and what says nothing."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mobilenet_tvm import frontend, zoo
from mobilenet_tvm.bench import in_model
from mobilenet_tvm.bench.in_model import time_in_model
from mobilenet_tvm.build.compile import compile_model
from mobilenet_tvm.build.manifest import ModelInfo
from mobilenet_tvm.errors import DeviceError
from mobilenet_tvm.frontend import RelayModel
from mobilenet_tvm.records import Record, Task, extract_tasks, parse_line
from mobilenet_tvm.search import AutoTvmSearcher, Trial
from mobilenet_tvm.targets import resolve


@dataclass(frozen=True, eq=False)  # hashable by identity
class Net:
    """A model, its tasks, and builds of it."""

    relay: RelayModel
    tasks: tuple[Task, ...]
    folder: Path

    @functools.cache  # noqa: B019  (a line has the time of day in it)
    def lines(self, candidate: int) -> dict[str, Record]:
        """A record of each task: its candidate of that number, or the last one it has."""
        found = {}
        for task in self.tasks:
            config = task.candidates[min(candidate, len(task.candidates) - 1)]
            line = AutoTvmSearcher(task, trials=1, seed=0).record_line(Trial(config, (1.0,)))
            found[task.key] = parse_line(line)
        return found

    def build(self, name: str, candidate: int, **options: Any) -> Path:
        path = self.folder / name / "net.so"
        compile_model(
            options.pop("relay", self.relay),
            resolve("x86"),
            path,
            info=ModelInfo("net", "sha256:0"),
            tasks=self.tasks,
            best=self.lines(candidate),
            **options,
        )
        return path


def imported(seed: int = 0) -> RelayModel:
    proto = zoo.build("mobilenet_v1", alpha=0.25, resolution=32, classes=10, seed=seed)
    return frontend.to_relay(frontend.clean(frontend.from_proto(proto, "v1")))


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> Net:
    relay = imported()
    tasks = extract_tasks(relay.module, resolve("x86"))
    return Net(relay, tasks, tmp_path_factory.mktemp("builds"))


@pytest.fixture(scope="module")
def first(net: Net) -> Path:
    return net.build("first", 0)


def test_each_line_has_the_time_of_the_kernels_that_it_schedules(
    net: Net, first: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(in_model, "_ROUND_MS", 5.0)
    paths = [first, net.build("second", 1)]
    # The same schedules, but other weights: what they compute is wrong.
    paths.append(net.build("wrong", 2, relay=imported(seed=1)))
    times = time_in_model(paths, threads=1, rounds=2)
    wanted = {one.line for number in (0, 1) for one in net.lines(number).values()}
    assert set(times.seconds) == wanted
    assert len(wanted) > len(net.tasks)
    assert all(0 < seconds < 1e-3 for seconds in times.seconds.values())
    assert times.wrong == (2,)


def test_times_are_compared_within_a_round() -> None:
    # The machine was three times as slow in the second round; the second build always by a tenth.
    first = np.array([[10.0, 1.0], [30.0, 3.0], [10.0, 1.0]])
    paired = in_model._paired(np.array([first, first * [1.1, 0.9]]))
    assert paired == pytest.approx(np.array([[10.0, 1.0], [11.0, 0.9]]))


def test_builds_with_other_kernels_are_refused(net: Net, first: Path) -> None:
    paths = [first, net.build("stock", 0, schedules="stock")]
    with pytest.raises(DeviceError, match="different kernels"):
        time_in_model(paths, threads=1)
