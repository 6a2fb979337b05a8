"""Tuning on the GPU: trials of both searchers, timed by its own events, and the way to the end."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mobilenet_tvm import cuda
from mobilenet_tvm.bench.gpu_peers import is_tf32
from mobilenet_tvm.cuda import gpu
from mobilenet_tvm.records import run_path
from mobilenet_tvm.records.log import read_log

from .conftest import device_options

TINY = ("--model", "mobilenet_v1", "--alpha", 0.25, "--resolution", 32)
Verb = Callable[..., dict[str, Any]]


def test_tune_with_both_searchers_ends_in_a_checked_artifact(verb: Verb, tmp_path: Path) -> None:
    options = ("--target", "cuda", "--tuner", "all", "--trials", 4, "--no-transfer")
    # A model has dozens of tasks: as many of their trials as fit.
    options += ("--time-budget", "60s")
    more = ("--rounds", 2, "-o", tmp_path, *device_options(tune=True))
    said = verb("tune", *TINY, *options, *more)
    timing = "emulated" if cuda.emulated() else "measured"
    assert said["timing"] == timing
    assert said["parity"]["passed"]
    assert said["tuned"] > 0
    assert len(said["logs"]) == 2
    for log in map(Path, said["logs"]):
        records = read_log(log, pytest.fail)
        fine = [record for record in records if record.cost_s is not None]
        # A random configuration may be too large for the GPU; none may compute something else.
        assert len(fine) >= len(records) / 4
        if not cuda.emulated():
            assert all(0 < record.cost_s < 1 for record in fine if record.cost_s is not None)
        run = json.loads(run_path(log).read_text())
        assert run["timing"] == timing
        assert "wrong_output" not in run["failures"]
    if cuda.emulated():
        assert said["bench"] is None
        return
    found = gpu.find_gpu()
    assert found is not None
    assert said["bench"]["gpu"]["name"] == found.name
    labels = [row["label"] for row in said["bench"]["timings"]]
    assert labels[:2] == ["tuned", "tuned, graph"]
    assert all(row["end_to_end_ms"] > row["median_ms"] for row in said["bench"]["timings"])


def test_bench_times_an_artifact_or_says_why_not(verb: Verb, tmp_path: Path) -> None:
    options = ("--target", "cuda", "-o", tmp_path, *device_options())
    artifact = verb("compile", *TINY, *options)["artifact"]
    arguments = (artifact, "--cuda-graph", "--rounds", 2)
    if cuda.emulated():
        said = verb("bench", *arguments, status=2)
        assert "no latency under emulation" in said["error"]
        return
    said = verb("bench", *arguments)
    assert said["warnings"] == [] or pytest.skip(f"not a quiet GPU: {said['warnings']}")
    exact = [one["max_error"] for one in said["agreements"] if not is_tf32(one["label"])]
    assert exact
    assert max(exact) < 1e-4
    assert said["state"]["max_sm_clock_mhz"] > 0
