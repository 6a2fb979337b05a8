"""An artifact run kernel by kernel: the deployed code and memory plan, stopped after each one."""

from __future__ import annotations

import contextlib
import ctypes
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from mobilenet_tvm.devices.rpc import BoardLostError, BoardSession
from mobilenet_tvm.errors import DeviceError, last_line
from mobilenet_tvm.runtime.cuda import opening
from mobilenet_tvm.runtime.cuda import reason as cuda_reason
from mobilenet_tvm.runtime.module import check_inputs, open_library
from mobilenet_tvm.runtime.remote import CALL_S, open_remote

Array = npt.NDArray[Any]

# A remote device's type is above this (tvm.rpc.base.RPC_SESS_MASK).
RPC_SESS_MASK: Final = 128


@dataclass(frozen=True)
class Node:
    """One kernel of the graph: its ``name`` there, and what it reads.

    ``inputs`` are indices into ``Steps.nodes`` of the kernels, and names of the model's inputs,
    that it reads; weights are left out.
    """

    name: str
    inputs: tuple[int | str, ...]


class Steps:
    """An artifact whose kernels run one at a time. Made by ``open_steps``.

    Attributes:
        manifest: of the artifact.
        nodes: its kernels, in the order in which they run.
        heads: of each output of the manifest, the kernel that makes it; None where none does.
    """

    def __init__(self, library: Any, manifest: Any, session: BoardSession | None = None) -> None:
        self.manifest = manifest
        self._session = session
        with self._calls():
            self._open(library)

    def _calls(self) -> contextlib.AbstractContextManager[None]:
        """Around whatever goes to the board, where it is one."""
        if self._session is None:
            return contextlib.nullcontext()
        return self._session.calls(limit_s=CALL_S)

    def _open(self, library: Any) -> None:
        import tvm

        manifest = self.manifest
        graph = json.loads(library["get_graph_json"]())
        self._rows: list[int] = [
            index for index, node in enumerate(graph["nodes"]) if node["op"] != "null"
        ]
        place = {row: index for index, row in enumerate(self._rows)}
        known = {spec.name for spec in manifest.inputs}
        nodes = []
        for row in self._rows:
            node = graph["nodes"][row]
            inputs: list[int | str] = []
            for source, *_ in node["inputs"]:
                name = graph["nodes"][source]["name"]
                if source in place:
                    inputs.append(place[source])
                elif name in known:
                    inputs.append(name)
            nodes.append(Node(node["name"], tuple(inputs)))
        self.nodes = tuple(nodes)
        self.heads = tuple(place.get(row) for row, *_ in graph["heads"])
        outputs = graph["node_row_ptr"]
        # With one output a node: the executor shows its memory by the number of the node alone.
        self._single = outputs == list(range(len(outputs)))
        self._kinds = [graph["nodes"][row]["attrs"]["func_name"] for row in self._rows]
        if self._session is not None:
            self._device = self._session.device()
        else:
            self._device = tvm.cpu(0) if manifest.target.cuda_arch is None else tvm.cuda(0)
        on_gpu = self._session is None and manifest.target.cuda_arch is not None
        with opening(manifest) if on_gpu else contextlib.nullcontext():
            self._executor = library["debug_create"]("default", self._device)

    def run(self, inputs: Mapping[str, Array], *, poison: bool = True) -> Iterator[Array]:
        """One inference; the result of each kernel, as it lies in memory, right after it.

        Args:
            inputs: as ``Module.run`` takes them.
            poison: fill the buffer that a kernel writes with NaN before it runs, so that what it
                does not write, or reads before it has written it, shows. Not done in a graph
                that has a kernel with several outputs.

        Raises:
            UsageError: an input does not fit.
            DeviceError: a kernel raised an error; it is named.
        """
        import tvm

        arrays = check_inputs(self.manifest, inputs)
        with self._calls():
            for name, array in arrays.items():
                self._executor["set_input"](name, tvm.nd.array(array, self._device))
            views = self._buffers() if poison and self._single else None
            # One run from the start: the executor goes on from the node that it ran last.
            self._executor["execute_node"](0)
            run, result = self._executor["execute_node"], self._executor["get_node_output"]
        for index, row in enumerate(self._rows):
            with self._calls():
                if views is not None and self._may_poison(index, views):
                    views[row].copyfrom(np.full(views[row].shape, np.nan, views[row].dtype))
            try:
                with self._calls():
                    run(row)
                    value = result(row, 0).numpy()
            except BoardLostError:
                raise
            except Exception as error:  # whatever TVM raised
                why = cuda_reason(error) if self.manifest.target.cuda_arch else last_line(error)
                raise DeviceError(f"kernel {self.nodes[index].name} fails: {why}") from error
            yield value

    def _buffers(self) -> list[Any]:
        """The buffer of every node's output, by row: views of the executor's own memory."""
        rows = range(self._rows[-1] + 1)
        return [self._executor["debug_get_output"](row) for row in rows]

    def _may_poison(self, index: int, views: list[Any]) -> bool:
        """Not where the output lies over an input (a reshape does nothing at all)."""
        row, node = self._rows[index], self.nodes[index]
        if self._kinds[index] == "__nop" or not views[row].dtype.startswith("float"):
            return False
        read = {
            _address(views[self._rows[source]]) for source in node.inputs if isinstance(source, int)
        }
        return _address(views[row]) not in read


def _address(array: Any) -> int:
    """Where the array's elements lie, here or on the board."""
    data = int(array.handle.contents.data)
    if array.device.device_type < RPC_SESS_MASK:
        return data
    # Of a remote array it points to a RemoteSpace (rpc_session.h), whose first field that is.
    return ctypes.c_void_p.from_address(data).value or 0


def open_steps(path: str | Path, session: BoardSession | None = None) -> Steps:
    """Open an artifact to be run kernel by kernel, after the checks that ``load`` makes.

    With ``session`` on that board, after those of ``load_remote``.

    Raises:
        UsageError: as ``load``.
        DeviceError: as ``load_remote``, and here where the GPU cannot be used or is full.
    """
    if session is None:
        return Steps(*open_library(Path(path)))
    return Steps(*open_remote(session, Path(path)), session)
