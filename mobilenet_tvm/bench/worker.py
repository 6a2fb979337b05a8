"""The child that holds one contender: ``python -m mobilenet_tvm.bench.worker PARENT THREADS``.

Requests come as JSON lines on stdin, replies go as JSON lines to the original stdout (see
``protocol``). The parent has fixed the number of threads in the environment before this
process, and so any runtime in it, started.
"""

from __future__ import annotations

import gc
import os
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Protocol, runtime_checkable

import msgspec
import numpy as np
import numpy.typing as npt

from mobilenet_tvm import toolchain
from mobilenet_tvm.bench import protocol
from mobilenet_tvm.bench.cores import confine, fastest_cores
from mobilenet_tvm.errors import UsageError

AnyArray = npt.NDArray[Any]

# ONNX Runtime's names for the element types that an image network may take.
_ORT_DTYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(double)": "float64",
    "tensor(uint8)": "uint8",
    "tensor(int8)": "int8",
    "tensor(int32)": "int32",
    "tensor(int64)": "int64",
}


class Runner(Protocol):
    """One model in one runtime."""

    inputs: tuple[protocol.InputSpec, ...]

    def prepare(self, arrays: Sequence[AnyArray]) -> list[AnyArray]:
        """Set the inputs, run once, return the outputs (both in the model's order)."""

    def timer(self) -> Callable[[], object]:
        """A function that runs one inference on the inputs set last, without copies."""


@runtime_checkable
class GpuRunner(Runner, Protocol):
    """One model in one runtime on a GPU. ``timer``'s function returns when the GPU has finished."""

    def round_trip(self, arrays: Sequence[AnyArray]) -> Callable[[], object]:
        """A function that copies the inputs to the GPU, runs one inference, copies the outputs
        back, and returns when they are there."""


class ModuleRunner:
    """An artifact of ours, as ``runtime.load`` gives it."""

    def __init__(self, module: Any) -> None:
        self._module = module
        manifest = module.manifest
        self._outputs = [spec.name for spec in manifest.outputs]
        self.inputs = tuple(
            protocol.InputSpec(spec.name, spec.shape, spec.dtype) for spec in manifest.inputs
        )

    def prepare(self, arrays: Sequence[AnyArray]) -> list[AnyArray]:
        """See ``Runner``."""
        outputs = self._module.run(self._named(arrays))
        return [outputs[name] for name in self._outputs]

    def timer(self) -> Callable[[], object]:
        """See ``Runner``."""
        timer: Callable[[], object] = self._module.timer()
        return timer

    def _named(self, arrays: Sequence[AnyArray]) -> dict[str, AnyArray]:
        return dict(zip((spec.name for spec in self.inputs), arrays, strict=True))


class ArtifactRunner(ModuleRunner):
    """An artifact of ours on the CPU."""

    def __init__(self, path: str, threads: int) -> None:
        from mobilenet_tvm import runtime

        super().__init__(runtime.load(Path(path), threads=threads))


class LayersRunner:
    """An artifact of ours on the CPU, whose kernels are timed one by one. The number of threads is
    the one that this process began with."""

    def __init__(self, path: str, _threads: int) -> None:
        from mobilenet_tvm.runtime.walk import open_walk

        self._walk = open_walk(path)
        self.inputs = tuple(
            protocol.InputSpec(spec.name, spec.shape, spec.dtype)
            for spec in self._walk.manifest.inputs
        )

    def prepare(self, arrays: Sequence[AnyArray]) -> list[AnyArray]:
        """See ``Runner``."""
        self._walk.set_inputs(dict(zip((spec.name for spec in self.inputs), arrays, strict=True)))
        self._walk.timer()()
        return list(self._walk.outputs().values())

    def timer(self) -> Callable[[], object]:
        """See ``Runner``."""
        return self._walk.timer()

    def walk(self, request: protocol.Walk) -> protocol.Walked:
        """See ``protocol.Walk``."""
        found: dict[str, AnyArray] = {"inference": np.empty(0)}
        ways = {"kernels": self._walk.times_us, "inference": self._walk.inference_us}
        if request.kernels_only:
            del ways["inference"]
        for name in sorted(ways, reverse=request.kernels_first):
            ways[name](request.warmup)
            found[name] = ways[name](request.inferences)
        kernels_us, inference_us = _wired(found["kernels"]), _wired(found["inference"])
        return protocol.Walked(kernels_us, inference_us, self._walk.launch_us())


class OnnxRuntimeRunner:
    """An ONNX file in ONNX Runtime, all its optimisations on."""

    def __init__(self, path: str, threads: int) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        try:
            self._session = onnxruntime.InferenceSession(
                path, options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # it raises a type of its own for every cause
            raise UsageError(f"ONNX Runtime cannot load {path}: {_one_line(error)}") from None
        self.inputs = tuple(self.spec(node) for node in self._session.get_inputs())
        self._binding = self._session.io_binding()
        self._bound: list[AnyArray] = []

    @staticmethod
    def spec(node: Any) -> protocol.InputSpec:
        """What an input of a session takes; UsageError for what cannot be made up."""
        if node.type not in _ORT_DTYPES:
            raise UsageError(f"input {node.name} is a {node.type}, which bench cannot make up")
        shape = tuple(d if isinstance(d, int) and d > 0 else None for d in node.shape)
        return protocol.InputSpec(node.name, shape, _ORT_DTYPES[node.type])

    def prepare(self, arrays: Sequence[AnyArray]) -> list[AnyArray]:
        """See ``Runner``."""
        self._bound = list(arrays)  # the binding points into these arrays
        for spec, array in zip(self.inputs, arrays, strict=True):
            self._binding.bind_cpu_input(spec.name, array)
        for node in self._session.get_outputs():
            self._binding.bind_output(node.name, "cpu")
        self._session.run_with_iobinding(self._binding)
        outputs: list[AnyArray] = self._binding.copy_outputs_to_cpu()
        return outputs

    def timer(self) -> Callable[[], object]:
        """See ``Runner``."""
        session, binding = self._session, self._binding
        return lambda: session.run_with_iobinding(binding)


RUNNERS: dict[str, Callable[[str, int], Runner]] = {
    "artifact": ArtifactRunner,
    "onnxruntime": OnnxRuntimeRunner,
    "layers": LayersRunner,
}


def make_runner(kind: str, path: str, threads: int) -> Runner:
    """The runner of a contender, its model loaded."""
    if kind in RUNNERS:
        return RUNNERS[kind](path, threads)
    from mobilenet_tvm.bench import cpu_runners

    if kind in cpu_runners.RUNNERS:
        return cpu_runners.RUNNERS[kind](path, threads)
    from mobilenet_tvm.bench import gpu_runners

    return gpu_runners.RUNNERS[kind](path)


def random_inputs(
    specs: Sequence[protocol.InputSpec], shapes: Sequence[tuple[int, ...]], seed: int
) -> list[AnyArray]:
    """The same inputs for the same seed in every worker: uniform in [-1, 1), whole numbers in
    [0, 128) for integer inputs."""
    generator = np.random.default_rng(seed)
    arrays: list[AnyArray] = []
    for spec, shape in zip(specs, shapes, strict=True):
        dtype = np.dtype(spec.dtype)
        if dtype.kind == "f":
            arrays.append(generator.uniform(-1, 1, shape).astype(dtype))
        else:
            arrays.append(generator.integers(0, 128, shape).astype(dtype))
    return arrays


def time_inferences(infer: Callable[[], object], inferences: int) -> tuple[float, ...]:
    """Milliseconds of each of ``inferences`` calls."""
    times_ms = []
    for _ in range(inferences):
        begin = time.perf_counter()
        infer()
        times_ms.append((time.perf_counter() - begin) * 1e3)
    return tuple(times_ms)


class Server:
    """Answers requests; the model is loaded by the first of them."""

    def __init__(self) -> None:
        self._runner: Runner | None = None
        self._infer: Callable[[], object] | None = None
        self._round_trip: Callable[[], object] | None = None

    def answer(self, request: protocol.Request) -> protocol.Reply:
        """Do what is asked.

        Raises:
            UsageError: the model cannot be loaded or is not the one that was asked for.
        """
        if isinstance(request, protocol.Load):
            self._runner = make_runner(request.kind, request.path, request.threads)
            return protocol.Loaded(self._runner.inputs)
        if isinstance(request, protocol.Prepare):
            if self._runner is None:
                raise UsageError("prepare before load")
            arrays = random_inputs(self._runner.inputs, request.shapes, request.seed)
            outputs = [np.ascontiguousarray(a) for a in self._runner.prepare(arrays)]
            self._infer = self._runner.timer()
            inference_ms, round_trip_ms = _first_look(self._infer), None
            if isinstance(self._runner, GpuRunner):
                self._round_trip = self._runner.round_trip(arrays)
                round_trip_ms = _first_look(self._round_trip)
            return protocol.Prepared(tuple(map(_wired, outputs)), inference_ms, round_trip_ms)
        if isinstance(request, protocol.Walk):
            if not isinstance(self._runner, LayersRunner):
                raise UsageError("walk before load")
            return self._runner.walk(request)
        infer = self._round_trip if request.copies else self._infer
        if infer is None:
            raise UsageError("measure before prepare")
        time_inferences(infer, request.warmup)
        return protocol.Measured(time_inferences(infer, request.inferences))


def _wired(array: AnyArray) -> protocol.Array:
    return protocol.Array(array.shape, array.dtype.name, array.tobytes())


def _first_look(infer: Callable[[], object]) -> float:
    """Milliseconds of an inference; the first call, which settles memory and threads, is left
    out."""
    return statistics.median(time_inferences(infer, 4)[1:])


def serve(requests: BinaryIO, replies: BinaryIO) -> None:
    """Answer line after line until the parent closes the pipe."""
    server = Server()
    for line in requests:
        reply: protocol.Reply
        try:
            reply = server.answer(msgspec.json.decode(line, type=protocol.Request))
        except UsageError as error:
            reply = protocol.Failed(_one_line(error), usage=True)
        except Exception as error:
            traceback.print_exc()
            reply = protocol.Failed(f"{type(error).__name__}: {_one_line(error)}", usage=False)
        replies.write(msgspec.json.encode(reply) + b"\n")
        replies.flush()


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:500]


def main() -> None:
    """Serve the parent whose process id is the first argument, on as many cores as the second."""
    parent, threads = map(int, sys.argv[1:])
    toolchain.die_with_parent(parent)
    confine(fastest_cores(threads))
    # Whatever a library prints must not get between the replies: it goes to stderr.
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    gc.disable()
    serve(sys.stdin.buffer, replies)


if __name__ == "__main__":
    main()
