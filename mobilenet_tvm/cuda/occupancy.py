"""How much of a multiprocessor a kernel can fill, by NVIDIA's rules.

They are those of the CUDA Occupancy Calculator, which NVIDIA ships as ``cuda_occupancy.h`` with
the run-time library; ``tests/cuda/test_cuda_occupancy.py`` holds this file against it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mobilenet_tvm.targets.gpus import Gpu

# Since compute capability 3.0: registers are handed out to whole warps in units of this many.
_REGISTER_UNIT = 256
# A multiprocessor has four partitions with a quarter of the registers each.
_PARTITIONS = 4

Limit = Literal["warps", "blocks", "registers", "shared"]


@dataclass(frozen=True)
class Occupancy:
    """What of one kernel is resident on one multiprocessor.

    Attributes:
        blocks: resident at once; 0 where not even one fits, and the launch fails.
        warps: resident at once.
        fraction: of the warps that the multiprocessor has room for, 0 to 1.
        limited_by: what is used up first. Of several the one named first in ``Limit``.
    """

    blocks: int
    warps: int
    fraction: float
    limited_by: Limit


def occupancy(gpu: Gpu, threads: int, registers: int, shared_bytes: int) -> Occupancy:
    """How many blocks of a kernel one multiprocessor of ``gpu`` holds.

    Args:
        gpu: whose limits count.
        threads: of a block.
        registers: of a thread, as the compiler says.
        shared_bytes: of a block, static and dynamic.
    """
    warps_per_block = -(-threads // gpu.warp)
    most_warps = gpu.threads_per_multiprocessor // gpu.warp
    limits: dict[Limit, int] = {
        "warps": most_warps // warps_per_block if threads <= gpu.threads_per_block else 0,
        "blocks": gpu.blocks_per_multiprocessor,
        "registers": _by_registers(gpu, warps_per_block, registers),
        "shared": _by_shared(gpu, shared_bytes),
    }
    blocks = min(limits.values())
    limited_by = next(name for name, limit in limits.items() if limit == blocks)
    warps = blocks * warps_per_block
    return Occupancy(blocks, warps, warps / most_warps, limited_by)


def _by_registers(gpu: Gpu, warps_per_block: int, registers: int) -> int:
    if registers > gpu.registers_per_thread:
        return 0
    per_warp = _round_up(max(registers, 1) * gpu.warp, _REGISTER_UNIT)
    # One block may spread over the partitions unevenly, and is counted as if it did not.
    if _round_up(warps_per_block, _PARTITIONS) * per_warp > gpu.registers_per_multiprocessor:
        return 0
    per_partition = gpu.registers_per_multiprocessor // _PARTITIONS // per_warp
    return per_partition * _PARTITIONS // warps_per_block


def _by_shared(gpu: Gpu, shared_bytes: int) -> int:
    if shared_bytes > gpu.shared_per_block:
        return 0
    unit = 256 if gpu.compute_capability < (8, 0) else 128
    taken = _round_up(shared_bytes + gpu.shared_reserved, unit)
    return gpu.shared_per_multiprocessor // taken if taken else gpu.blocks_per_multiprocessor


def _round_up(value: int, unit: int) -> int:
    return -(-value // unit) * unit
