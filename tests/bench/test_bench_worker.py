"""The worker's side of the conversation, with a runtime that does nothing."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pytest

from mobilenet_tvm import runtime
from mobilenet_tvm.bench import protocol, worker
from mobilenet_tvm.build.manifest import TensorSpec
from mobilenet_tvm.errors import UsageError


class Doubler:
    """``y = 2 x``; counts its inferences."""

    inferences = 0

    def __init__(self, path: str, threads: int) -> None:
        if path == "bad":
            raise UsageError("no artifact\nat bad")
        if path == "broken":
            raise RuntimeError("libtvm.so is\nbroken")
        assert threads == 2
        self.inputs = (protocol.InputSpec("x", (1, None), "float32"),)

    def prepare(self, arrays: Sequence[np.ndarray[Any, Any]]) -> list[np.ndarray[Any, Any]]:
        return [2 * array for array in arrays]

    def timer(self) -> Callable[[], object]:
        def infer() -> None:
            Doubler.inferences += 1

        return infer


@pytest.fixture(autouse=True)
def doubler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(worker.RUNNERS, "artifact", Doubler)
    monkeypatch.setattr(Doubler, "inferences", 0)


def converse(*requests: protocol.Request) -> list[Any]:
    lines = b"".join(msgspec.json.encode(request) + b"\n" for request in requests)
    replies = io.BytesIO()
    worker.serve(io.BytesIO(lines), replies)
    return [msgspec.json.decode(x, type=protocol.Reply) for x in replies.getvalue().splitlines()]


def test_load_prepare_measure() -> None:
    loaded, prepared, before, measured = converse(
        protocol.Load("artifact", "x.so", 2),
        protocol.Prepare(((1, 5),), 7),
        protocol.Measure(0, 0),
        protocol.Measure(10, 3),
    )
    assert loaded.inputs[0].shape == (1, None)
    (output,) = prepared.outputs
    values = np.frombuffer(output.data, output.dtype).reshape(output.shape)
    (expected,) = worker.random_inputs(loaded.inputs, ((1, 5),), 7)
    np.testing.assert_array_equal(values, 2 * expected)
    assert before.times_ms == ()
    assert len(measured.times_ms) == 10
    assert all(time_ms >= 0 for time_ms in measured.times_ms)
    assert Doubler.inferences == 4 + 13  # the first look, then warm-up and timed ones


def test_failures_are_one_line_and_the_worker_lives_on(capfd: pytest.CaptureFixture[str]) -> None:
    bad, broken, good = converse(
        protocol.Load("artifact", "bad", 2),
        protocol.Load("artifact", "broken", 2),
        protocol.Load("artifact", "x.so", 2),
    )
    assert bad == protocol.Failed("no artifact at bad", usage=True)
    assert broken == protocol.Failed("RuntimeError: libtvm.so is broken", usage=False)
    assert isinstance(good, protocol.Loaded)
    assert "Traceback" in capfd.readouterr().err


def test_artifact_goes_through_the_runtime(monkeypatch: pytest.MonkeyPatch) -> None:
    """Inputs by name, outputs in the manifest's order, and the runtime's own timer."""

    class Module:
        manifest = SimpleNamespace(
            inputs=(TensorSpec("x", (1, 2), "float32"),),
            outputs=(TensorSpec("b", (1, 2), "float32"), TensorSpec("a", (1,), "float32")),
        )

        def run(self, inputs: dict[str, Any]) -> dict[str, Any]:
            return {"a": inputs["x"].sum(axis=1), "b": inputs["x"] + 1}

        def timer(self) -> Callable[[], None]:
            return lambda: None

    asked: list[tuple[Path, int]] = []

    def load(path: Path, *, threads: int) -> Module:
        asked.append((path, threads))
        return Module()

    monkeypatch.setattr(runtime, "load", load, raising=False)
    runner = worker.ArtifactRunner("net.so", 2)
    assert asked == [(Path("net.so"), 2)]
    assert runner.inputs == (protocol.InputSpec("x", (1, 2), "float32"),)
    first, second = runner.prepare([np.array([[1.0, 2.0]], "float32")])
    np.testing.assert_array_equal(first, [[2.0, 3.0]])
    np.testing.assert_array_equal(second, [3.0])
    runner.timer()()


def test_inputs_are_the_same_for_the_same_seed_alone() -> None:
    specs = (
        protocol.InputSpec("a", (2, 3), "float32"),
        protocol.InputSpec("b", (4,), "uint8"),
    )
    first, again, other = (worker.random_inputs(specs, ((2, 3), (4,)), s) for s in (0, 0, 1))
    assert [a.dtype.name for a in first] == ["float32", "uint8"]
    assert np.abs(first[0]).max() <= 1
    np.testing.assert_array_equal(first[0], again[0])
    assert not np.array_equal(first[0], other[0])


def test_what_a_library_prints_stays_out_of_the_replies() -> None:
    code = """
import os, sys
from mobilenet_tvm.bench import protocol, worker
class Chatty:
    def __init__(self, path, threads):
        print("hello from python"); sys.stdout.flush()
        os.write(1, b"hello from C\\n")
        self.inputs = ()
worker.RUNNERS["artifact"] = Chatty
worker.main()
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(os.getpid()), "1"],
        input=msgspec.json.encode(protocol.Load("artifact", "x", 1)) + b"\n",
        capture_output=True,
        check=True,
    )
    assert msgspec.json.decode(done.stdout, type=protocol.Reply) == protocol.Loaded(())
    assert b"hello from python" in done.stderr
    assert b"hello from C" in done.stderr
