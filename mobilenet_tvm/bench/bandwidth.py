"""How fast the cores of this machine read: from their second-level caches, the third, and DRAM.

A kernel of our own that only loads, over working sets that fit the one level and not the one
before. Its best rates are what a layer's bytes are held against, as the peak is for its FLOPs.
"""

from __future__ import annotations

import functools
import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from mobilenet_tvm import toolchain
from mobilenet_tvm.bench.cores import confine, fastest_cores
from mobilenet_tvm.bench.peak import vector_unit

Level = Literal["L2", "L3", "DRAM"]

BURSTS = 30
BURST_MS = 3.0
_ACCUMULATORS = 8  # two loads a cycle, each added in four cycles at most
_KERNEL = "read_all"
_CACHES = Path("/sys/devices/system/cpu/cpu{}/cache")
_MOST_DRAM_BYTES = 1 << 28
# Of a CPU that does not tell: what every one of the last ten years has.
_DEFAULT_L2_BYTES = 256 << 10


@dataclass(frozen=True)
class Caches:
    """Bytes of one core's second-level cache, and of the third one, which the cores share; 0 where
    there is none."""

    l2_bytes: int
    l3_bytes: int


@dataclass(frozen=True)
class Bandwidth:
    """GB/s (1e9 bytes) that ``threads`` cores read together from each level.

    ``capacity_bytes`` is what of one model fits a level: every core's own second-level cache
    counts, for the cores share a layer. ``model_gbps`` is over as many bytes as an inference
    touches, ``model_bytes``, that need not be any level's: how much of a third-level cache a
    virtual machine's neighbours leave to it is in no description.
    """

    threads: int
    gbps: dict[Level, float]
    capacity_bytes: dict[Level, int]
    model_bytes: int
    model_gbps: float


def read_caches(folder: Path | None = None) -> Caches:
    """The caches of the core that runs this, as Linux describes them in ``folder``."""
    if folder is None:
        folder = Path(str(_CACHES).format((fastest_cores(1) or (0,))[0]))
    sizes = {2: 0, 3: 0}
    for index in sorted(folder.glob("index*")):
        try:
            level = int((index / "level").read_text())
            size = (index / "size").read_text().strip()
            kind = (index / "type").read_text().strip()
        except (OSError, ValueError):
            continue
        if kind != "Instruction" and level in sizes and size.endswith("K"):
            sizes[level] = int(size[:-1]) << 10
    return Caches(sizes[2] or _DEFAULT_L2_BYTES, sizes[3])


@functools.cache
def build_kernel(target: str) -> Any:
    """``read_all(data, sums, passes)``, a ``tvm.runtime.Module``.

    ``data`` is ``[blocks, accumulators * lanes] float32``, with any number of blocks, and ``sums``
    ``[accumulators * lanes] float32``: the sums of its columns, ``passes`` times.
    """
    toolchain.activate()
    import tvm
    from tvm import tir

    lanes = vector_unit(target).lanes
    width = _ACCUMULATORS * lanes
    builder = tir.ir_builder.create()
    blocks, passes = tir.Var("blocks", "int32"), tir.Var("passes", "int32")
    data = tir.decl_buffer((blocks, width), "float32", name="data")
    sums = tir.decl_buffer((width,), "float32", name="sums")
    # Flat, for a buffer of vectors has one dimension; large enough for what this machine has.
    flat = tir.decl_buffer((blocks * width,), "float32", name="flat", data=data.data)
    loaded, summed = builder.buffer_ptr(flat), builder.buffer_ptr(sums)
    registers = builder.allocate(
        f"float32x{lanes}", (_ACCUMULATORS,), name="registers", scope="local"
    )
    for index in range(_ACCUMULATORS):
        registers[index] = tir.Broadcast(tir.const(0, "float32"), lanes)
    with builder.for_range(0, passes), builder.for_range(0, blocks) as block:
        for index in range(_ACCUMULATORS):
            registers[index] += loaded[tir.Ramp(block * width + index * lanes, 1, lanes)]
    for index in range(_ACCUMULATORS):
        summed[tir.Ramp(index * lanes, 1, lanes)] = registers[index]

    handles = tir.Var("data_handle", "handle"), tir.Var("sums_handle", "handle")
    function = tir.PrimFunc(
        [*handles, passes],
        builder.get(),
        buffer_map=dict(zip(handles, (data, sums), strict=True)),
    ).with_attr({"global_symbol": _KERNEL, "tir.noalias": True})
    with tvm.transform.PassContext(config=toolchain.pass_config()):
        return tvm.build(tvm.IRModule({_KERNEL: function}), target=target)


def working_sets(caches: Caches, threads: int) -> dict[Level, int]:
    """Bytes that each of ``threads`` cores goes through to measure a level."""
    found: dict[Level, int] = {"L2": caches.l2_bytes // 2}
    if caches.l3_bytes > 2 * threads * caches.l2_bytes:
        # Well beyond the second level, and well within the third, that neighbours use as well.
        geometric = math.isqrt(threads * caches.l2_bytes * caches.l3_bytes)
        found["L3"] = geometric // threads
    last = max(caches.l3_bytes, threads * caches.l2_bytes)
    found["DRAM"] = min(4 * last, _MOST_DRAM_BYTES) // threads
    return found


def measure_bandwidth(
    target: str, threads: int, model_bytes: int, caches: Caches | None = None
) -> Bandwidth:
    """What ``threads`` cores read together, in their best burst. Takes about 0.6 s.

    Args:
        target: one that this machine can run (``host_target()``).
        threads: each on a core of its own.
        model_bytes: that an inference touches.
        caches: of this machine; None finds out.
    """
    caches = caches or read_caches()
    sets = working_sets(caches, threads)
    capacity: dict[Level, int] = {
        "L2": threads * caches.l2_bytes,
        "L3": caches.l3_bytes,
        "DRAM": 1 << 62,
    }
    return Bandwidth(
        threads,
        {level: _gbps(target, threads, size) for level, size in sets.items()},
        {level: capacity[level] for level in sets},
        model_bytes,
        _gbps(target, threads, max(model_bytes // threads, 1)),
    )


def _gbps(target: str, threads: int, size_bytes: int) -> float:
    """GB/s of all cores in the best burst, from the first one's start to the last one's end."""
    nowhere: list[tuple[int, ...]] = [()] * threads  # where threads cannot be bound
    cores = [(core,) for core in fastest_cores(threads)] or nowhere
    bursts, size_bytes = [], _whole(target, size_bytes)
    for _ in cores:
        bursts.append(_reader(target, size_bytes))
    trial_s = min(_seconds(bursts[0], 1) for _ in range(3))
    passes = max(1, round(BURST_MS / 1e3 / trial_s))
    begins = np.empty((len(cores), BURSTS))
    ends = np.empty((len(cores), BURSTS))
    together = threading.Barrier(len(cores))
    failures: list[BaseException] = []

    def read(index: int) -> None:
        confine(cores[index])
        bursts[index](1)
        for turn in range(BURSTS):
            together.wait()
            begins[index, turn] = time.perf_counter()
            bursts[index](passes)  # outside Python's lock
            ends[index, turn] = time.perf_counter()

    def work(index: int) -> None:
        try:
            read(index)
        except threading.BrokenBarrierError:
            pass  # another one failed
        except BaseException as error:
            failures.append(error)
            together.abort()  # or the others would wait for this one for good

    workers = [threading.Thread(target=work, args=(index,)) for index in range(len(cores))]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    if failures:
        raise failures[0]
    best_s = float((ends.max(0) - begins.min(0)).min())
    return len(cores) * passes * size_bytes / best_s / 1e9


def _whole(target: str, size_bytes: int) -> int:
    block = 4 * _ACCUMULATORS * vector_unit(target).lanes
    return max(1, size_bytes // block) * block


def _reader(target: str, size_bytes: int) -> Callable[[int], object]:
    """A function that reads so many bytes of its own, as often as it is told."""
    module = build_kernel(target)
    import tvm

    width = _ACCUMULATORS * vector_unit(target).lanes
    data = tvm.nd.array(np.zeros((size_bytes // 4 // width, width), "float32"))
    sums = tvm.nd.array(np.zeros(width, "float32"))
    function = module[_KERNEL]
    return lambda passes: function(data, sums, passes)


def _seconds(burst: Callable[[int], object], passes: int) -> float:
    begin = time.perf_counter()
    burst(passes)
    return time.perf_counter() - begin
