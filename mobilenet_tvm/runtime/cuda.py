"""An artifact whose kernels run on a GPU, or on the emulator."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from mobilenet_tvm import cuda
from mobilenet_tvm.build.cuda_info import read_source
from mobilenet_tvm.build.manifest import Manifest
from mobilenet_tvm.cuda import sources, switch
from mobilenet_tvm.errors import DeviceError, carries_interrupt, last_line
from mobilenet_tvm.runtime.module import Array, Module


def prepare(path: Path, manifest: Manifest) -> None:
    """Make this process able to load an artifact's kernels.

    Raises:
        CudaError: the plug-in cannot be built or loaded.
        UsageError: the emulator runs them, and their source is missing or not the artifact's.
    """
    if not cuda.emulated():
        cuda.activate()
        return
    if manifest.target.cuda_arch is not None:
        switch.emulate(manifest.target.cuda_arch)
    cuda.activate()
    if manifest.cuda is not None:
        digest = manifest.cuda.image_digest.removeprefix("sha256:")
        sources.add(read_source(path, manifest.cuda), digest)


def open_module(library: Any, manifest: Manifest, *, cuda_graph: bool = False) -> CudaModule:
    """A loaded artifact on this process's CUDA device, which gets its weights.

    Raises:
        DeviceError: the device cannot be used, or its memory is full.
    """
    import tvm
    from tvm.contrib import graph_executor

    device = tvm.cuda(0)
    executor: Any
    with opening(manifest):
        if cuda_graph:
            executor = CapturedExecutor(library["cuda_graph_create"](device), device)
        else:
            executor = graph_executor.GraphModule(library["default"](device))
    return CudaModule(executor, manifest, device)


@contextlib.contextmanager
def opening(manifest: Manifest) -> Iterator[None]:
    """TVM's errors within the block, which is the first to use the device, in one line.

    Raises:
        DeviceError: what went wrong, and what to look at.
    """
    try:
        yield
    except RuntimeError as error:
        if carries_interrupt(error):
            raise
        text = f"{manifest.name} cannot be opened on {_where()}: {reason(error)}"
        if not cuda.emulated():
            text += "; look at its memory and its driver with nvidia-smi"
        raise DeviceError(text) from error


class CudaModule(Module):
    """A compiled model on a GPU, or on the emulator. Made by ``load``.

    Its methods raise as ``Module``'s, and a ``DeviceError`` where a kernel fails or memory is out.
    """

    def __init__(self, executor: Any, manifest: Manifest, device: Any) -> None:
        super().__init__(executor, manifest)
        self._device = device

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """One inference. See ``Module.run``."""
        with self._told():
            return super().run(inputs)

    def set_inputs(self, inputs: Mapping[str, Array]) -> None:
        """Check and copy the inputs without running. See ``Module.run``."""
        with self._told():
            super().set_inputs(inputs)

    def run_in_other_order(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """One inference on the emulator, with the threads of a block in the other order: where
        they share memory without waiting for each other, that gives other bits."""
        with switch.other_order():
            return self.run(inputs)

    def timer(self) -> Callable[[], None]:
        """As ``Module.timer``; the function returns when the GPU has finished."""
        run, sync = self._executor.run, self._device.sync

        def once() -> None:
            try:
                run()  # returns when the kernels are queued
                sync()
            except RuntimeError as error:
                raise self._failure(error) from error

        return once

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        """TVM's errors within the block in one line."""
        try:
            yield
        except RuntimeError as error:
            raise self._failure(error) from error

    def _failure(self, error: RuntimeError) -> DeviceError:
        if carries_interrupt(error):
            raise error
        return DeviceError(f"{self.manifest.name} fails on {_where()}: {reason(error)}")


def _where() -> str:
    return "the emulated GPU" if cuda.emulated() else "the GPU"


# What it is without the name of TVM's check. A child sends its traceback with it.
_TOLD = re.compile(
    r"(?:TVMError|InternalError): (?!Traceback)"
    r"(?:CUDALaunch Error: |Check failed: \(e == cudaSuccess[^)]*\) is false: )?(.+)"
)


def reason(error: BaseException) -> str:
    """What went wrong on the device, of an error of TVM's: its last lines are only where."""
    told = _TOLD.findall(str(error))
    return str(told[-1]) if told else last_line(error)


@contextlib.contextmanager
def _silent_stderr() -> Iterator[None]:
    """What native code writes to stderr within the block goes nowhere."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


class CapturedExecutor:
    """TVM's graph executor with all launches of an inference in one CUDA graph.

    The graph is captured by the first ``run``. Inputs and outputs keep their place on the device,
    so it serves all later ones.
    """

    def __init__(self, module: Any, device: Any) -> None:
        from tvm.contrib import graph_executor

        self._plain = graph_executor.GraphModule(module)
        self._start, self._end = module["start_capture"], module["end_capture"]
        self._launch = module["run_cuda_graph"]
        self._device = device
        self._captured = False
        self.set_input, self.get_output = self._plain.set_input, self._plain.get_output

    def run(self) -> None:
        """One inference; it returns when that is done."""
        if not self._captured:
            self._capture()
        self._launch()

    def _capture(self) -> None:
        self._plain.run()  # loads the kernels, which must not happen within a capture
        self._device.sync()
        self._start()
        try:
            self._plain.run()
        finally:
            with _silent_stderr():  # TVM logs how many launches it captured
                self._end()
            # It leaves its stream behind as the thread's, which no copy of TVM's waits for: other
            # modules of this process would be read before they have run.
            self._device.set_raw_stream(ctypes.c_void_p(None))
        self._captured = True
