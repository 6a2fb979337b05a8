"""The runtimes on a GPU: ONNX Runtime's steps on its CPU provider, TensorRT's on a stand-in."""

from __future__ import annotations

import os
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mobilenet_tvm import runtime, zoo
from mobilenet_tvm.bench import gpu_runners
from mobilenet_tvm.bench.worker import GpuRunner, OnnxRuntimeRunner
from mobilenet_tvm.errors import UsageError


@pytest.fixture(autouse=True)
def own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "unset by this test")


@pytest.fixture(scope="module")
def onnx(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("gpu") / "v1.onnx"
    path.write_bytes(zoo.build("mobilenet_v1", alpha=0.25, resolution=32).SerializeToString())
    return str(path)


@pytest.mark.parametrize("graph", [False, True])
def test_onnx_runtimes_steps_give_its_results(onnx: str, graph: bool) -> None:
    runner = gpu_runners.CudaOnnxRuntimeRunner(onnx, graph=graph, device="cpu")
    plain = OnnxRuntimeRunner(onnx, 1)
    assert isinstance(runner, GpuRunner)
    assert runner.inputs == plain.inputs
    draw = np.random.default_rng(0)
    first, second = (draw.uniform(-1, 1, (1, 3, 32, 32)).astype("float32") for _ in range(2))
    (found,) = runner.prepare([first])
    np.testing.assert_allclose(found, plain.prepare([first])[0], rtol=1e-5, atol=1e-7)
    runner.timer()()
    # The buffers stay, and hold what was sent last.
    (again,) = runner.round_trip([second])()  # type: ignore[misc, attr-defined]
    np.testing.assert_allclose(again, plain.prepare([second])[0], rtol=1e-5, atol=1e-7)
    assert np.abs(again - found).max() > 1e-6
    assert os.environ["NVIDIA_TF32_OVERRIDE"] == "0"


@pytest.mark.filterwarnings("ignore:Specified provider")
def test_onnx_runtime_that_falls_back_to_the_cpu_is_refused(onnx: str) -> None:
    with pytest.raises(UsageError, match="cannot use the GPU"):
        gpu_runners.CudaOnnxRuntimeRunner(onnx)


def test_an_artifact_is_run_as_the_runtime_runs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = types.SimpleNamespace(name="x", shape=(1, 2), dtype="float32")
    asked: list[dict[str, Any]] = []

    class Module:
        manifest = types.SimpleNamespace(
            inputs=(spec,), outputs=[types.SimpleNamespace(name=name) for name in "ba"]
        )

        def run(self, inputs: dict[str, Any]) -> dict[str, Any]:
            return {"a": inputs["x"] + 1, "b": inputs["x"] * 2}

        def timer(self) -> Callable[[], None]:
            return lambda: None

    def load(path: Path, **options: Any) -> Module:
        asked.append(options)
        return Module()

    monkeypatch.setattr(runtime, "load", load)
    for kind in ("cuda-artifact", "cuda-artifact-graph"):
        runner = gpu_runners.RUNNERS[kind]("net.so")
        assert isinstance(runner, GpuRunner)
        data = np.array([[1.0, 5.0]], "float32")
        first, second = runner.prepare([data])
        np.testing.assert_array_equal(first, data * 2)
        np.testing.assert_array_equal(second, data + 1)
        assert runner.timer()() is None
        assert set(runner.round_trip([data])()) == {"a", "b"}  # type: ignore[call-overload]
    assert asked == [{"cuda_graph": False}, {"cuda_graph": True}]


class FakeTensorRt(types.ModuleType):
    """TensorRT's Python API, whose engines compute ``y = 3 x`` on the fake stream's buffers."""

    def __init__(self, sizes: tuple[int, ...]) -> None:
        super().__init__("tensorrt")
        self.sizes, self.flags, self.profiles = sizes, {"TF32"}, []
        self.NetworkDefinitionCreationFlag = types.SimpleNamespace(EXPLICIT_BATCH=0)
        self.BuilderFlag = types.SimpleNamespace(TF32="TF32")
        self.Logger = type("Logger", (), {"ERROR": 1, "__init__": lambda self, level: None})
        x = types.SimpleNamespace(name="x", shape=sizes, dtype="FLOAT")
        y = types.SimpleNamespace(name="y", shape=sizes, dtype="FLOAT")
        network = types.SimpleNamespace(
            num_inputs=1, num_outputs=1, get_input=lambda i: x, get_output=lambda i: y
        )
        config = types.SimpleNamespace(
            clear_flag=self.flags.discard,
            set_flag=self.flags.add,
            add_optimization_profile=self.profiles.append,
        )

        def profile() -> Any:
            made: dict[str, Any] = {}
            return types.SimpleNamespace(
                made=made, set_shape=lambda name, *shapes: made.update({name: shapes})
            )

        self.builder = types.SimpleNamespace(
            create_network=lambda flags: network,
            create_builder_config=lambda: config,
            create_optimization_profile=profile,
            build_serialized_network=lambda network, config: b"plan",
        )
        self.parses = True

    def Builder(self, logger: Any) -> Any:  # noqa: N802
        return self.builder

    def OnnxParser(self, network: Any, logger: Any) -> Any:  # noqa: N802
        return types.SimpleNamespace(
            parse_from_file=lambda path: self.parses,
            num_errors=1,
            get_error=lambda i: "node 7 is not supported",
        )

    def nptype(self, dtype: str) -> type:
        return np.float32

    def Runtime(self, logger: Any) -> Any:  # noqa: N802
        shapes: dict[str, tuple[int, ...]] = {}
        at: dict[str, int] = {}

        def run(stream: int) -> bool:
            FakeStream.memory[at["y"]][:] = 3 * FakeStream.memory[at["x"]]
            return True

        context = types.SimpleNamespace(
            set_input_shape=lambda name, shape: shapes.update({"x": shape, "y": shape}),
            set_tensor_address=lambda name, address: at.update({name: address}),
            get_tensor_shape=lambda name: shapes[name],
            execute_async_v3=run,
        )
        engine = types.SimpleNamespace(
            create_execution_context=lambda: context, get_tensor_dtype=lambda name: "FLOAT"
        )
        return types.SimpleNamespace(deserialize_cuda_engine=lambda plan: engine)


class FakeStream:
    """``cudart.Stream`` with the device's memory in numpy."""

    memory: list[np.ndarray[Any, Any]] = []  # noqa: RUF012
    captured = 0
    handle = 1

    def __init__(self) -> None:
        self._at: dict[str, int] = {}

    def buffer(self, name: str, size: int) -> int:
        FakeStream.memory.append(np.zeros(size // 4, "float32"))
        self._at[name] = len(FakeStream.memory) - 1
        return self._at[name]

    def send(self, name: str, array: np.ndarray[Any, Any]) -> None:
        FakeStream.memory[self._at[name]][:] = array.ravel()

    def fetch(self, name: str, array: np.ndarray[Any, Any]) -> None:
        array[...] = FakeStream.memory[self._at[name]].reshape(array.shape)

    def wait(self) -> None:
        pass

    def capture(self, launch: Callable[[], None]) -> Callable[[], None]:
        FakeStream.captured += 1
        return launch


@pytest.mark.parametrize(
    ("kind", "tf32", "captured"),
    [("tensorrt", False, 0), ("tensorrt-graph", False, 1), ("tensorrt-tf32", True, 0)],
)
def test_tensorrt_builds_for_the_shape_with_or_without_tf32(
    monkeypatch: pytest.MonkeyPatch, kind: str, tf32: bool, captured: int
) -> None:
    fake = FakeTensorRt((-1, 4))
    monkeypatch.setitem(sys.modules, "tensorrt", fake)
    monkeypatch.setattr(gpu_runners, "Stream", FakeStream)
    monkeypatch.setattr(FakeStream, "captured", 0)
    runner = gpu_runners.RUNNERS[kind]("x.onnx")
    assert isinstance(runner, GpuRunner)
    assert runner.inputs[0].shape == (None, 4)
    data = np.arange(8, dtype="float32").reshape(2, 4)
    (found,) = runner.prepare([data])
    np.testing.assert_array_equal(found, 3 * data)
    runner.round_trip([data + 1])()
    runner.timer()()
    np.testing.assert_array_equal(found, 3 * data)  # kept apart from the buffers
    assert fake.flags == ({"TF32"} if tf32 else set())
    assert fake.profiles[0].made == {"x": ((2, 4),) * 3}
    assert FakeStream.captured == captured
    assert (os.environ["NVIDIA_TF32_OVERRIDE"] == "0") is not tf32


def test_a_model_that_tensorrt_cannot_read_or_build_is_said(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fake = FakeTensorRt((2, 4))
    monkeypatch.setitem(sys.modules, "tensorrt", fake)
    monkeypatch.setattr(gpu_runners, "Stream", FakeStream)
    fake.builder.build_serialized_network = lambda network, config: None
    with pytest.raises(UsageError, match="cannot build an engine"):
        gpu_runners.RUNNERS["tensorrt"]("x.onnx").prepare([np.zeros((2, 4), "float32")])
    fake.parses = False
    with pytest.raises(UsageError, match=r"cannot read x\.onnx: node 7 is not supported"):
        gpu_runners.RUNNERS["tensorrt"]("x.onnx")
