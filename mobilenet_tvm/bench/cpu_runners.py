"""One model in another runtime on the CPU, in a worker's process.

All compute in float32, but for ``openvino-default`` and ``ncnn-default``. A path is a staged
model's folder (``conversions.stage``) or, where the runtime has a format of its own, the converted
one's in it.
Inputs and outputs stay where the runtime has them: what its user would copy or lay out anew for
each inference is timed, and nothing else.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mobilenet_tvm.bench import converters
from mobilenet_tvm.bench.protocol import InputSpec
from mobilenet_tvm.bench.worker import AnyArray, Runner
from mobilenet_tvm.errors import UsageError


class OpenVinoRunner:
    """OpenVINO, for latency. ``default``: in the precision that it takes by itself."""

    def __init__(self, path: str, threads: int, *, default: bool = False) -> None:
        import openvino

        self._openvino = openvino
        self.inputs = converters.read_spec(Path(path)).inputs
        options = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads}
        if not default:
            options["INFERENCE_PRECISION_HINT"] = "f32"
        model = openvino.Core().compile_model(f"{path}/{converters.MODEL}", "CPU", options)
        self._count = len(model.outputs)
        self._request = model.create_infer_request()
        self._tensors: list[Any] = []

    def prepare(self, arrays: Sequence[AnyArray]) -> list[AnyArray]:
        """See ``Runner``."""
        # Shared, so that they must live as long as the request.
        self._tensors = [self._openvino.Tensor(array, shared_memory=True) for array in arrays]
        for index, tensor in enumerate(self._tensors):
            self._request.set_input_tensor(index, tensor)
        self._infer()
        self._infer()
        return [
            np.array(self._request.get_output_tensor(index).data) for index in range(self._count)
        ]

    def timer(self) -> Callable[[], object]:
        """See ``Runner``."""
        return self._infer

    def _infer(self) -> None:
        # Not ``infer``: in Python that gathers a dictionary of the outputs as well (20 us).
        self._request.start_async()
        self._request.wait()


class _ImageRunner:
    """What the runtimes with a format of their own have in common: one image in."""

    title = ""

    def __init__(self, path: str) -> None:
        self.folder = Path(path)
        self.spec = converters.read_spec(self.folder.parent)
        self.image = converters.only_image(self.spec, self.title)
        self.inputs: tuple[InputSpec, ...] = (self.image,)

    def shaped(self, outputs: Sequence[AnyArray]) -> list[AnyArray]:
        """Outputs in ONNX's shapes, copied out of the runtime's memory."""
        found: list[AnyArray] = []
        for spec, output in zip(self.spec.outputs, outputs, strict=True):
            found.append(np.array(output, np.float32).reshape(spec.shape))
        return found


class LiteRtRunner(_ImageRunner):
    """LiteRT's interpreter, the network in XNNPACK, the image in NHWC.

    Not its ``CompiledModel``, which runs the same kernels: with that a V1 1.0-224 took 2-3 % more.
    """

    title = "LiteRT"

    def __init__(self, path: str, threads: int) -> None:
        from ai_edge_litert.interpreter import Interpreter

        super().__init__(path)
        file = str(self.folder / "model.tflite")
        self._interpreter = Interpreter(file, num_threads=threads)
        self._interpreter.allocate_tensors()

    def prepare(self, arrays: Sequence[AnyArray]) -> list[AnyArray]:
        """See ``Runner``."""
        taken = self._interpreter.get_input_details()[0]["index"]
        image = np.ascontiguousarray(arrays[0].transpose(0, 2, 3, 1))
        self._interpreter.set_tensor(taken, image)
        self._interpreter.invoke()
        self._interpreter.invoke()
        given = [detail["index"] for detail in self._interpreter.get_output_details()]
        return self.shaped([self._interpreter.get_tensor(index) for index in given])

    def timer(self) -> Callable[[], object]:
        """See ``Runner``."""
        infer: Callable[[], object] = self._interpreter.invoke
        return infer


class NcnnRunner(_ImageRunner):
    """ncnn with all its layouts and algorithms, its memory from pools.

    ``default``: with the 16-bit storage and arithmetic that it has on by itself, where the CPU
    has instructions for them.
    """

    title = "ncnn"

    def __init__(self, path: str, threads: int, *, default: bool = False) -> None:
        import ncnn

        super().__init__(path)
        if self.image.shape[0] != 1:
            raise UsageError(f"ncnn runs one image at a time, not {self.image.shape[0]}")
        self._ncnn, self._net = ncnn, ncnn.Net()
        options = self._net.opt
        options.num_threads = threads
        options.use_vulkan_compute = False
        for name in () if default else dir(options):
            if name.startswith(("use_fp16_", "use_bf16_")):
                setattr(options, name, False)
        for name in ("lightmode", "use_packing_layout", "use_sgemm_convolution"):
            setattr(options, name, True)
        options.use_winograd_convolution = True
        # Kept here: the options only point to them. The second is for its threads, so it locks.
        self._pools = ncnn.UnlockedPoolAllocator(), ncnn.PoolAllocator()
        options.blob_allocator, options.workspace_allocator = self._pools
        self._net.opt = options
        stem = str(self.folder / "model.ncnn")
        if self._net.load_param(f"{stem}.param") or self._net.load_model(f"{stem}.bin"):
            raise UsageError(f"ncnn cannot load {stem}.param")
        self._names = self._net.input_names()[0], list(self._net.output_names())
        self._array, self._mat = np.empty(0), ncnn.Mat()
        self._outputs: list[Any] = []

    def prepare(self, arrays: Sequence[AnyArray]) -> list[AnyArray]:
        """See ``Runner``."""
        self._array = arrays[0][0]
        self._mat = self._ncnn.Mat(self._array)  # no copy
        self._infer()
        self._infer()
        return self.shaped([np.array(output) for output in self._outputs])

    def timer(self) -> Callable[[], object]:
        """See ``Runner``."""
        return self._infer

    def _infer(self) -> None:
        taken, given = self._names
        extractor = self._net.create_extractor()
        extractor.input(taken, self._mat)
        outputs = []
        for name in given:
            status, output = extractor.extract(name)
            if status:
                raise UsageError(f"ncnn cannot compute {name} ({status})")
            outputs.append(output)
        self._outputs = outputs


class MnnRunner(_ImageRunner):
    """MNN's interpreter in its high precision (float32).

    Each inference begins with the copy of the image into the session, as its user's does: a
    session lends that memory to its layers.
    """

    title = "MNN"

    def __init__(self, path: str, threads: int) -> None:
        import MNN

        super().__init__(path)
        self._mnn = MNN
        self._interpreter = MNN.Interpreter(str(self.folder / "model.mnn"))
        self._session = self._interpreter.createSession(
            {"backend": "CPU", "numThread": threads, "precision": "high"}
        )
        self._taken = self._interpreter.getSessionInput(self._session, self.image.name)
        shape = converters.image_shape(self.image)
        self._interpreter.resizeTensor(self._taken, shape)
        self._interpreter.resizeSession(self._session)
        self._image = self._tensor(shape, np.zeros(shape, np.float32))

    def prepare(self, arrays: Sequence[AnyArray]) -> list[AnyArray]:
        """See ``Runner``."""
        self._image = self._tensor(arrays[0].shape, arrays[0])
        self._infer()
        self._infer()
        found = []
        for spec in self.spec.outputs:
            output = self._interpreter.getSessionOutput(self._session, spec.name)
            host = self._tensor(spec.shape, np.zeros(spec.shape, np.float32))
            output.copyToHostTensor(host)
            found.append(host.getNumpyData())
        return self.shaped(found)

    def timer(self) -> Callable[[], object]:
        """See ``Runner``."""
        return self._infer

    def _infer(self) -> None:
        self._taken.copyFrom(self._image)
        self._interpreter.runSession(self._session)

    def _tensor(self, shape: Sequence[int], array: AnyArray) -> Any:
        """In NCHW, whatever the session's own layout is."""
        mnn = self._mnn
        layout = mnn.Tensor_DimensionType_Caffe
        return mnn.Tensor(tuple(shape), mnn.Halide_Type_Float, array, layout)


class TorchRunner:
    """PyTorch: TorchScript, frozen, on oneDNN with packed weights; ``compiled``: Inductor."""

    def __init__(self, path: str, threads: int, *, compiled: bool = False) -> None:
        # Read when it is first used. In processes of its own it would compile beside others' turns.
        os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(Path(path) / "inductor"))
        import torch

        self._torch, self._compiled = torch, compiled
        torch.set_num_threads(threads)
        torch.set_grad_enabled(False)
        self.inputs = converters.read_spec(Path(path)).inputs
        self._network = converters.torch_network(Path(path))
        self._taken: list[Any] = []
        self._given: Any = None

    def prepare(self, arrays: Sequence[AnyArray]) -> list[AnyArray]:
        """See ``Runner``."""
        torch = self._torch
        self._taken = [torch.from_numpy(array) for array in arrays]
        if self._compiled:
            import torch._inductor.config as inductor

            inductor.freezing = True  # weights are constants: BatchNorm folded, packed once
            self._network = torch.compile(self._network)
        else:
            traced = torch.jit.trace(self._network, tuple(self._taken))
            self._network = torch.jit.optimize_for_inference(torch.jit.freeze(traced))
        for _ in range(3):  # TorchScript watches two runs before it specialises
            self._infer()
        given = self._given if isinstance(self._given, (list, tuple)) else [self._given]
        return [output.numpy().copy() for output in given]

    def timer(self) -> Callable[[], object]:
        """See ``Runner``."""
        return self._infer

    def _infer(self) -> None:
        self._given = self._network(*self._taken)


RUNNERS: dict[str, Callable[[str, int], Runner]] = {
    "openvino": OpenVinoRunner,
    "openvino-default": functools.partial(OpenVinoRunner, default=True),
    "litert": LiteRtRunner,
    "ncnn": NcnnRunner,
    "ncnn-default": functools.partial(NcnnRunner, default=True),
    "mnn": MnnRunner,
    "cpu-torch": TorchRunner,
    "cpu-torch-compiled": functools.partial(TorchRunner, compiled=True),
}
