"""How a kernel reads and writes memory, found from its lowered code with no GPU.

Each load and store is looked at for a sample of the warps that execute it: blocks, warps of the
block and turns of the loops around it, the same ones in every run. For such a warp the addresses
of all threads are computed, and what the memory makes of them is counted (``transactions``):
sectors of 32 bytes in global memory, turns of the 32 banks in shared memory. What the compiler
merges is counted as often as it is written, and caches are not looked at.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from mobilenet_tvm.cuda.indices import BINARY, Array, UnknownError, Values, call_name, evaluate, key
from mobilenet_tvm.cuda.transactions import WARP, sectors, turns

# How many warps and turns of loops each access is looked at for.
_SAMPLES = 64

Dimensions = tuple[int, int, int]


@dataclass(frozen=True)
class Access:
    """One load or store in the code, over a whole launch.

    Attributes:
        buffer: its name in the code.
        space: which memory.
        store: whether it writes.
        thread_bytes: that one thread asks for at once.
        requests: of a warp.
        transactions: sectors of global memory, or turns of shared memory, that they take.
        ideal: as few as they could be for as many different bytes.
    """

    buffer: str
    space: Literal["global", "shared"]
    store: bool
    thread_bytes: int
    requests: float
    transactions: float
    ideal: float


@dataclass(frozen=True)
class MemoryUse:
    """What a kernel does with memory.

    Attributes:
        grid: blocks as launched, x y z.
        block: threads as launched, x y z.
        accesses: in the order of the code.
        unknown: how many more there are that depend on what is in memory.
    """

    grid: Dimensions
    block: Dimensions
    accesses: tuple[Access, ...]
    unknown: int

    @property
    def global_efficiency(self) -> float:
        """Ideal sectors of those taken, 0 to 1; 1 where there is no access."""
        taken, ideal = self._sums("global")
        return ideal / taken if taken else 1.0

    @property
    def bank_conflicts(self) -> float:
        """Turns of shared memory for each that is needed, 1 or more; 1 where there is none."""
        taken, ideal = self._sums("shared")
        return taken / ideal if ideal else 1.0

    def _sums(self, space: str) -> tuple[float, float]:
        here = [access for access in self.accesses if access.space == space]
        return sum(one.transactions for one in here), sum(one.ideal for one in here)


def analyse(function: Any) -> MemoryUse:
    """What one kernel does with memory.

    Args:
        function: a lowered ``PrimFunc`` that is launched on the device.

    Raises:
        ValueError: its launch depends on shapes that are known at run time only.
    """
    walker = _Walker(function)
    walker.statement(function.body)
    return MemoryUse(walker.grid, walker.block, tuple(walker.accesses), walker.unknown)


def _launch(function: Any) -> tuple[Dimensions, Dimensions]:
    from tvm.tir import stmt_functor

    extents = {}

    def see(node: Any) -> None:
        if type(node).__name__ == "AttrStmt" and node.attr_key == "thread_extent":
            if type(node.value).__name__ != "IntImm":
                raise ValueError(f"{node.node.thread_tag} has {node.value} at run time")
            extents[str(node.node.thread_tag)] = int(node.value)

    stmt_functor.post_order_visit(function.body, see)
    x, y, z = (
        [extents.get(f"{kind}Idx.{axis}", 1) for kind in ("block", "thread")] for axis in "xyz"
    )
    return (x[0], y[0], z[0]), (x[1], y[1], z[1])


class _Walker:
    """Goes through a kernel; arrays are ``[sample, thread of the warp, element of a vector]``."""

    def __init__(self, function: Any) -> None:
        self.grid, self.block = _launch(function)
        self.accesses: list[Access] = []
        self.unknown = 0
        self._random = np.random.default_rng(0)
        self._values: Values = {}
        # How often the sampled warp comes by for each of its kind.
        self._weight = np.ones(_SAMPLES)
        threads = int(np.prod(self.block))
        warps = -(-threads // WARP)
        self._warps = float(np.prod(self.grid)) * warps
        thread = self._sample(warps) * WARP + np.arange(WARP).reshape(1, WARP, 1)
        self._active = thread < threads
        block_x, block_y, _ = self.block
        self._indices = {
            "threadIdx.x": thread % block_x,
            "threadIdx.y": thread // block_x % block_y,
            "threadIdx.z": thread // block_x // block_y,
            **{f"blockIdx.{a}": self._sample(n) for a, n in zip("xyz", self.grid, strict=True)},
        }

    def _sample(self, extent: Any) -> Array:
        """For each sample a number below ``extent``, evenly spread."""
        places = self._random.permutation(_SAMPLES) + self._random.random(_SAMPLES)
        spread: Array = np.floor(places.reshape(-1, 1, 1) / _SAMPLES * extent).astype(np.int64)
        return spread

    def statement(self, node: Any) -> None:
        """Go through a statement."""
        kind = type(node).__name__
        if kind == "SeqStmt":
            for part in node.seq:
                self.statement(part)
        elif kind == "AttrStmt":
            if node.attr_key == "thread_extent":
                tag = str(node.node.thread_tag)
                self._values[key(node.node.var)] = self._indices[tag]
            self.statement(node.body)
        elif kind in ("Allocate", "AllocateConst", "DeclBuffer"):
            self.statement(node.body)
        elif kind == "AssertStmt":
            self._expression(node.condition)
            self.statement(node.body)
        elif kind == "LetStmt":
            self._expression(node.value)
            self._let(node.var, node.value)
            self.statement(node.body)
        elif kind == "For":
            self._loop(node)
        elif kind == "While":
            self._expression(node.condition)
            self.statement(node.body)
        elif kind == "IfThenElse":
            self._expression(node.condition)
            with self._where(node.condition, True):
                self.statement(node.then_case)
            if node.else_case is not None:
                with self._where(node.condition, False):
                    self.statement(node.else_case)
        elif kind == "BufferStore":
            self._expression(node.value)
            self._access(node, store=True)
        elif kind == "Evaluate":
            self._expression(node.value)
        else:
            raise ValueError(f"a kernel with a {kind} cannot be looked at")

    def _loop(self, node: Any) -> None:
        self._expression(node.extent)
        before, active = self._weight, self._active
        try:
            first, extent = evaluate(node.min, self._values), evaluate(node.extent, self._values)
        except UnknownError:
            self.statement(node.body)  # as if it went round once
            return
        # Threads of a warp go round together: as often as the one that does so most often.
        most = np.broadcast_to(extent, self._active.shape).max(axis=1, keepdims=True)
        turn = self._sample(most)
        self._values[key(node.loop_var)] = first + turn
        self._weight = before * np.maximum(most, 0).reshape(_SAMPLES)
        self._active = active & (turn < extent)
        self.statement(node.body)
        self._weight, self._active = before, active

    def _let(self, variable: Any, value: Any) -> None:
        with contextlib.suppress(UnknownError):
            self._values[key(variable)] = evaluate(value, self._values)

    @contextlib.contextmanager
    def _where(self, condition: Any, holds: bool) -> Iterator[None]:
        """Only the threads for which the condition holds, or does not."""
        before = self._active
        # Of a vector's elements a load is one all the same. What is unknown may hold.
        with contextlib.suppress(UnknownError):
            if (value := evaluate(condition, self._values)).shape[-1] == 1:
                self._active = before & (value.astype(bool) == holds)
        try:
            yield
        finally:
            self._active = before

    def _expression(self, node: Any) -> None:
        """Go through an expression, for the loads in it."""
        kind = type(node).__name__
        if kind in BINARY:
            self._expression(node.a)
            self._expression(node.b)
        elif kind == "BufferLoad":
            self._access(node, store=False)
        elif kind == "Select":
            self._choice(node.condition, node.true_value, node.false_value)
        elif kind == "Call":
            name = call_name(node)
            if name == "tir.if_then_else":
                self._choice(*node.args)
            elif name != "tir.address_of":  # which loads nothing
                for argument in node.args:
                    self._expression(argument)
        elif kind in ("Cast", "Broadcast"):
            self._expression(node.value)
        elif kind == "Ramp":
            self._expression(node.base)
        elif kind == "Not":
            self._expression(node.a)
        elif kind == "Let":
            self._expression(node.value)
            self._let(node.var, node.value)
            self._expression(node.body)
        elif kind == "Shuffle":
            for vector in node.vectors:
                self._expression(vector)

    def _choice(self, condition: Any, yes: Any, no: Any) -> None:
        self._expression(condition)
        with self._where(condition, True):
            self._expression(yes)
        with self._where(condition, False):
            self._expression(no)

    def _access(self, node: Any, *, store: bool) -> None:
        for index in node.indices:
            self._expression(index)
        scope = str(node.buffer.scope())
        if scope not in ("global", "shared", "shared.dyn"):
            return  # registers
        try:
            (index,) = (evaluate(one, self._values) for one in node.indices)
        except (UnknownError, ValueError):
            self.unknown += 1
            return
        elements = np.broadcast_to(index, (_SAMPLES, WARP, index.shape[-1]))
        active = np.broadcast_to(self._active, (_SAMPLES, WARP, 1))
        if not (np.diff(elements, axis=-1)[active[..., 0]] == 1).all():
            # Not one vector in memory: each element is an access.
            elements = np.moveaxis(elements, -1, 0).reshape(-1, WARP, 1)
            active = np.tile(active, (len(elements) // _SAMPLES, 1, 1))
        weight = np.tile(self._weight, len(elements) // _SAMPLES)
        # Of the buffer: after TVM has made vectors its elements, an index is of a whole one.
        element_bytes = _element_bytes(str(node.buffer.dtype))
        weight = np.where(active.any(axis=(1, 2)), weight, 0.0) * (self._warps / _SAMPLES)
        count = sectors if scope == "global" else turns
        taken, ideal = count(elements, active, element_bytes)
        self.accesses.append(
            Access(
                str(node.buffer.name),
                "global" if scope == "global" else "shared",
                store,
                elements.shape[-1] * element_bytes,
                float(weight.sum()),
                float(weight @ taken),
                float(weight @ ideal),
            )
        )


def _element_bytes(dtype: str) -> int:
    from tvm import DataType

    kind = DataType(dtype)
    return max(1, int(kind.bits) * int(kind.lanes) // 8)
