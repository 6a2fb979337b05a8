"""One kernel for a GPU, described."""

from __future__ import annotations

import msgspec


class KernelInfo(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One kernel. Every figure follows from its code: none is measured.

    Attributes:
        name: of the kernel, as the module calls it.
        registers: of a thread.
        spill_bytes: that a thread's code writes to and reads from memory for want of registers,
            each instruction counted once.
        local_bytes: of a thread, in memory: arrays that are not in registers, and what is spilled.
        shared_bytes: of a block.
        threads_per_block: as launched.
        blocks: as launched.
        occupancy: resident warps of those that a multiprocessor has room for, 0 to 1; 0 where the
            launch fails.
        limited_by: what of the multiprocessor is used up first.
        global_efficiency: sectors of 32 bytes that would hold what a warp asks of global memory,
            of those that it touches, 0 to 1, over all loads and stores; 1 where there are none.
        bank_conflicts: turns that an access of shared memory takes of those that it needs, 1 or
            more; 1 where there are none.
    """

    name: str
    registers: int
    spill_bytes: int
    local_bytes: int
    shared_bytes: int
    threads_per_block: int
    blocks: int
    occupancy: float
    limited_by: str
    global_efficiency: float
    bank_conflicts: float
