"""How long a kernel takes, estimated: what chooses a template's untuned default.

The page ``docs/cuda-schedules.md`` explains the model. It knows a kernel by a few counts (``Work``)
and a GPU by its data sheet; it has not been fitted to any measurement.
"""

from __future__ import annotations

import functools
import itertools
import math
import operator
from collections.abc import Callable
from dataclasses import dataclass

from mobilenet_tvm.schedules.cuda.target import Gpu, arch_number

SHARED_BYTES_PER_CYCLE = 128  # that one multiprocessor's shared memory and L1 deliver
L2_BYTES_PER_CYCLE = 48  # that one multiprocessor gets from L2 while all do
GLOBAL_LATENCY_CYCLES = 500  # of a load that L1 does not hold
SHARED_LATENCY_CYCLES = 30
BARRIER_CYCLES = 30
PROLOGUE_INSTRUCTIONS = 100  # of each thread: its indices, zeroed sums
IMPERFECT = 0.15  # of what should overlap with the slowest resource and does not quite
SCHEDULERS = 4  # of a multiprocessor; each starts an instruction of one warp in a cycle
REGISTER_UNIT = 256  # registers are given to a warp in units of so many
VECTOR_BANKS = 8  # vectors of 16 bytes side by side in all banks of shared memory


@dataclass(frozen=True)
class Work:
    """What one block of a kernel does.

    Attributes:
        blocks: in the grid.
        threads: in a block.
        registers: of one thread, estimated.
        shared_bytes: that a block declares.
        fmas: of one block, all its threads together.
        shared_traffic: bytes that go from shared memory or L1 to registers, and to shared memory.
        l2_traffic: bytes that one block reads past L1, and writes.
        traffic: bytes that the whole kernel reads at least once, and writes.
        stages: times that a block waits for loads, one after the other.
        overlapped: whether the next stage's loads are under way while one is computed.
        instructions: of one block beside FMAs and shared loads: addresses, predicates, epilogue.
        depth_cycles: of what follows the last stage and cannot overlap.
    """

    blocks: int
    threads: int
    registers: int
    shared_bytes: int
    fmas: int
    shared_traffic: int
    l2_traffic: int
    traffic: int
    stages: int
    overlapped: bool = False
    instructions: int = 0
    depth_cycles: int = 0


def _up(number: int, unit: int) -> int:
    return -(-number // unit) * unit


def resident_blocks(gpu: Gpu, threads: int, registers: int, shared_bytes: int) -> int:
    """Blocks that one multiprocessor holds at once; 0 where it cannot hold any."""
    warps = -(-threads // gpu.warp)
    # Each scheduler has a quarter of the registers.
    of_warp = _up(max(registers, 1) * gpu.warp, REGISTER_UNIT)
    warps_of_scheduler = gpu.registers_per_multiprocessor // SCHEDULERS // of_warp
    unit = 256 if arch_number(gpu.arch) < 80 else 128
    shared = _up(shared_bytes + gpu.shared_reserved, unit)
    if (
        threads > gpu.threads_per_block
        or registers > gpu.registers_per_thread
        or shared_bytes > gpu.shared_per_block
        or _up(warps, SCHEDULERS) > warps_of_scheduler * SCHEDULERS
    ):
        return 0
    return min(
        gpu.blocks_per_multiprocessor,
        gpu.threads_per_multiprocessor // (warps * gpu.warp),
        warps_of_scheduler * SCHEDULERS // warps,
        gpu.shared_per_multiprocessor // shared if shared else gpu.blocks_per_multiprocessor,
    )


def occupancy(gpu: Gpu, work: Work) -> float:
    """Share of a multiprocessor's threads that are resident, were there blocks enough."""
    resident = resident_blocks(gpu, work.threads, work.registers, work.shared_bytes)
    warps = -(-work.threads // gpu.warp)
    return resident * warps * gpu.warp / gpu.threads_per_multiprocessor


def fits(gpu: Gpu, work: Work) -> bool:
    """Whether the kernel can be launched, and keeps its registers."""
    return resident_blocks(gpu, work.threads, work.registers, work.shared_bytes) > 0


def _cycles(gpu: Gpu, work: Work, resident: int) -> float:
    """Cycles that one multiprocessor takes for ``resident`` blocks at once."""
    warps = -(-work.threads // gpu.warp)
    # A block whose threads are no whole warps wastes lanes; few warps leave schedulers idle.
    fullness = work.threads / (warps * gpu.warp)
    busy_schedulers = min(1.0, resident * warps / SCHEDULERS)
    fma = work.fmas / (gpu.lanes * fullness)
    instructions = work.instructions + PROLOGUE_INSTRUCTIONS * work.threads
    issue = (work.fmas + instructions + work.shared_traffic / 16) / (
        SCHEDULERS * gpu.warp * fullness
    )
    shared = work.shared_traffic / SHARED_BYTES_PER_CYCLE
    l2 = work.l2_traffic / L2_BYTES_PER_CYCLE
    resources = (max(fma, issue) / busy_schedulers, shared, l2)
    busy = max(resources) + IMPERFECT * (sum(resources) - max(resources))
    stages = max(work.stages, 1)
    latency = GLOBAL_LATENCY_CYCLES + BARRIER_CYCLES
    # What one block leaves idle while it waits, the others fill as far as they can.
    each = busy / stages
    alone = max(each, latency) if work.overlapped else each + latency + BARRIER_CYCLES
    return latency + stages * max(resident * each, alone) + work.depth_cycles


def microseconds(gpu: Gpu, work: Work) -> float:
    """The kernel's time, without its launch."""
    resident = resident_blocks(gpu, work.threads, work.registers, work.shared_bytes)
    if not resident:
        return math.inf
    waves, rest = divmod(work.blocks, gpu.multiprocessors * resident)
    cycles = waves * _cycles(gpu, work, resident)
    if rest:
        cycles += _cycles(gpu, work, -(-rest // gpu.multiprocessors))
    # In a network a kernel's input was just written, and its weights were read one inference ago.
    memory = work.traffic / (gpu.memory_gbps * 1e3) if 2 * work.traffic > gpu.l2_bytes else 0.0
    computing = cycles / (gpu.clock_ghz * 1e3)
    return max(computing, memory) + IMPERFECT * min(computing, memory)


def bank_passes(extents: tuple[int, ...], strides: tuple[int, ...]) -> float:
    """Passes that a load of 16 bytes by each thread takes of shared memory, of the fewest.

    A quarter of a warp is served at once where its vectors lie in different banks or are the same.

    Args:
        extents: of the block's threads, slowest dimension first.
        strides: from one thread's vector to the next one's in each dimension, in vectors; 0 where
            they load the same.
    """
    # Only the bank counts, but 0 is special.
    return _bank_passes(
        extents, tuple(stride and (stride - 1) % VECTOR_BANKS + 1 for stride in strides)
    )


@functools.cache
def _bank_passes(extents: tuple[int, ...], strides: tuple[int, ...]) -> float:
    vectors = []  # of each thread: which one, and its bank
    for place in itertools.product(*map(range, extents)):
        which = tuple(itertools.compress(place, strides))
        bank = sum(map(operator.mul, place, strides)) % VECTOR_BANKS
        vectors.append((bank, which))
        if len(vectors) == 64:  # two warps tell
            break
    passes = turns = 0
    for first in range(0, len(vectors), VECTOR_BANKS):
        different = set(vectors[first : first + VECTOR_BANKS])
        banks = [bank for bank, _ in different]
        passes += max(map(banks.count, banks))
        turns += 1
    return passes / turns


def best_padding(passes: Callable[[int], float]) -> tuple[int, float]:
    """The padding, in vectors, that takes the fewest passes, and how many times the least."""
    found = {padding: passes(padding) for padding in range(VECTOR_BANKS)}
    best = min(found, key=lambda padding: (found[padding], padding))
    return best, found[best]
