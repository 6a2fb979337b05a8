"""Builds of one model, timed kernel by kernel: which is the slower one, and what says nothing."""

from __future__ import annotations

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
from mobilenet_tvm.targets import resolve


def build(folder: Path, name: str, *, seed: int = 0, schedules: Any = "ours", **model: Any) -> Path:
    proto = zoo.build("mobilenet_v1", alpha=0.25, resolution=32, classes=10, seed=seed, **model)
    source = frontend.from_proto(proto, "v1")
    path = folder / name / "v1.so"
    relay = frontend.to_relay(frontend.clean(source))
    info = ModelInfo("net", source.digest)
    compile_model(relay, resolve("x86"), path, info=info, schedules=schedules)
    return path


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("builds")
    return {"first": build(folder, "first"), "wrong": build(folder, "wrong", seed=1)}


def test_every_kernel_is_timed_and_a_build_that_differs_is_not(
    paths: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(in_model, "_ROUND_MS", 5.0)
    timed = time_in_model([paths["first"], paths["wrong"], paths["first"]], threads=1, rounds=2)
    labels = [layer.task for layer in timed.layers if layer.task is not None]
    assert labels[0].startswith("conv 3x3/2 3->8")
    assert len(labels) == 28
    first, wrong, again = timed.kernels_us
    assert first.shape == again.shape == (len(timed.layers),)
    assert (first > 0).all()
    assert np.isfinite(again).all()
    assert np.isinf(wrong).all()


def test_times_are_compared_within_a_round() -> None:
    # The machine was three times as slow in the second round; the second build always by a tenth.
    first = np.array([[10.0, 1.0], [30.0, 3.0], [10.0, 1.0]])
    paired = in_model._paired(np.array([first, first * [1.1, 0.9]]))
    assert paired == pytest.approx(np.array([[10.0, 1.0], [11.0, 0.9]]))


def test_builds_with_other_kernels_are_refused(paths: dict[str, Path], tmp_path: Path) -> None:
    stock = build(tmp_path, "stock", schedules="stock")
    with pytest.raises(DeviceError, match="different kernels"):
        time_in_model([paths["first"], stock], threads=1)
