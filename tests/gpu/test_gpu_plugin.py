"""The plug-in on the machine's own CUDA: the device it reports, and a kernel that it runs."""

from __future__ import annotations

import numpy as np

from mobilenet_tvm import cuda, targets
from mobilenet_tvm.cuda import gpu


def test_the_device_is_the_one_that_was_found() -> None:
    cuda.activate()
    import tvm

    device = tvm.cuda(0)
    assert device.exist
    major, minor = map(int, device.compute_version.split("."))
    found = gpu.find_gpu()
    if cuda.emulated():
        preset = targets.resolve("cuda")
        assert preset.gpu is not None
        assert (major, minor) == preset.gpu.compute_capability
        return
    assert found is not None
    assert (major, minor) == found.compute_capability
    assert device.multi_processor_count == (found.multiprocessors or device.multi_processor_count)
    preset = targets.resolve("cuda")
    assert preset.gpu is not None
    assert device.max_shared_memory_per_block >= preset.gpu.shared_per_block
    assert device.max_threads_per_block >= preset.gpu.threads_per_block


def test_a_kernel_with_shared_memory_and_a_barrier() -> None:
    cuda.activate()
    import tvm
    from tvm import te

    rows, width = 40, 128
    x = te.placeholder((rows, width), name="x")
    step = te.reduce_axis((0, width), name="step")
    total = te.compute((rows,), lambda i: te.sum(x[i, step] * x[i, step], axis=step), name="total")
    schedule = te.create_schedule(total.op)
    _, inner = schedule[total].split(schedule[total].op.reduce_axis[0], factor=64)
    partial = schedule.rfactor(total, inner)
    thread = te.thread_axis((0, 64), "threadIdx.x")
    schedule[total].bind(schedule[total].op.axis[0], te.thread_axis("blockIdx.x"))
    schedule[total].bind(schedule[total].op.reduce_axis[0], thread)
    schedule[partial].compute_at(schedule[total], schedule[total].op.reduce_axis[0])
    schedule[total].set_store_predicate(thread.var.equal(0))
    kernel = tvm.build(schedule, [x, total], targets.resolve("cuda").tvm_target())
    given = np.random.default_rng(0).uniform(-1, 1, (rows, width)).astype("float32")
    device = tvm.cuda(0)
    out = tvm.nd.array(np.full(rows, np.nan, "float32"), device)
    kernel(tvm.nd.array(given, device), out)
    np.testing.assert_allclose(out.numpy(), (given**2).sum(axis=1), rtol=1e-5)
