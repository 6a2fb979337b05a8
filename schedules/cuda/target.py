"""What the current CUDA target's GPU can do, for the templates and their model.

The limits stand in the target itself; how many multiprocessors there are, how many adders each
has and how fast memory is do not, so they are kept here by architecture, with a usual card's
figures where cards differ. (The package has the same table for its presets; these schedules
must do without the package.)
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, replace

from tvm.target import Target

LANES = 4  # float32 in the widest load of one thread
BANKS = 32  # of shared memory, a float32 wide each

_KIB, _MIB = 1 << 10, 1 << 20


@dataclass(frozen=True)
class Gpu:
    """What the model needs to know.

    Attributes:
        arch: ``sm_80``.
        threads_per_multiprocessor: resident at once.
        blocks_per_multiprocessor: resident at once.
        shared_per_multiprocessor: bytes for all resident blocks.
        shared_reserved: bytes of it that the system keeps for each block.
        lanes: float32 FMAs that one multiprocessor starts in a cycle.
        multiprocessors: of a usual card, as all that follows.
        l2_bytes: size of the L2 cache.
        memory_gbps: gigabytes a second from memory.
        clock_ghz: boost clock.
        threads_per_block: at most.
        registers_per_multiprocessor: of 32 bits; as many as one block may have.
        registers_per_thread: at most.
        shared_per_block: bytes that a kernel may declare.
        warp: threads.
    """

    arch: str
    threads_per_multiprocessor: int
    blocks_per_multiprocessor: int
    shared_per_multiprocessor: int
    shared_reserved: int
    lanes: int
    multiprocessors: int
    l2_bytes: int
    memory_gbps: float
    clock_ghz: float
    threads_per_block: int = 1024
    registers_per_multiprocessor: int = 65536
    registers_per_thread: int = 255
    shared_per_block: int = 48 * _KIB
    warp: int = 32


GPUS = {
    gpu.arch: gpu
    for gpu in (
        Gpu("sm_75", 1024, 16, 64 * _KIB, 0, 64, 40, 4 * _MIB, 320, 1.59),
        Gpu("sm_80", 2048, 32, 164 * _KIB, _KIB, 64, 108, 40 * _MIB, 1555, 1.41),
        Gpu("sm_86", 1536, 16, 100 * _KIB, _KIB, 128, 72, 6 * _MIB, 600, 1.695),
        Gpu("sm_87", 1536, 16, 164 * _KIB, _KIB, 128, 16, 4 * _MIB, 204.8, 1.3),
        Gpu("sm_89", 1536, 24, 100 * _KIB, _KIB, 128, 58, 48 * _MIB, 300, 2.04),
        Gpu("sm_90", 2048, 32, 228 * _KIB, _KIB, 128, 132, 50 * _MIB, 3350, 1.98),
    )
}


def is_cuda(target: Target) -> bool:
    """Whether ``target`` is an NVIDIA GPU, compiled for by CUDA C."""
    return bool(target.kind.name == "cuda")


def current() -> Gpu:
    """The GPU of the current target: the architecture's figures, the target's own limits.

    Of an architecture that the table lacks, the figures are those of the newest older one.
    """
    target = Target.current(allow_none=False)
    return _gpu(
        str(target.attrs.get("arch", "")),
        *(
            int(target.attrs[name]) if name in target.attrs else None
            for name in (
                "max_threads_per_block",
                "max_shared_memory_per_block",
                "registers_per_block",
                "l2_cache_size_bytes",
            )
        ),
    )


def arch_number(arch: str) -> int:
    """80 of ``sm_80``, 120 of ``sm_120a``; 0 where no number is in it."""
    digits = "".join(filter(str.isdigit, arch))
    return int(digits) if digits else 0


@functools.cache
def _gpu(
    arch: str, threads: int | None, shared: int | None, registers: int | None, l2: int | None
) -> Gpu:
    older = [gpu for gpu in GPUS.values() if arch_number(gpu.arch) <= arch_number(arch)]
    gpu = older[-1] if older else GPUS["sm_75"]
    return replace(
        gpu,
        arch=arch or gpu.arch,
        threads_per_block=threads or gpu.threads_per_block,
        shared_per_block=shared or gpu.shared_per_block,
        registers_per_multiprocessor=registers or gpu.registers_per_multiprocessor,
        l2_bytes=l2 or gpu.l2_bytes,
    )


def channel_block(channels: int) -> int:
    """Channels in one block: 4, or 2 or 1 where four do not divide their number.

    Four floats are the widest load of one thread. It depends on nothing else, so the output of
    one layer is the input of the next as it is. Never 3: no load is that wide.
    """
    return math.gcd(channels, LANES)
