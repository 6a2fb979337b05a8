"""What each kernel of a module takes of the GPU, and how it reads memory, with no GPU to ask."""

from __future__ import annotations

import math

from mobilenet_tvm.cuda import access, cubin
from mobilenet_tvm.cuda.codegen import Compiled
from mobilenet_tvm.cuda.kernel import KernelInfo
from mobilenet_tvm.cuda.occupancy import occupancy
from mobilenet_tvm.targets.gpus import Gpu


def kernel_reports(compiled: Compiled, gpu: Gpu) -> tuple[KernelInfo, ...]:
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
            KernelInfo(
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
