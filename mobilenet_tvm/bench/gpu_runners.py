"""One model in one runtime on this machine's GPU, in a worker's process.

All compute in float32: TF32, which rounds a product's factors to 10 bits, is off, but for
``tensorrt-tf32``. Copies are from and to pageable memory, as numpy has it, for everybody.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mobilenet_tvm.bench import protocol
from mobilenet_tvm.bench.cudart import Stream
from mobilenet_tvm.bench.worker import AnyArray, GpuRunner, ModuleRunner, OnnxRuntimeRunner
from mobilenet_tvm.errors import UsageError, last_line


def _forbid_tf32() -> None:
    # NVIDIA's libraries read it when they are loaded, and then obey it before their callers.
    os.environ["NVIDIA_TF32_OVERRIDE"] = "0"


class CudaArtifactRunner(ModuleRunner):
    """An artifact of ours. ``graph``: its kernels are launched as one CUDA graph."""

    def __init__(self, path: str, *, graph: bool = False) -> None:
        from mobilenet_tvm import runtime

        super().__init__(runtime.load(Path(path), cuda_graph=graph))

    def round_trip(self, arrays: Sequence[AnyArray]) -> Callable[[], object]:
        """See ``GpuRunner``."""
        return functools.partial(self._module.run, self._named(arrays))


class CudaOnnxRuntimeRunner:
    """An ONNX file in ONNX Runtime on the GPU, all its optimisations on.

    Args:
        path: the file.
        graph: launch an inference as one CUDA graph.
        device: ``cpu`` runs the same steps there, to try them where there is no GPU.
    """

    def __init__(self, path: str, *, graph: bool = False, device: str = "cuda") -> None:
        _forbid_tf32()
        import onnxruntime

        self._ort, self._device = onnxruntime, device
        if device == "cuda" and hasattr(onnxruntime, "preload_dlls"):
            onnxruntime.preload_dlls()  # CUDA and cuDNN from NVIDIA's wheels
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        chosen = {"use_tf32": "0", "enable_cuda_graph": str(int(graph))}
        gpu = [("CUDAExecutionProvider", chosen)] if device == "cuda" else []
        try:
            self._session = onnxruntime.InferenceSession(
                path, options, providers=[*gpu, "CPUExecutionProvider"]
            )
        except Exception as error:  # it raises a type of its own for every cause
            raise UsageError(f"ONNX Runtime cannot load {path}: {last_line(error)}") from None
        # What it lacks for a GPU it says on stderr, and goes on with the CPU.
        if gpu and self._session.get_providers()[0] != gpu[0][0]:
            raise UsageError(
                "ONNX Runtime cannot use the GPU: its CUDA or cuDNN does not load "
                "(pip install 'onnxruntime-gpu[cuda,cudnn]')"
            )
        self.inputs = tuple(OnnxRuntimeRunner.spec(node) for node in self._session.get_inputs())
        self._binding = self._session.io_binding()
        self._given: list[Any] = []
        self._results: list[Any] = []

    def prepare(self, arrays: Sequence[AnyArray]) -> list[AnyArray]:
        """See ``Runner``."""
        # A captured graph reads and writes where it did when it was captured, so both stay there.
        self._given = [self._value(array) for array in arrays]
        for spec, value in zip(self.inputs, self._given, strict=True):
            self._binding.bind_ortvalue_input(spec.name, value)
        outputs = self._session.get_outputs()
        for node in outputs:
            self._binding.bind_output(node.name, "cpu")
        self._session.run_with_iobinding(self._binding, self._no_capture())
        found: list[AnyArray] = self._binding.copy_outputs_to_cpu()
        self._results = [self._value(np.zeros_like(array)) for array in found]
        self._binding.clear_binding_outputs()
        for node, value in zip(outputs, self._results, strict=True):
            self._binding.bind_ortvalue_output(node.name, value)
        self._session.run_with_iobinding(self._binding)
        return [np.array(value.numpy()) for value in self._results]

    def timer(self) -> Callable[[], object]:
        """See ``Runner``. ONNX Runtime waits for the GPU at the end of a run."""
        session, binding = self._session, self._binding
        return lambda: session.run_with_iobinding(binding)

    def round_trip(self, arrays: Sequence[AnyArray]) -> Callable[[], object]:
        """See ``GpuRunner``."""
        infer = self.timer()

        def once() -> list[AnyArray]:
            for value, array in zip(self._given, arrays, strict=True):
                value.update_inplace(array)
            infer()
            return [value.numpy() for value in self._results]

        return once

    def _value(self, array: AnyArray) -> Any:
        return self._ort.OrtValue.ortvalue_from_numpy(array, self._device, 0)

    def _no_capture(self) -> Any:
        """Options of a run that is not captured: its outputs stay nowhere."""
        options = self._ort.RunOptions()
        options.add_run_config_entry("gpu_graph_id", "-1")
        return options


class TensorRtRunner:
    """An ONNX file in TensorRT: an engine built for the shapes that are asked for."""

    def __init__(self, path: str, *, graph: bool = False, tf32: bool = False) -> None:
        if not tf32:
            _forbid_tf32()
        import tensorrt

        self._trt, self._graph, self._tf32 = tensorrt, graph, tf32
        self._logger = tensorrt.Logger(tensorrt.Logger.ERROR)
        self._builder = tensorrt.Builder(self._logger)
        explicit = getattr(tensorrt.NetworkDefinitionCreationFlag, "EXPLICIT_BATCH", None)
        self._network = self._builder.create_network(0 if explicit is None else 1 << int(explicit))
        parser = tensorrt.OnnxParser(self._network, self._logger)
        if not parser.parse_from_file(path):
            said = "; ".join(str(parser.get_error(i)) for i in range(parser.num_errors))
            raise UsageError(f"TensorRT cannot read {path}: {said}")
        tensors = [self._network.get_input(i) for i in range(self._network.num_inputs)]
        self.inputs = tuple(
            protocol.InputSpec(
                tensor.name,
                tuple(size if size >= 0 else None for size in tensor.shape),
                np.dtype(tensorrt.nptype(tensor.dtype)).name,
            )
            for tensor in tensors
        )
        self._output_names = [
            self._network.get_output(i).name for i in range(self._network.num_outputs)
        ]

    def prepare(self, arrays: Sequence[AnyArray]) -> list[AnyArray]:
        """See ``Runner``."""
        engine = self._build(arrays)
        context = engine.create_execution_context()
        self._alive = engine, context
        self._stream = stream = Stream()
        for spec, array in zip(self.inputs, arrays, strict=True):
            context.set_input_shape(spec.name, array.shape)
            context.set_tensor_address(spec.name, stream.buffer(spec.name, array.nbytes))
        self._host = {}
        for name in self._output_names:
            dtype = self._trt.nptype(engine.get_tensor_dtype(name))
            self._host[name] = array = np.zeros(tuple(context.get_tensor_shape(name)), dtype)
            context.set_tensor_address(name, stream.buffer(name, array.nbytes))

        def launch() -> None:
            if not context.execute_async_v3(stream.handle):
                raise UsageError("TensorRT cannot run its engine")

        launch()  # what it sets up by itself must not be within a capture
        stream.wait()
        self._launch = stream.capture(launch) if self._graph else launch
        self.round_trip(arrays)()
        return [self._host[name].copy() for name in self._output_names]

    def timer(self) -> Callable[[], object]:
        """See ``Runner``."""
        launch, wait = self._launch, self._stream.wait

        def once() -> None:
            launch()
            wait()

        return once

    def round_trip(self, arrays: Sequence[AnyArray]) -> Callable[[], object]:
        """See ``GpuRunner``."""
        stream = self._stream

        def once() -> None:
            for spec, array in zip(self.inputs, arrays, strict=True):
                stream.send(spec.name, array)
            self._launch()
            for name, array in self._host.items():
                stream.fetch(name, array)
            stream.wait()

        return once

    def _build(self, arrays: Sequence[AnyArray]) -> Any:
        trt = self._trt
        config = self._builder.create_builder_config()
        (config.set_flag if self._tf32 else config.clear_flag)(trt.BuilderFlag.TF32)
        if any(None in spec.shape for spec in self.inputs):
            profile = self._builder.create_optimization_profile()
            for spec, array in zip(self.inputs, arrays, strict=True):
                profile.set_shape(spec.name, array.shape, array.shape, array.shape)
            config.add_optimization_profile(profile)
        plan = self._builder.build_serialized_network(self._network, config)
        if plan is None:
            raise UsageError("TensorRT cannot build an engine of the model")
        self._runtime = trt.Runtime(self._logger)
        return self._runtime.deserialize_cuda_engine(plan)


class TorchRunner:
    """An ONNX file in PyTorch, converted by onnx2torch.

    Args:
        path: the file.
        compiled: by ``torch.compile(mode="reduce-overhead")``, which launches CUDA graphs.
        device: ``cpu`` runs the same steps there.
    """

    def __init__(self, path: str, *, compiled: bool = False, device: str = "cuda") -> None:
        _forbid_tf32()
        import onnx2torch
        import torch

        self._torch, self._device = torch, device
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.allow_tf32 = False
        torch.backends.cudnn.benchmark = True  # it tries cuDNN's algorithms, as others do
        self.inputs = _onnx_inputs(path)
        model = onnx2torch.convert(path).eval().to(device)
        self._model = torch.compile(model, mode="reduce-overhead") if compiled else model
        self._given: list[Any] = []

    def prepare(self, arrays: Sequence[AnyArray]) -> list[AnyArray]:
        """See ``Runner``."""
        self._given = [self._torch.from_numpy(array).to(self._device) for array in arrays]
        found: list[AnyArray] = self.round_trip(arrays)()  # type: ignore[assignment]
        return found

    def timer(self) -> Callable[[], object]:
        """See ``Runner``."""

        def once() -> None:
            self._infer(self._given)
            self._wait()

        return once

    def round_trip(self, arrays: Sequence[AnyArray]) -> Callable[[], object]:
        """See ``GpuRunner``."""

        def once() -> list[AnyArray]:
            given = [self._torch.from_numpy(array).to(self._device) for array in arrays]
            return [value.cpu().numpy() for value in self._infer(given)]

        return once

    def _infer(self, given: list[Any]) -> Sequence[Any]:
        with self._torch.inference_mode():
            found = self._model(*given)
        return found if isinstance(found, tuple | list) else (found,)

    def _wait(self) -> None:
        if self._device == "cuda":
            self._torch.cuda.synchronize()


def _onnx_inputs(path: str) -> tuple[protocol.InputSpec, ...]:
    import onnx

    graph = onnx.load(path, load_external_data=False).graph
    constants = {initializer.name for initializer in graph.initializer}
    specs = []
    for value in graph.input:
        if value.name in constants:
            continue
        tensor = value.type.tensor_type
        shape = tuple(
            dim.dim_value if dim.HasField("dim_value") else None for dim in tensor.shape.dim
        )
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)
        specs.append(protocol.InputSpec(value.name, shape, dtype.name))
    return tuple(specs)


RUNNERS: dict[str, Callable[[str], GpuRunner]] = {
    "cuda-artifact": CudaArtifactRunner,
    "cuda-artifact-graph": functools.partial(CudaArtifactRunner, graph=True),
    "cuda-onnxruntime": CudaOnnxRuntimeRunner,
    "cuda-onnxruntime-graph": functools.partial(CudaOnnxRuntimeRunner, graph=True),
    "tensorrt": TensorRtRunner,
    "tensorrt-graph": functools.partial(TensorRtRunner, graph=True),
    "tensorrt-tf32": functools.partial(TensorRtRunner, tf32=True),
    "torch": TorchRunner,
    "torch-compiled": functools.partial(TorchRunner, compiled=True),
}
