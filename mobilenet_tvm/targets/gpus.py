"""What the GPUs of each compute capability can do, and a usual card of each.

The limits are those of the CUDA C++ Programming Guide, "Compute Capabilities" (table of technical
specifications per compute capability); the card's figures are those of its data sheet.
"""

from __future__ import annotations

from dataclasses import dataclass

_KIB, _MIB = 1 << 10, 1 << 20


@dataclass(frozen=True)
class Gpu:
    """One compute capability, and the card that schedules are sized after.

    Attributes:
        arch: as NVRTC names it, ``sm_80``.
        card: whose the figures are that differ from card to card.
        threads_per_block: at most.
        threads_per_multiprocessor: resident at once.
        blocks_per_multiprocessor: resident at once.
        registers_per_multiprocessor: of 32 bits; as many as one block may have.
        registers_per_thread: at most.
        shared_per_block: bytes that a kernel may declare.
        shared_per_multiprocessor: bytes for all resident blocks.
        shared_reserved: bytes of it that the system keeps for each block.
        lanes: float32 FMAs that one multiprocessor starts in a cycle.
        multiprocessors: of the card.
        l2_bytes: of the card.
        memory_gbps: of the card, gigabytes a second.
        clock_ghz: the card's boost clock.
        warp: threads.
    """

    arch: str
    card: str
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

    @property
    def compute_capability(self) -> tuple[int, int]:
        """``(8, 0)`` of ``sm_80``."""
        digits = self.arch.removeprefix("sm_")
        return int(digits[:-1]), int(digits[-1])


GPUS = {
    gpu.arch: gpu
    for gpu in (
        Gpu("sm_75", "T4", 1024, 16, 64 * _KIB, 0, 64, 40, 4 * _MIB, 320, 1.59),
        Gpu("sm_80", "A100", 2048, 32, 164 * _KIB, _KIB, 64, 108, 40 * _MIB, 1555, 1.41),
        Gpu("sm_86", "A10", 1536, 16, 100 * _KIB, _KIB, 128, 72, 6 * _MIB, 600, 1.695),
        Gpu("sm_87", "Jetson AGX Orin", 1536, 16, 164 * _KIB, _KIB, 128, 16, 4 * _MIB, 204.8, 1.3),
        Gpu("sm_89", "L4", 1536, 24, 100 * _KIB, _KIB, 128, 58, 48 * _MIB, 300, 2.04),
        Gpu("sm_90", "H100", 2048, 32, 228 * _KIB, _KIB, 128, 132, 50 * _MIB, 3350, 1.98),
    )
}
