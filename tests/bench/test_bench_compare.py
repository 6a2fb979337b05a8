"""Whole comparisons, of two ONNX Runtimes on tiny models."""

from __future__ import annotations

import dataclasses
import os
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from mobilenet_tvm import targets
from mobilenet_tvm.bench import Contender, alternate, compare, peak
from mobilenet_tvm.bench.peers import Absent
from mobilenet_tvm.bench.process import WorkerProcess
from mobilenet_tvm.bench.results import LOW_PRECISION_DISAGREEMENT
from mobilenet_tvm.errors import DeviceError, UsageError

needs_proc = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads Linux's /proc")


def dense_onnx(path: Path, batch: int | str = 1, width: int = 256, scale: float = 1.0) -> str:
    """``y = x @ w``, with the same ``w`` times ``scale`` every time."""
    weight = np.random.default_rng(0).standard_normal((width, 64)).astype("float32") * scale
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "dense",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, width])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, 64])],
        [numpy_helper.from_array(weight, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)])
    model.ir_version = 8
    onnx.save(model, path)
    return str(path)


def peer(label: str, path: str) -> Contender:
    return Contender(label, "onnxruntime", path)


@pytest.fixture(autouse=True)
def short_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(alternate, "ROUND_MS", 5.0)
    monkeypatch.setattr(alternate, "WARMUP_MS", 1.0)
    monkeypatch.setattr(peak, "BURSTS", 10)


@pytest.fixture
def workers(monkeypatch: pytest.MonkeyPatch) -> list[WorkerProcess]:
    """Every worker that is started, in order."""
    started: list[WorkerProcess] = []
    start = WorkerProcess.__init__

    def remember(self: WorkerProcess, *arguments: Any) -> None:
        start(self, *arguments)
        started.append(self)

    monkeypatch.setattr(WorkerProcess, "__init__", remember)
    return started


def assert_gone(workers: list[WorkerProcess]) -> None:
    assert workers
    for worker in workers:
        with pytest.raises(ProcessLookupError):
            os.kill(worker.pid, 0)


def state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]


def test_two_contenders_at_every_thread_count(tmp_path: Path, workers: list[WorkerProcess]) -> None:
    path = dense_onnx(tmp_path / "dense.onnx")
    threads = sorted({1, min(2, targets.physical_cores())})
    seen: list[tuple[int, int]] = []
    result = compare(
        [peer("first", path), peer("second", path)],
        threads=threads,
        rounds=3,
        mult_adds=256 * 64,
        on_round=lambda count, done: seen.append((count, done)),
    )
    assert [(t.label, t.threads) for t in result.timings] == [
        (label, count) for count in threads for label in ("first", "second")
    ]
    for timing in result.timings:
        assert 0 < timing.p5_ms <= timing.median_ms <= timing.p95_ms
        assert timing.rounds == 3
        assert timing.samples >= 3
        assert timing.gflops == pytest.approx(2 * 256 * 64 / timing.median_ms / 1e6)
        assert timing.peak_fraction == pytest.approx(
            timing.gflops / (timing.threads * result.peak_gflops)
        )
    assert [(r.of, r.to) for r in result.ratios] == [("first", "second")] * len(threads)
    assert all(agreement.max_error == 0 for agreement in result.agreements)
    assert [noise.threads for noise in result.noise] == threads
    assert seen == [(count, done) for count in threads for done in (1, 2, 3)]
    assert len(workers) == 2 * len(threads)
    assert_gone(workers)


@needs_proc
def test_only_one_worker_is_awake(
    tmp_path: Path, workers: list[WorkerProcess], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = dense_onnx(tmp_path / "dense.onnx")
    turns: list[str] = []
    take_turn = alternate._round

    def watched(lane: alternate.Lane) -> None:
        assert [state(worker.pid) for worker in workers] == ["T"] * 3
        turns.append(lane.contender.label)
        ask = lane.worker.ask

        def ask_and_look(*arguments: object) -> object:
            asleep = [worker for worker in workers if worker is not lane.worker]
            assert [state(worker.pid) for worker in asleep] == ["T"] * 2
            return ask(*arguments)  # type: ignore[arg-type]

        monkeypatch.setattr(lane.worker, "ask", ask_and_look)
        take_turn(lane)
        monkeypatch.setattr(lane.worker, "ask", ask)

    monkeypatch.setattr(alternate, "_round", watched)
    result = compare([peer(label, path) for label in "abc"], threads=[1], rounds=6)
    assert [(r.of, r.to) for r in result.ratios] == [("a", "b"), ("a", "c"), ("b", "c")]
    rounds = ["".join(turns[start : start + 3]) for start in range(0, 18, 3)]
    assert all(sorted(order) == ["a", "b", "c"] for order in rounds)
    assert len(set(rounds)) > 1  # not always the same order


def test_contenders_that_compute_something_else_are_warned_about(tmp_path: Path) -> None:
    right = dense_onnx(tmp_path / "right.onnx")
    wrong = dense_onnx(tmp_path / "wrong.onnx", scale=1.25)
    result = compare([peer("wrong", wrong), peer("right", right)], threads=[1], rounds=1)
    # The reference is the first ONNX Runtime: "wrong" here, so 0.25 / 1.25.
    (agreement,) = result.agreements
    assert (agreement.label, agreement.reference) == ("right", "wrong")
    assert agreement.max_error == pytest.approx(0.2, rel=1e-4)
    assert any("do not compare their times" in warning for warning in result.warnings)


def test_an_open_batch_takes_the_other_contenders_shape(tmp_path: Path) -> None:
    fixed = dense_onnx(tmp_path / "fixed.onnx", batch=3)
    dynamic = dense_onnx(tmp_path / "open.onnx", batch="N")
    result = compare([peer("open", dynamic), peer("fixed", fixed)], threads=[1], rounds=1)
    assert result.agreements[0].max_error == 0
    with pytest.raises(UsageError, match=r"\[\?, 256\] float32"):
        compare([peer("open", dynamic)], threads=[1], rounds=1)


def test_other_models_are_refused(tmp_path: Path, workers: list[WorkerProcess]) -> None:
    one = dense_onnx(tmp_path / "one.onnx")
    two = dense_onnx(tmp_path / "two.onnx", width=128)
    with pytest.raises(UsageError, match=r"one takes \[1, 256\] float32; two takes \[1, 128\]"):
        compare([peer("one", one), peer("two", two)], threads=[1], rounds=1)
    assert_gone(workers)


def test_a_file_that_is_no_onnx_is_the_users_error(tmp_path: Path) -> None:
    path = tmp_path / "cat.onnx"
    path.write_bytes(b"meow")
    with pytest.raises(UsageError, match=r"broken: ONNX Runtime cannot load .*cat\.onnx"):
        compare([peer("broken", str(path))], threads=[1], rounds=1)


@pytest.mark.parametrize(
    ("threads", "rounds", "labels", "complaint"),
    [
        ([1], 1, "", "nothing to time"),
        ([1], 1, "aa", "different labels"),
        ([1], 0, "a", "--rounds"),
        ([], 1, "a", "--threads"),
        ([1, 1], 1, "a", "--threads"),
        ([0], 1, "a", "--threads 0"),
        ([4096], 1, "a", "--threads 4096"),
    ],
)
def test_bad_requests(threads: list[int], rounds: int, labels: str, complaint: str) -> None:
    with pytest.raises(UsageError, match=complaint):
        compare([peer(label, "x.onnx") for label in labels], threads=threads, rounds=rounds)


def test_interruption_leaves_no_worker_behind(tmp_path: Path, workers: list[WorkerProcess]) -> None:
    path = dense_onnx(tmp_path / "dense.onnx")

    def interrupt(count: int, done: int) -> None:
        raise KeyboardInterrupt

    contenders = [peer("a", path), peer("b", path)]
    with pytest.raises(KeyboardInterrupt):
        compare(contenders, threads=[1], rounds=3, on_round=interrupt)
    assert len(workers) == 2
    assert_gone(workers)


def test_a_worker_that_dies_ends_the_comparison(
    tmp_path: Path, workers: list[WorkerProcess]
) -> None:
    path = dense_onnx(tmp_path / "dense.onnx")

    def kill(count: int, done: int) -> None:
        os.kill(workers[1].pid, signal.SIGKILL)

    contenders = [peer("a", path), peer("b", path)]
    with pytest.raises(DeviceError, match=r"worker of b died \(signal SIGKILL\)"):
        compare(contenders, threads=[1], rounds=3, on_round=kill)
    assert_gone(workers)


def other(label: str, path: str, **changes: object) -> Contender:
    """A peer's row, in ONNX Runtime."""
    return dataclasses.replace(Contender(label, "onnxruntime", path, peer="litert"), **changes)


def test_a_peer_runs_in_a_python_without_this_package(
    tmp_path: Path, workers: list[WorkerProcess]
) -> None:
    path = dense_onnx(tmp_path / "dense.onnx")
    result = compare([peer("ours", path), other("theirs", path, python=sys.executable)], rounds=2)
    assert result.peers == result.f32_peers == ("theirs",)
    (best,) = result.best_f32_peers
    assert (best.of, best.to) == ("ours", "theirs")
    (agreement,) = result.agreements
    assert agreement.max_error == 0
    assert_gone(workers)


def test_peers_that_fail_are_named_and_the_others_go_on(
    tmp_path: Path, workers: list[WorkerProcess], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = dense_onnx(tmp_path / "dense.onnx")
    take_turn = alternate._round

    def fails_later(lane: alternate.Lane) -> None:
        if lane.contender.label == "tired" and lane.rounds_ms:
            raise DeviceError("the bench worker of tired died")
        take_turn(lane)

    monkeypatch.setattr(alternate, "_round", fails_later)
    wide = dense_onnx(tmp_path / "wide.onnx", width=128)
    rows = [
        peer("ours", path),
        other("nowhere", str(tmp_path / "nowhere.onnx")),
        other("wide", wide),
        other("unknown", path, kind="mnn"),
        other("tired", path),
        other("well", path),
    ]
    result = compare(rows, threads=[1], rounds=3, absent=[Absent("before", "it is not here")])
    assert [timing.label for timing in result.timings] == ["ours", "well"]
    assert result.peers == ("well",)
    reasons = {absent.name: absent.reason for absent in result.absent}
    assert list(reasons) == ["before", "nowhere", "wide", "unknown", "tired"]
    assert "fails here at 1 thread: ONNX Runtime cannot load" in reasons["nowhere"]
    assert "not builds of one model" in reasons["wide"]
    assert reasons["tired"] == "it fails here at 1 thread: the bench worker of tired died"
    for reason in reasons.values():
        assert len(reason.splitlines()) == 1
    assert str(result.absent[0]) == "before: absent, it is not here"
    assert_gone(workers)


def test_a_peer_with_outputs_of_another_shape_is_left_out(tmp_path: Path) -> None:
    path = dense_onnx(tmp_path / "dense.onnx")
    model = onnx.load(path)
    model.graph.initializer[0].CopyFrom(
        numpy_helper.from_array(np.ones((256, 32), np.float32), "w")
    )
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 32
    onnx.save(model, tmp_path / "short.onnx")
    short = other("short", str(tmp_path / "short.onnx"))
    result = compare([peer("ours", path), short, other("same", path)], rounds=1)
    assert [timing.label for timing in result.timings] == ["ours", "same"]
    (absent,) = result.absent
    assert "outputs of different shapes" in absent.reason


def test_a_peer_in_lower_precision_has_its_own_limit_and_is_no_f32_peer(tmp_path: Path) -> None:
    right = dense_onnx(tmp_path / "right.onnx")
    rough = dense_onnx(tmp_path / "rough.onnx", scale=1.05)
    low = other("low", rough, precision="bf16")
    result = compare([peer("ours", right), low, other("rough", rough)], rounds=1, mult_adds=1)
    peaks = [timing.peak_fraction is None for timing in result.timings]
    assert peaks == [False, True, False]
    assert [bool(agreement) for agreement in result.agreements] == [True, False]
    assert result.agreements[0].limit == LOW_PRECISION_DISAGREEMENT
    assert result.peers == ("low", "rough")
    assert result.f32_peers == ("rough",)
    assert result.best_f32_peers == ()  # the only one computes something else
    assert [line.split()[0] for line in result.warnings if "disagree" in line] == ["rough"]
