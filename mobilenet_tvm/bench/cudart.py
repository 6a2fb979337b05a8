"""A CUDA stream and its buffers, for a runtime that brings none: NVIDIA's own bindings."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mobilenet_tvm.bench.worker import AnyArray
from mobilenet_tvm.errors import DeviceError


class Stream:
    """One stream, and device memory by name."""

    def __init__(self) -> None:
        from cuda.bindings import runtime

        self._cuda = runtime
        self._stream = self._call(runtime.cudaStreamCreate)
        self._buffers: dict[str, int] = {}

    @property
    def handle(self) -> int:
        """As other libraries take it."""
        return int(self._stream)

    def buffer(self, name: str, size: int) -> int:
        """The address of ``size`` bytes on the device, called ``name`` from now on."""
        self._buffers[name] = int(self._call(self._cuda.cudaMalloc, size))
        return self._buffers[name]

    def send(self, name: str, array: AnyArray) -> None:
        """Copy a contiguous array to the device."""
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyHostToDevice
        at = self._buffers[name], array.ctypes.data
        self._call(self._cuda.cudaMemcpyAsync, *at, array.nbytes, kind, self._stream)

    def fetch(self, name: str, array: AnyArray) -> None:
        """Copy from the device into a contiguous array, which is whole after ``wait``."""
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyDeviceToHost
        at = array.ctypes.data, self._buffers[name]
        self._call(self._cuda.cudaMemcpyAsync, *at, array.nbytes, kind, self._stream)

    def wait(self) -> None:
        """Until all that was asked for is done."""
        self._call(self._cuda.cudaStreamSynchronize, self._stream)

    def capture(self, launch: Callable[[], None]) -> Callable[[], None]:
        """A function that launches as one CUDA graph what ``launch`` launches on the stream."""
        cuda = self._cuda
        mode = cuda.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._call(cuda.cudaStreamBeginCapture, self._stream, mode)
        launch()
        graph = self._call(cuda.cudaStreamEndCapture, self._stream)
        captured = self._call(cuda.cudaGraphInstantiate, graph, 0)
        return lambda: self._call(cuda.cudaGraphLaunch, captured, self._stream)

    def _call(self, function: Any, *arguments: Any) -> Any:
        status, *results = function(*arguments)
        if status != self._cuda.cudaError_t.cudaSuccess:
            raise DeviceError(f"{function.__name__}: {status.name}")
        return results[0] if results else None
