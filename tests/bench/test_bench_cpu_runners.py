"""What the runners ask of other runtimes, of stand-ins for them."""

from __future__ import annotations

import os
import sys
import types
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from mobilenet_tvm.bench import converters, cpu_runners, protocol
from mobilenet_tvm.bench.cpu_runners import RUNNERS
from mobilenet_tvm.bench.protocol import InputSpec
from mobilenet_tvm.errors import UsageError

IMAGE = np.arange(2 * 3 * 4, dtype=np.float32).reshape(1, 2, 3, 4)


def converted(tmp_path: Path, batch: int = 1) -> str:
    """The folder of a converted model, whose output is its input as a vector."""
    spec = converters.ModelSpec(
        (InputSpec("x", (batch, 2, 3, 4), "float32"),),
        (converters.OutputSpec("y", (batch, 24)),),
    )
    (tmp_path / converters.SPEC).write_bytes(msgspec.json.encode(spec))
    (tmp_path / "converted").mkdir(exist_ok=True)
    return str(tmp_path / "converted")


def test_every_cpu_kind_has_a_runner() -> None:
    kinds = set(protocol.ContenderKind.__args__)
    assert set(RUNNERS) < kinds


@pytest.mark.parametrize(("kind", "hint"), [("openvino", "f32"), ("openvino-default", None)])
def test_openvino_is_held_to_float32_unless_its_default_is_asked_for(
    kind: str, hint: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, Any] = {}

    class Request:
        def set_input_tensor(self, index: int, tensor: Any) -> None:
            seen["tensor"] = tensor

        def start_async(self) -> None:
            seen["started"] = seen.get("started", 0) + 1

        def wait(self) -> None:
            seen["waited"] = seen.get("waited", 0) + 1

        def get_output_tensor(self, index: int) -> Any:
            return types.SimpleNamespace(data=seen["tensor"][0].reshape(1, 24))

    class Core:
        def compile_model(self, path: str, device: str, options: dict[str, Any]) -> Any:
            seen.update(path=path, device=device, options=options)
            return types.SimpleNamespace(outputs=["y"], create_infer_request=Request)

    module = types.SimpleNamespace(
        Core=Core, Tensor=lambda array, shared_memory: (array, shared_memory)
    )
    monkeypatch.setitem(sys.modules, "openvino", module)
    converted(tmp_path)
    runner = RUNNERS[kind](str(tmp_path), 2)
    assert seen["path"] == str(tmp_path / "model.onnx")
    assert seen["options"].get("INFERENCE_PRECISION_HINT") == hint
    assert seen["options"]["INFERENCE_NUM_THREADS"] == 2
    (output,) = runner.prepare([IMAGE])
    assert seen["tensor"][0] is IMAGE  # not a copy
    assert seen["tensor"][1] is True
    np.testing.assert_array_equal(output, IMAGE.reshape(1, 24))
    before = seen["waited"]
    runner.timer()()
    assert seen["waited"] == seen["started"] == before + 1


def test_litert_gets_its_image_in_its_own_layout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, Any] = {"runs": 0}

    class Interpreter:
        def __init__(self, path: str, num_threads: int) -> None:
            seen.update(path=path, threads=num_threads)

        def allocate_tensors(self) -> None:
            pass

        def get_input_details(self) -> list[dict[str, int]]:
            return [{"index": 7}]

        def get_output_details(self) -> list[dict[str, int]]:
            return [{"index": 9}]

        def set_tensor(self, index: int, array: Any) -> None:
            assert index == 7
            assert array.flags["C_CONTIGUOUS"]
            seen["image"] = array

        def invoke(self) -> None:
            seen["runs"] += 1

        def get_tensor(self, index: int) -> Any:
            assert index == 9
            return seen["image"].transpose(0, 3, 1, 2).reshape(24)

    module = types.SimpleNamespace(Interpreter=Interpreter)
    monkeypatch.setitem(sys.modules, "ai_edge_litert", types.ModuleType("ai_edge_litert"))
    monkeypatch.setitem(sys.modules, "ai_edge_litert.interpreter", module)
    runner = RUNNERS["litert"](converted(tmp_path), 2)
    assert seen["threads"] == 2
    assert seen["path"].endswith("converted/model.tflite")
    (output,) = runner.prepare([IMAGE])
    assert seen["image"].shape == (1, 3, 4, 2)
    np.testing.assert_array_equal(output, IMAGE.reshape(1, 24))
    before = seen["runs"]
    runner.timer()()
    assert seen["runs"] == before + 1


class FakeNcnn:
    """A network whose output is its input; it refuses 16 bits by failing the test."""

    def fresh_options(self) -> types.SimpleNamespace:
        self.options = types.SimpleNamespace(
            num_threads=1,
            use_vulkan_compute=True,
            use_fp16_storage=True,
            use_fp16_arithmetic=True,
            use_bf16_storage=True,
            use_packing_layout=False,
            lightmode=False,
            use_sgemm_convolution=False,
            use_winograd_convolution=False,
            blob_allocator=None,
            workspace_allocator=None,
        )
        return self.options

    def __init__(self) -> None:
        outer = self

        class Extractor:
            def input(self, name: str, mat: Any) -> None:
                self.mat = mat

            def extract(self, name: str) -> tuple[int, Any]:
                return 0, self.mat.reshape(24)

        class Net:
            def __init__(self) -> None:
                self.opt = outer.fresh_options()

            def load_param(self, path: str) -> int:
                assert not self.opt.use_fp16_storage  # ncnn packs weights when it loads
                return -1 if outer.broken else 0

            def load_model(self, path: str) -> int:
                return 0

            def input_names(self) -> list[str]:
                return ["in0"]

            def output_names(self) -> list[str]:
                return ["out0"]

            def create_extractor(self) -> Extractor:
                return Extractor()

        self.broken = False
        self.Net = Net
        self.PoolAllocator = object
        self.UnlockedPoolAllocator = object

    @staticmethod
    def Mat(array: Any = None) -> Any:  # noqa: N802 (ncnn's name)
        return array


def test_ncnn_stores_and_computes_in_float32(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = FakeNcnn()
    monkeypatch.setitem(sys.modules, "ncnn", module)
    runner = RUNNERS["ncnn"](converted(tmp_path), 2)
    options = vars(module.options)
    assert not any(value for name, value in options.items() if "16" in name)
    assert options["num_threads"] == 2
    assert options["use_packing_layout"]
    assert options["use_winograd_convolution"]
    assert not options["use_vulkan_compute"]
    (output,) = runner.prepare([IMAGE])
    np.testing.assert_array_equal(output, IMAGE.reshape(1, 24))
    with pytest.raises(AssertionError):  # the stand-in's, of 16 bits
        RUNNERS["ncnn-default"](converted(tmp_path), 2)
    module.broken = True
    with pytest.raises(UsageError, match="ncnn cannot load"):
        RUNNERS["ncnn"](converted(tmp_path), 2)
    with pytest.raises(UsageError, match="one image at a time, not 2"):
        RUNNERS["ncnn"](converted(tmp_path, batch=2), 2)


def test_mnn_gets_its_image_anew_for_each_inference(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Tensor:
        def __init__(self, shape: Any, kind: Any, array: Any, layout: Any) -> None:
            assert layout == "NCHW"
            self.array = array

        def getNumpyData(self) -> Any:  # noqa: N802 (MNN's names)
            return self.array

        def copyFrom(self, other: Tensor) -> None:  # noqa: N802
            self.array = other.array.copy()

        def copyToHostTensor(self, host: Tensor) -> None:  # noqa: N802
            host.array[:] = self.array

    taken = Tensor((), "float", np.zeros((1, 2, 3, 4), np.float32), "NCHW")
    given = Tensor((), "float", np.zeros((1, 24), np.float32), "NCHW")
    seen: dict[str, Any] = {}

    class Interpreter:
        def __init__(self, path: str) -> None:
            seen["path"] = path

        def createSession(self, options: dict[str, Any]) -> str:  # noqa: N802
            seen["options"] = options
            return "session"

        def getSessionInput(self, session: str, name: str) -> Tensor:  # noqa: N802
            assert name == "x"
            return taken

        def getSessionOutput(self, session: str, name: str) -> Tensor:  # noqa: N802
            assert name == "y"
            return given

        def resizeTensor(self, tensor: Tensor, shape: Any) -> None:  # noqa: N802
            assert tuple(shape) == (1, 2, 3, 4)

        def resizeSession(self, session: str) -> None:  # noqa: N802
            pass

        def runSession(self, session: str) -> None:  # noqa: N802
            given.array = taken.array.reshape(1, 24).copy()
            taken.array[:] = np.nan  # as MNN may: its layers use the memory

    module = types.SimpleNamespace(
        Interpreter=Interpreter,
        Tensor=Tensor,
        Halide_Type_Float="float",
        Tensor_DimensionType_Caffe="NCHW",
    )
    monkeypatch.setitem(sys.modules, "MNN", module)
    runner = RUNNERS["mnn"](converted(tmp_path), 2)
    assert seen["options"] == {"backend": "CPU", "numThread": 2, "precision": "high"}
    (output,) = runner.prepare([IMAGE])
    np.testing.assert_array_equal(output, IMAGE.reshape(1, 24))
    runner.timer()()
    np.testing.assert_array_equal(given.array, IMAGE.reshape(1, 24))


def test_torch_compiles_in_its_own_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Inductor's helpers would work beside others' turns."""
    monkeypatch.delenv("TORCHINDUCTOR_COMPILE_THREADS", raising=False)
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    seen: dict[str, Any] = {}
    module = types.SimpleNamespace(
        set_num_threads=lambda count: seen.update(threads=count),
        set_grad_enabled=lambda on: seen.update(grad=on),
    )
    monkeypatch.setitem(sys.modules, "torch", module)
    monkeypatch.setattr(converters, "torch_network", lambda folder: None)
    converted(tmp_path)
    cpu_runners.TorchRunner(str(tmp_path), 2, compiled=True)
    assert seen == {"threads": 2, "grad": False}
    assert os.environ["TORCHINDUCTOR_COMPILE_THREADS"] == "1"
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"].startswith(str(tmp_path))
