"""What each kernel of a module takes of the GPU, and how it reads memory, with no GPU to ask."""

from __future__ import annotations

import math
from dataclasses import dataclass

from mobilenet_tvm.cuda import access, cubin
from mobilenet_tvm.cuda.codegen import Compiled
from mobilenet_tvm.cuda.occupancy import Limit, occupancy
from mobilenet_tvm.targets.gpus import Gpu


@dataclass(frozen=True)
class KernelReport:
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
    limited_by: Limit
    global_efficiency: float
    bank_conflicts: float


def kernel_reports(compiled: Compiled, gpu: Gpu) -> tuple[KernelReport, ...]:
    """A report of each kernel of a module, in the order of the module.

    It takes some milliseconds a kernel, more where loops are unrolled; candidates of a search do
    not want it.

    Args:
        compiled: as ``codegen.collecting`` gives it, of this process.
        gpu: the one it was compiled for.

    Raises:
        ValueError: a kernel's launch depends on shapes that are known at run time only.
    """
    taken = cubin.resources(compiled.cubin, compiled.log)
    reports = []
    for function in compiled.functions:
        name = str(function.attrs["global_symbol"])
        resources = taken[name]
        memory = access.analyse(function)
        threads, blocks = math.prod(memory.block), math.prod(memory.grid)
        resident = occupancy(gpu, threads, resources.registers, resources.shared_bytes)
        reports.append(
            KernelReport(
                name=name,
                registers=resources.registers,
                spill_bytes=(resources.spill_store_bytes or 0) + (resources.spill_load_bytes or 0),
                local_bytes=resources.local_bytes,
                shared_bytes=resources.shared_bytes,
                threads_per_block=threads,
                blocks=blocks,
                occupancy=resident.fraction,
                limited_by=resident.limited_by,
                global_efficiency=memory.global_efficiency,
                bank_conflicts=memory.bank_conflicts,
            )
        )
    return tuple(reports)
