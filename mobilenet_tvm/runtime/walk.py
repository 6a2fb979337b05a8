"""An artifact's kernels, timed where they stand: in the model's order, on the model's memory.

The executor is the one that an inference runs on, with its plan of the memory; only the loop over
its kernels is ours, in C (``walk.c``), and reads the clock after each. So a kernel finds the
caches as the one before it left them, and the threads of the pool that it runs on
as awake as in the model.
"""

from __future__ import annotations

import ctypes
import json
import math
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mobilenet_tvm import targets, toolchain
from mobilenet_tvm.build.manifest import LayerInfo, Manifest
from mobilenet_tvm.build.pool import LAUNCH
from mobilenet_tvm.build.static import zig_target
from mobilenet_tvm.errors import DeviceError, UsageError
from mobilenet_tvm.runtime.module import Array, check_inputs, open_library

_SOURCE = Path(__file__).with_name("walk.c")
_DL_TENSOR = 7  # kTVMDLTensorHandle (tvm/runtime/c_runtime_api.h)
_TVMS_LAUNCH = "__TVMBackendParallelLaunch"
_CALLS_OF_OURS = 1000


@dataclass(frozen=True)
class Operand:
    """What a kernel reads.

    ``maker`` is the index of the kernel that made it; None of a weight and of the model's input,
    and ``weight`` tells these apart. Operands of one ``storage`` lie in the same memory.
    """

    shape: tuple[int, ...]
    dtype: str
    storage: int
    maker: int | None = None
    weight: bool = False

    @property
    def size_bytes(self) -> int:
        """Of its elements."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize


@dataclass(frozen=True)
class WalkedKernel:
    """One kernel of the graph: its name there, what it reads, and what it writes."""

    name: str
    operands: tuple[Operand, ...]
    output: Operand


@dataclass(frozen=True)
class _Row:
    """A kernel in TVM's graph: its function, and the entries that it is called with."""

    function: str
    entries: tuple[int, ...]


def walked_kernels(library: Any, manifest: Manifest) -> tuple[WalkedKernel, ...]:
    """The kernels of an artifact that do something, in the order in which they run.

    Raises:
        UsageError: one has several outputs, which no MobileNet has.
    """
    return _read(json.loads(library["get_graph_json"]()), manifest)[0]


def _read(graph: Any, manifest: Manifest) -> tuple[tuple[WalkedKernel, ...], tuple[_Row, ...]]:
    nodes, first = graph["nodes"], graph["node_row_ptr"]
    if first != list(range(len(first))):
        raise UsageError(
            f"{manifest.name} has a kernel with several outputs: its kernels cannot be timed one "
            "by one"
        )
    shapes, dtypes, storages = (
        graph["attrs"][name][1] for name in ("shape", "dltype", "storage_id")
    )
    inputs = {spec.name for spec in manifest.inputs}
    kernels: list[WalkedKernel] = []
    rows: list[_Row] = []
    made: dict[int, int] = {}  # by a row of the graph: the kernel that its value comes from

    def operand(row: int) -> Operand:
        weight = nodes[row]["op"] == "null" and nodes[row]["name"] not in inputs
        return Operand(tuple(shapes[row]), dtypes[row], storages[row], made.get(row), weight)

    for row, node in enumerate(nodes):
        if node["op"] == "null":
            continue
        sources = [source for source, *_ in node["inputs"]]
        if node["attrs"]["func_name"] == "__nop":  # a reshape, that shares its input's memory
            if sources[0] in made:
                made[row] = made[sources[0]]
            continue
        made[row] = len(kernels)
        kernels.append(WalkedKernel(node["name"], tuple(map(operand, sources)), operand(row)))
        rows.append(_Row(node["attrs"]["func_name"], (*sources, row)))
    return tuple(kernels), tuple(rows)


def describe(kernels: Sequence[WalkedKernel], manifest: Manifest) -> tuple[LayerInfo, ...]:
    """What the manifest says of each kernel; its name alone, where that says nothing."""
    infos = {info.kernel: info for info in manifest.layers}
    return tuple(infos.get(kernel.name, LayerInfo(kernel.name)) for kernel in kernels)


class _Call(ctypes.Structure):
    """``struct call`` of ``walk.c``."""

    _fields_ = (
        ("run", ctypes.c_void_p),
        ("values", ctypes.c_void_p),
        ("codes", ctypes.c_void_p),
        ("count", ctypes.c_int64),
    )


class Walk:
    """An artifact whose kernels can be timed. Made by ``open_walk``.

    Attributes:
        manifest: of the artifact.
        kernels: those that do something, in the order in which they run.
    """

    def __init__(self, path: Path, library: Any, manifest: Manifest) -> None:
        import tvm

        self.manifest = manifest
        graph = json.loads(library["get_graph_json"]())
        self.kernels, self._rows = _read(graph, manifest)
        self._executor = library["debug_create"]("default", tvm.cpu(0))
        self._native = _native(manifest)
        # TVM has the file open already: this is the same library, with the same pointers to the
        # runtime in it.
        self._library = ctypes.CDLL(str(path.resolve()))
        self._calls: Any = None
        self._kept: list[Any] = []

    def set_inputs(self, inputs: Mapping[str, Array]) -> None:
        """Check and copy the inputs. Raises as ``Module.run`` does."""
        import tvm

        for name, array in check_inputs(self.manifest, inputs).items():
            self._executor["set_input"](name, tvm.nd.array(array))

    def outputs(self) -> dict[str, Array]:
        """Of the inference that ran last, by whichever way."""
        get = self._executor["get_output"]
        return {spec.name: get(i).numpy() for i, spec in enumerate(self.manifest.outputs)}

    def timer(self) -> Callable[[], object]:
        """A function that runs one inference as the executor does, copying nothing."""
        run: Callable[[], object] = self._executor["run"]
        return run

    def times_us(self, inferences: int) -> npt.NDArray[np.float64]:
        """``[inferences, kernels]``: microseconds of each kernel in each of so many inferences.

        The time of reading the clock is taken off, that of a kernel that does nothing.

        Raises:
            DeviceError: a kernel fails; it is named.
        """
        if self._calls is None:
            self._calls = self._prepared()
        stamps = self._stamps(self._calls, len(self.kernels), inferences)
        clock_ns = self._ns_of_each(self._native.nothing).mean()
        times: npt.NDArray[np.float64] = (np.diff(stamps) - clock_ns) / 1e3
        return times

    def launch_us(self) -> float | None:
        """Microseconds in which a kernel's threads are set going and have all ended, their work
        left out; None where no kernel has any."""
        launch = self._launch()
        if launch is None:
            return None
        taken_ns = self._ns_of_each(self._native.launch_nothing, launch)
        clock_ns = self._ns_of_each(self._native.nothing)
        return float(np.median(taken_ns) - np.median(clock_ns)) / 1e3

    def _launch(self) -> int | None:
        """The address of what the kernels launch through: the artifact's pool, or TVM's."""
        try:
            return ctypes.cast(self._library[LAUNCH], ctypes.c_void_p).value
        except AttributeError:  # it has none of its own, and TVM has filled in a pointer to its
            try:
                return ctypes.c_void_p.in_dll(self._library, _TVMS_LAUNCH).value
            except ValueError:
                return None

    def inference_us(self, inferences: int) -> npt.NDArray[np.float64]:
        """``[inferences]``: microseconds of whole inferences as the executor runs them, one right
        after the other and called from C.

        A caller in Python adds to each what it takes to get its own code back into the caches,
        which the weights went through.

        Raises:
            DeviceError: a kernel fails.
        """
        from tvm._ffi.base import _LIB

        run = self._executor["run"]
        stamps = np.full(inferences + 1, -1)
        call = ctypes.cast(_LIB.TVMFuncCall, ctypes.c_void_p)
        if self._native.repeat(call, run.handle, inferences, stamps.ctypes.data):
            raise DeviceError(f"{self.manifest.name} fails to run")
        times: npt.NDArray[np.float64] = np.diff(stamps) / 1e3
        return times

    def _ns_of_each(self, kernel: Any, values: int | None = None) -> npt.NDArray[np.int64]:
        """Of many calls of a kernel of ``walk.c``, one after the other."""
        calls = (_Call * _CALLS_OF_OURS)()
        for call in calls:
            call.run, call.values = ctypes.cast(kernel, ctypes.c_void_p).value, values
        taken: npt.NDArray[np.int64] = np.diff(self._stamps(calls, _CALLS_OF_OURS, 1)[0])
        return taken

    def _stamps(self, calls: Any, count: int, inferences: int) -> npt.NDArray[np.int64]:
        stamps = np.full((inferences, count + 1), -1)  # every page is there before the clock runs
        failed = self._native.walk(calls, count, inferences, stamps.ctypes.data)
        if failed:
            raise DeviceError(f"kernel {self.kernels[failed - 1].name} fails")
        return stamps

    def _prepared(self) -> Any:
        """``struct call`` for each kernel, with the executor's own memory for arguments."""
        # Its entry, of any node; TVM runs the kernels up to that for it, which does no harm.
        entry = self._executor["debug_get_output"]
        views = {index: entry(index) for row in self._rows for index in row.entries}
        calls = (_Call * len(self._rows))()
        for call, row in zip(calls, self._rows, strict=True):
            try:
                function = getattr(self._library, row.function)
            except AttributeError:
                raise DeviceError(
                    f"{self.manifest.name} has no function {row.function}: compile the model again"
                ) from None
            count = len(row.entries)
            values = (ctypes.c_void_p * count)(
                *(ctypes.cast(views[i].handle, ctypes.c_void_p).value for i in row.entries)
            )
            codes = (ctypes.c_int * count)(*[_DL_TENSOR] * count)
            call.run = ctypes.cast(function, ctypes.c_void_p).value
            call.values, call.codes = ctypes.addressof(values), ctypes.addressof(codes)
            call.count = count
            self._kept += [values, codes]
        self._kept.append(views)
        return calls


def _native(manifest: Manifest) -> Any:
    """``walk.c``, compiled (once, 5 s) and loaded."""
    options = (*zig_target(targets.resolve(manifest.target.preset)), "-shared", "-O2")
    path = toolchain.compiled(_SOURCE, "walk", f"{platform.machine()}.so", options)
    native = ctypes.CDLL(str(path))
    native.walk.argtypes = (ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p)
    native.repeat.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_void_p)
    native.walk.restype = native.repeat.restype = ctypes.c_int64
    return native


def open_walk(path: str | Path) -> Walk:
    """Open an artifact to time its kernels, after the checks that ``load`` makes.

    Raises:
        UsageError: as ``load``; it is for a GPU; or a kernel has several outputs.
        DeviceError: the loop cannot be compiled.
    """
    path = Path(path)
    library, manifest = open_library(path)
    if manifest.target.cuda_arch is not None:
        raise UsageError(f"{path} is for a GPU, and kernels are timed one by one on the CPU only")
    return Walk(path, library, manifest)
