"""The report of a kernel: each figure against where it comes from."""

from __future__ import annotations

import msgspec
import pytest

from mobilenet_tvm.cuda import access, cubin, report
from mobilenet_tvm.cuda.occupancy import occupancy
from mobilenet_tvm.targets.gpus import GPUS


@pytest.fixture
def matmul():
    """A product of two 64 x 64 matrices through shared memory, 8 x 32 threads a block."""
    from tvm import te

    x, w = te.placeholder((64, 64), name="x"), te.placeholder((64, 64), name="w")
    k = te.reduce_axis((0, 64), name="k")
    y = te.compute((64, 64), lambda i, j: te.sum(x[i, k] * w[k, j], axis=k), name="y")
    schedule = te.create_schedule(y.op)
    shared, local = schedule.cache_read(w, "shared", [y]), schedule.cache_write(y, "local")
    row, column = y.op.axis
    outer, inner = schedule[y].split(row, 32)
    mine, rest = schedule[y].split(inner, nparts=8)
    left, right = schedule[y].split(column, 32)
    schedule[y].reorder(outer, left, mine, right, rest)
    schedule[y].bind(outer, te.thread_axis("blockIdx.y"))
    schedule[y].bind(left, te.thread_axis("blockIdx.x"))
    other, thread = te.thread_axis((0, 8), "threadIdx.y"), te.thread_axis((0, 32), "threadIdx.x")
    schedule[y].bind(mine, other)
    schedule[y].bind(right, thread)
    schedule[local].compute_at(schedule[y], right)
    turn, _ = schedule[local].split(local.op.reduce_axis[0], 8)
    schedule[local].reorder(turn, *local.op.axis)
    schedule[shared].compute_at(schedule[local], turn)
    first, second = schedule[shared].op.axis
    _, second = schedule[shared].split(second, 32)
    schedule[shared].bind(second, thread)
    first, _ = schedule[shared].split(first, nparts=8)
    schedule[shared].bind(first, other)
    return schedule, [x, w, y]


def test_a_report_has_each_figure_from_its_source(compile_kernel, matmul):
    compiled, _ = compile_kernel(*matmul)
    gpu = GPUS["sm_80"]
    (made,) = report.kernel_reports(compiled, gpu)
    (taken,) = cubin.resources(compiled.cubin, compiled.log).values()
    assert made.name == "made_kernel"
    assert (made.registers, made.local_bytes) == (taken.registers, taken.local_bytes)
    assert made.registers >= 16
    assert made.spill_bytes == 0
    # 8 x 32 floats.
    assert made.shared_bytes == taken.shared_bytes == 8 * 32 * 4
    assert (made.threads_per_block, made.blocks) == (256, 4)
    resident = occupancy(gpu, 256, made.registers, made.shared_bytes)
    assert (made.occupancy, made.limited_by) == (resident.fraction, resident.limited_by)
    use = access.analyse(compiled.functions[0])
    assert made.global_efficiency == use.global_efficiency == 1.0
    assert made.bank_conflicts == use.bank_conflicts == 1.0


def test_what_is_shared_out_over_another_gpu(compile_kernel, matmul):
    compiled, _ = compile_kernel(*matmul, preset="cuda-sm75")
    (made,) = report.kernel_reports(compiled, GPUS["sm_75"])
    (other,) = report.kernel_reports(compiled, GPUS["sm_80"])
    same = {"occupancy": 0.0, "limited_by": "warps"}
    assert msgspec.structs.replace(made, **same) == msgspec.structs.replace(other, **same)


def test_a_spill_is_told(compile_kernel):
    from tvm import te

    # Each thread keeps 192 sums at once, and a block of 1024 leaves 64 registers for each.
    x, w = te.placeholder((1024, 16), name="x"), te.placeholder((16, 192), name="w")
    k = te.reduce_axis((0, 16), name="k")
    y = te.compute((1024, 192), lambda i, j: te.sum(x[i, k] * w[k, j], axis=k), name="y")
    schedule = te.create_schedule(y.op)
    local = schedule.cache_write(y, "local")
    row, column = y.op.axis
    schedule[y].bind(row, te.thread_axis("threadIdx.x"))
    schedule[y].unroll(column)
    schedule[local].compute_at(schedule[y], row)
    schedule[local].reorder(local.op.reduce_axis[0], *local.op.axis)
    schedule[local].unroll(local.op.axis[1])
    compiled, _ = compile_kernel(schedule, [x, w, y])
    (made,) = report.kernel_reports(compiled, GPUS["sm_80"])
    assert made.threads_per_block == 1024
    assert made.registers <= 64
    assert made.spill_bytes > 0
    assert made.local_bytes > 0
    (taken,) = cubin.resources(compiled.cubin, compiled.log).values()
    assert made.spill_bytes == taken.spill_store_bytes + taken.spill_load_bytes
