"""Comparisons on a GPU, with runtimes whose times are known to a clock of our own."""

from __future__ import annotations

import importlib.metadata
import io
import types
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from rich.console import Console

from mobilenet_tvm.bench import alternate, gpu, gpu_peers, gpu_runners, protocol, worker
from mobilenet_tvm.bench.gpu_peers import Absent, PeerRow
from mobilenet_tvm.bench.gpu_results import gpu_table
from mobilenet_tvm.cuda.errors import CudaError
from mobilenet_tvm.cuda.gpu import GpuInfo, GpuState, Watch
from mobilenet_tvm.errors import DeviceError, UsageError

CARD = GpuInfo("NVIDIA A100-SXM4-40GB", (8, 0), driver_version="550.54.15", multiprocessors=108)
NET = Path("net.so")


class Clock:
    """Seconds that pass only when somebody says so."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def perf_counter(self) -> float:
        return self.now_s


class Runner:
    """``y = scale x`` in so many milliseconds, and so many more with the copies."""

    def __init__(self, clock: Clock, ms: float, copies_ms: float, scale: float = 2.0) -> None:
        self._clock, self._ms, self._copies_ms, self._scale = clock, ms, copies_ms, scale
        self.inputs = (protocol.InputSpec("x", (1, 8), "float32"),)

    def prepare(self, arrays: Sequence[Any]) -> list[Any]:
        return [self._scale * array for array in arrays]

    def timer(self) -> Callable[[], object]:
        return lambda: self._pass(self._ms)

    def round_trip(self, arrays: Sequence[Any]) -> Callable[[], object]:
        return lambda: self._pass(self._ms + self._copies_ms)

    def _pass(self, ms: float) -> None:
        self._clock.now_s += ms / 1e3


class Worker:
    """A worker in this process, which answers as its own would."""

    turns: tuple[list[str], list[str]] = ([], [])

    def __init__(self, label: str, threads: int) -> None:
        self.label, self.asleep, self.closed = label, False, False
        self._server = worker.Server()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def ask(self, request: protocol.Request, reply: type[Any], timeout_s: float) -> Any:
        assert not self.asleep
        assert not self.closed
        if isinstance(request, protocol.Measure):
            Worker.turns[request.copies].append(self.label)
        wire = msgspec.json.encode(request) + b"\n"
        out = io.BytesIO()
        answer = self._server.answer(msgspec.json.decode(wire, type=protocol.Request))
        out.write(msgspec.json.encode(answer))
        return msgspec.json.decode(out.getvalue(), type=reply)

    def pause(self) -> None:
        self.asleep = True

    def resume(self) -> None:
        self.asleep = False

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def runners(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The runtimes by kind, on a machine with an A100 of which nothing else is known."""
    clock = Clock()
    monkeypatch.delenv("MOBILENET_TVM_CUDA", raising=False)
    monkeypatch.setattr(worker, "time", clock)
    monkeypatch.setattr(gpu, "WorkerProcess", Worker)
    monkeypatch.setattr(Worker, "turns", ([], []))
    monkeypatch.setattr(gpu, "find_gpu", lambda: CARD)
    monkeypatch.setattr(gpu, "machine_name", lambda: "a CPU, 2 cores")
    monkeypatch.setattr(alternate, "ROUND_MS", 8.0)
    monkeypatch.setattr(alternate, "WARMUP_MS", 1.0)
    watched(monkeypatch)
    found = {
        "cuda-artifact": lambda path: Runner(clock, 1.0, 0.5),
        "cuda-artifact-graph": lambda path: Runner(clock, 0.5, 0.5),
        "cuda-onnxruntime": lambda path: Runner(clock, 2.0, 0.25),
        "tensorrt": lambda path: Runner(clock, 0.25, 0.25),
        "tensorrt-tf32": lambda path: Runner(clock, 0.2, 0.25),
    }
    monkeypatch.setattr(gpu_runners, "RUNNERS", found)
    monkeypatch.setitem(worker.RUNNERS, "onnxruntime", lambda path, threads: Runner(clock, 9, 0))
    return found


def watched(monkeypatch: pytest.MonkeyPatch, *states: GpuState) -> None:
    class Seen(Watch):
        def sample(self) -> None:
            self._states += states

        def __enter__(self) -> Seen:
            return self

        def __exit__(self, *error: object) -> None:
            self.sample()

    monkeypatch.setattr(gpu, "watch", Seen)


def peers(monkeypatch: pytest.MonkeyPatch, *rows: PeerRow, absent: Sequence[Absent] = ()) -> None:
    monkeypatch.setattr(gpu, "find_peers", lambda names, graphs: (list(rows), list(absent)))


def shown(result: Any) -> str:
    console = Console(width=400, file=io.StringIO())
    console.print(gpu_table(result))
    text: str = console.file.getvalue()  # type: ignore[attr-defined]
    return text


def test_times_with_and_without_copies(
    runners: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    peers(monkeypatch, PeerRow("onnxruntime", "cuda-onnxruntime", "ONNX Runtime 1, CUDA"))
    done: list[int] = []
    result = gpu.compare_on_gpu(
        [("tuned", NET)], onnx=Path("x.onnx"), rounds=3, mult_adds=10**6, on_round=done.append
    )
    labels = ["tuned", "tuned, graph", "ONNX Runtime 1, CUDA"]
    assert [one.label for one in result.timings] == labels
    assert [one.median_ms for one in result.timings] == pytest.approx([1.0, 0.5, 2.0])
    assert [one.end_to_end_ms for one in result.timings] == pytest.approx([1.5, 1.0, 2.25])
    # Half of a round's 8 ms is 4 inferences of 1 ms; the round before the first is left out.
    assert (result.timing("tuned").samples, result.timing("tuned").rounds) == (12, 3)
    assert done == [0, 1, 2, 3]
    assert result.timing("tuned").gflops == pytest.approx(2.0)
    ratio = result.ratio("tuned", labels[2])
    assert (ratio.median, ratio.end_to_end) == pytest.approx((2.0, 1.5))
    assert result.ratio(labels[2], "tuned").median == pytest.approx(0.5)
    assert "tuned is 2.00x (2.00-2.00) as fast as ONNX Runtime 1, CUDA, 1.50x" in shown(result)
    with pytest.raises(KeyError):
        result.ratio("tuned", "nobody")
    assert result.machine == f"{CARD}; host a CPU, 2 cores"


def test_everybody_takes_each_turn_in_an_order_of_its_own(
    runners: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    peers(monkeypatch)
    gpu.compare_on_gpu([("a", NET), ("b", NET)], onnx=Path("x.onnx"), rounds=9)
    plain, copies = Worker.turns
    assert plain == copies
    rounds = [tuple(plain[i : i + 4]) for i in range(0, len(plain), 4)]
    assert len(rounds) == 10
    assert all(set(turn) == {"a", "a, graph", "b", "b, graph"} for turn in rounds)
    assert len(set(rounds)) > 2


def test_outputs_are_held_against_the_cpu(
    runners: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    runners["cuda-artifact-graph"] = lambda path: Runner(Clock(), 0.5, 0.5, scale=2.5)
    peers(monkeypatch)
    with_model = gpu.compare_on_gpu([("tuned", NET)], onnx=Path("x.onnx"), rounds=1)
    assert {(one.label, one.reference) for one in with_model.agreements} == {
        ("tuned", "ONNX Runtime on the CPU"),
        ("tuned, graph", "ONNX Runtime on the CPU"),
    }
    errors = {one.label: one.max_error for one in with_model.agreements}
    assert errors == {"tuned": 0.0, "tuned, graph": pytest.approx(0.25, rel=1e-5)}
    (warning,) = with_model.warnings
    assert warning.startswith("tuned, graph and ONNX Runtime on the CPU disagree by 2.5e-01")
    without = gpu.compare_on_gpu([("tuned", NET)], rounds=1)
    assert [one.reference for one in without.agreements] == ["tuned"]


def test_a_row_in_tf32_is_told_apart_and_not_held_to_float32(
    runners: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    runners["tensorrt-tf32"] = lambda path: Runner(Clock(), 0.2, 0.25, scale=2.01)
    rows = gpu_peers.PEERS["tensorrt"].rows
    labels = {kind: f"TensorRT 10, {how}" for kind, how in rows}
    peers(monkeypatch, *(PeerRow("tensorrt", kind, label) for kind, label in labels.items()))
    result = gpu.compare_on_gpu([("tuned", NET)], onnx=Path("x.onnx"), rounds=1, graphs=False)
    errors = {one.label: one.max_error for one in result.agreements}
    assert errors[labels["tensorrt-tf32"]] == pytest.approx(0.005, rel=1e-3)
    assert result.warnings == ()
    assert "CPU's by 0.0e+00, in TF32 by 5.0e-03 of its" in " ".join(shown(result).split())


def test_a_graph_that_is_much_faster_is_a_hint(
    runners: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    peers(monkeypatch)
    (hint,) = gpu.compare_on_gpu([("tuned", NET)], rounds=1).hints
    assert "tuned is launch-bound: as one CUDA graph it is 2.00x as fast" in hint
    runners["cuda-artifact-graph"] = runners["cuda-artifact"]
    assert gpu.compare_on_gpu([("tuned", NET)], rounds=1).hints == ()
    assert gpu.compare_on_gpu([("tuned", NET)], rounds=1, graphs=False).graphs == ()


def test_absent_peers_are_named_with_reason_and_command(
    runners: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(path: str) -> Runner:
        raise DeviceError("the bench worker died: no kernel image")

    def unusable(path: str) -> Runner:
        raise UsageError("TensorRT, FP32: no engine can be built")

    def late(path: str) -> Runner:
        runner = Runner(Clock(), 1, 1)
        monkeypatch.setattr(runner, "prepare", unusable)
        return runner

    runners |= {"torch": broken, "tensorrt": unusable, "tensorrt-tf32": late}
    peers(
        monkeypatch,
        PeerRow("torch", "torch", "PyTorch 2, eager"),
        PeerRow("tensorrt", "tensorrt", "TensorRT, FP32"),
        PeerRow("tensorrt", "tensorrt-tf32", "TensorRT, its default"),
        PeerRow("onnxruntime", "cuda-onnxruntime", "ONNX Runtime 1, CUDA"),
        absent=[Absent("Other", "other is not installed", "pip install other")],
    )
    result = gpu.compare_on_gpu([("tuned", NET)], onnx=Path("x.onnx"), rounds=1, graphs=False)
    assert [one.label for one in result.timings] == ["tuned", "ONNX Runtime 1, CUDA"]
    assert [one.name for one in result.absent] == [
        "Other",
        "PyTorch 2, eager",
        "TensorRT, FP32",
        "TensorRT, its default",
    ]
    assert result.absent[1].reason == "it fails here: the bench worker died: no kernel image"
    assert result.absent[2].reason == "it fails here: no engine can be built"
    assert result.absent[3].command == gpu_peers.PEERS["tensorrt"].command
    text = shown(result)
    assert "Other: absent, other is not installed (pip install other)" in text
    assert "PyTorch 2, eager (absent)" in text


def test_an_artifact_that_fails_ends_the_comparison(
    runners: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(path: str) -> Runner:
        raise DeviceError("CUDA_ERROR_NO_BINARY_FOR_GPU")

    runners["cuda-artifact"] = broken
    peers(monkeypatch)
    with pytest.raises(DeviceError, match="NO_BINARY"):
        gpu.compare_on_gpu([("tuned", NET)], rounds=1)


def test_a_hot_or_shared_gpu_is_warned_about(
    runners: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    peers(monkeypatch)
    watched(monkeypatch, GpuState(1100, 1215, 88, 300.0, ("idle", "software thermal"), 99, 2))
    result = gpu.compare_on_gpu([("tuned", NET)], rounds=1)
    assert result.state is not None
    assert result.state.throttled
    held, shared = result.warnings
    assert "held back (software thermal)" in held
    assert "2 other processes use the GPU" in shared
    assert "SM clock 1100 MHz" in shown(result)
    assert "THROTTLED (software thermal)" in shown(result)


def test_no_latency_without_a_gpu_or_under_emulation(
    runners: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu, "find_gpu", lambda: None)
    monkeypatch.setattr(gpu, "why_none", lambda: "no NVIDIA GPU: no driver")
    with pytest.raises(CudaError, match="no NVIDIA GPU: no driver: latencies are measured") as no:
        gpu.compare_on_gpu([("tuned", NET)])
    monkeypatch.setenv("MOBILENET_TVM_CUDA", "emulated")
    with pytest.raises(UsageError, match="no latency under emulation") as emulated:
        gpu.compare_on_gpu([("tuned", NET)])
    assert "\n" not in f"{no.value}{emulated.value}"


@pytest.mark.parametrize(("artifacts", "rounds"), [([], 1), ([("tuned", NET)], 0)])
def test_bad_gpu_requests(
    runners: dict[str, Any], artifacts: list[tuple[str, Path]], rounds: int
) -> None:
    with pytest.raises(UsageError, match="nothing to time" if rounds else "--rounds"):
        gpu.compare_on_gpu(artifacts, rounds=rounds)


def test_json_holds_the_card_the_conditions_and_who_was_absent(
    runners: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    peers(monkeypatch, absent=[Absent("TensorRT", "tensorrt is not installed", "pip install it")])
    result = gpu.compare_on_gpu([("tuned", NET)], onnx=Path("x.onnx"), rounds=1)
    said = msgspec.json.decode(msgspec.json.encode(result.as_dict()))
    assert said["gpu"]["name"] == CARD.name
    assert said["gpu"]["compute_capability"] == [8, 0]
    assert said["absent"][0]["command"] == "pip install it"
    assert "TF32 off" in said["conditions"]
    assert "pageable" in said["conditions"]
    assert len(said["hints"]) == 1


def test_peers_that_are_not_installed_are_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_peers, "_importable", lambda module: module == "onnxruntime")
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CPUExecutionProvider"])
    rows, absent = gpu_peers.find_peers(list(gpu_peers.PEERS), graphs=True)
    assert rows == []
    assert [one.name for one in absent] == ["ONNX Runtime", "TensorRT", "PyTorch"]
    assert "built for CPUs alone" in absent[0].reason
    assert absent[1].reason == "tensorrt and cuda.bindings are not installed"
    assert all(one.command.startswith("pip ") for one in absent)


@pytest.mark.parametrize(
    ("installed", "version"),
    [
        ({"onnxruntime": "1.20"}, "1.20"),
        ({"onnxruntime-gpu": "1.21"}, "1.21"),
        ({}, ""),
    ],
    ids=["cpu", "gpu", "none"],
)
def test_onnx_runtime_is_known_under_either_name(
    monkeypatch: pytest.MonkeyPatch, installed: dict[str, str], version: str
) -> None:
    def look(name: str) -> str:
        if name not in installed:
            raise importlib.metadata.PackageNotFoundError(name)
        return installed[name]

    monkeypatch.setattr(gpu_peers.importlib.metadata, "version", look)
    assert gpu_peers.installed_version(gpu_peers.PEERS["onnxruntime"]) == version


@pytest.mark.parametrize("graphs", [False, True])
def test_every_row_of_a_peer_has_a_runner(monkeypatch: pytest.MonkeyPatch, graphs: bool) -> None:
    monkeypatch.setattr(gpu_peers, "_importable", lambda module: True)
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CUDAExecutionProvider"])
    rows, absent = gpu_peers.find_peers(list(gpu_peers.PEERS), graphs=graphs)
    assert absent == []
    assert len(rows) == (7 if graphs else 4)
    assert len({row.label for row in rows}) == len(rows)
    assert {row.kind for row in rows} <= set(gpu_runners.RUNNERS)
    assert any("TF32" in row.label for row in rows)


def test_round_trips_are_measured_only_where_there_are_copies() -> None:
    server = worker.Server()
    with pytest.raises(UsageError, match="measure before prepare"):
        server.answer(protocol.Measure(1, 0, copies=True))
    assert not isinstance(types.SimpleNamespace(inputs=()), worker.GpuRunner)
    assert isinstance(Runner(Clock(), 1, 1), worker.GpuRunner)
    np.testing.assert_array_equal(
        Runner(Clock(), 1, 1).prepare([np.ones(2, "float32")])[0], [2.0, 2.0]
    )
