"""TVM's own kernels, executors, timing and RPC on the emulator, against numpy.

Times of the emulator are host times and mean nothing; that there are some is all that is asked.
"""

from __future__ import annotations

import re

import numpy as np
import pytest

TARGET = "cuda-sm80"


def _build(schedule, arguments, *, postproc=None):
    """``(module, source)`` of a TE schedule; ``postproc`` changes the source that is run."""
    import tvm

    from mobilenet_tvm import targets
    from mobilenet_tvm.cuda import codegen, sources

    with codegen.collecting() as built:
        module = tvm.build(schedule, arguments, target=targets.resolve(TARGET).tvm_target())
    (compiled,) = built
    source = compiled.source
    if postproc is not None:
        source = postproc(source)
        assert source != compiled.source
    # Whether or not it is the one that was compiled: the next test may run the same image.
    sources.add(source, sources.digest(compiled.image))
    return module, source


def _run(module, *arrays, reverse=False):
    """The last of ``arrays`` after the module ran on them; it is there for its shape."""
    import tvm

    from mobilenet_tvm.cuda import emulator

    emulator.set_order(reverse=reverse)
    device = tvm.cuda(0)
    *inputs, output = arrays
    result = tvm.nd.empty(output.shape, str(output.dtype), device)
    module(*(tvm.nd.array(array, device) for array in inputs), result)
    return result.numpy()


def _random(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def _device():
    import tvm

    device = tvm.cuda(0)
    return {
        name: getattr(device, name)
        for name in (
            "exist",
            "device_name",
            "compute_version",
            "max_threads_per_block",
            "warp_size",
            "max_shared_memory_per_block",
            "multi_processor_count",
            "max_thread_dimensions",
            "l2_cache_size_bytes",
        )
    } | {"second": tvm.cuda(1).exist}


def test_the_device_is_the_gpu_that_was_asked_for(emulated):
    assert emulated.call(_device) == {
        "exist": True,
        "device_name": "CUDA emulator (sm_80)",
        "compute_version": "8.0",
        "max_threads_per_block": 1024,
        "warp_size": 32,
        "max_shared_memory_per_block": 48 << 10,
        "multi_processor_count": 108,
        "max_thread_dimensions": [1024, 1024, 64],
        "l2_cache_size_bytes": 40 << 20,
        "second": False,
    }


def _add(size):
    from tvm import te

    a, b = (te.placeholder((size,), name=name) for name in "ab")
    c = te.compute((size,), lambda i: a[i] + b[i], name="c")
    schedule = te.create_schedule(c.op)
    blocks, threads = schedule[c].split(c.op.axis[0], 64)
    schedule[c].bind(blocks, te.thread_axis("blockIdx.x"))
    schedule[c].bind(threads, te.thread_axis("threadIdx.x"))
    module, _ = _build(schedule, [a, b, c])
    x, y = _random(size), _random(size, seed=1)
    return x + y, _run(module, x, y, x)


def test_vector_add(emulated):
    # Not a multiple of the block: the last one is guarded.
    expected, got = emulated.call(_add, 1000)
    np.testing.assert_array_equal(got, expected)


def _product(n=64, tile=16, step=8):
    """``te`` schedule of a matrix product: tiles of both operands in shared memory."""
    import tvm
    from tvm import te

    a, b = (te.placeholder((n, n), name=name) for name in "ab")
    k = te.reduce_axis((0, n), "k")
    c = te.compute((n, n), lambda i, j: te.sum(a[i, k] * b[k, j], axis=k), name="c")
    schedule = te.create_schedule(c.op)
    shared = [schedule.cache_read(x, "shared", [c]) for x in (a, b)]
    local = schedule.cache_write(c, "local")
    i, j = c.op.axis
    block_i, i = schedule[c].split(i, tile)
    block_j, j = schedule[c].split(j, tile)
    schedule[c].reorder(block_i, block_j, i, j)
    threads = te.thread_axis((0, tile), "threadIdx.y"), te.thread_axis((0, tile), "threadIdx.x")
    schedule[c].bind(block_i, te.thread_axis("blockIdx.y"))
    schedule[c].bind(block_j, te.thread_axis("blockIdx.x"))
    schedule[c].bind(i, threads[0])
    schedule[c].bind(j, threads[1])
    schedule[local].compute_at(schedule[c], j)
    outer, inner = schedule[local].split(schedule[local].op.reduce_axis[0], step)
    schedule[local].reorder(outer, inner, *schedule[local].op.axis)
    for stage in shared:
        schedule[stage].compute_at(schedule[local], outer)
        fused = schedule[stage].fuse(*schedule[stage].op.axis)
        rest, x = schedule[stage].split(fused, tile)
        _, y = schedule[stage].split(rest, tile)
        schedule[stage].bind(x, threads[1])
        schedule[stage].bind(y, threads[0])
    assert tvm.lower(schedule, [a, b, c]) is not None
    return schedule, [a, b, c]


def _multiply(removed=None, n=64):
    """The product expected, and that of both orders; without the ``removed``-th barrier."""

    def without(source):
        at = [match.start() for match in re.finditer(r"__syncthreads\(\);", source)][removed]
        return source[:at] + "/* none   */ ;  " + source[at + len("__syncthreads();") :]

    module, source = _build(*_product(n), postproc=None if removed is None else without)
    x, y = _random(n, n), _random(n, n, seed=1)
    both = [_run(module, x, y, x, reverse=reverse) for reverse in (False, True)]
    return x @ y, both, source


def test_product_through_shared_memory(emulated):
    expected, (forward, backward), source = emulated.call(_multiply)
    assert source.count("__shared__") == 2
    assert source.count("__syncthreads();") == 2
    np.testing.assert_allclose(forward, expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(forward, backward)


@pytest.mark.parametrize("removed", [0, 1])
def test_a_barrier_less_is_seen(emulated, removed):
    """The first keeps a tile until all have used it, the second waits until it is there."""
    expected, (forward, backward), source = emulated.call(_multiply, removed)
    assert source.count("__syncthreads();") == 1
    for got in (forward, backward):
        assert not np.allclose(got, expected, rtol=1e-2, atol=1e-2)


def _sum(rows, columns, threads):
    from tvm import te

    a = te.placeholder((rows, columns), name="a")
    k = te.reduce_axis((0, columns), "k")
    total = te.compute((rows,), lambda i: te.sum(a[i, k], axis=k), name="total")
    schedule = te.create_schedule(total.op)
    _, inner = schedule[total].split(total.op.reduce_axis[0], threads)
    partial = schedule.rfactor(total, inner)
    along = te.thread_axis("threadIdx.x")
    schedule[total].bind(schedule[total].op.axis[0], te.thread_axis("blockIdx.x"))
    schedule[total].bind(schedule[total].op.reduce_axis[0], along)
    schedule[partial].compute_at(schedule[total], schedule[total].op.reduce_axis[0])
    module, source = _build(schedule, [a, total])
    x = _random(rows, columns)
    both = [
        _run(module, x, np.zeros(rows, "float32"), reverse=reverse) for reverse in (False, True)
    ]
    return x.sum(axis=1), both, source


@pytest.mark.parametrize("threads", [32, 128])
def test_sum_by_warp_shuffles(emulated, threads):
    expected, (forward, backward), source = emulated.call(_sum, 3, 512, threads)
    assert "__shfl_down_sync" in source
    # More than one warp also goes through shared memory.
    assert ("__shared__" in source) is (threads > 32)
    np.testing.assert_allclose(forward, expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(forward, backward)


def _network():
    """``(library, input, expected)``: a convolution, ReLU, a depthwise one, pooling, softmax."""
    import tvm
    from tvm import relay

    from mobilenet_tvm import targets

    shapes = {"x": (1, 3, 12, 12), "w": (8, 3, 3, 3), "d": (8, 1, 3, 3)}
    x, w, d = (relay.var(name, shape=shape) for name, shape in shapes.items())
    y = relay.nn.relu(relay.nn.conv2d(x, w, (2, 2), (1, 1), channels=8, kernel_size=(3, 3)))
    y = relay.nn.conv2d(y, d, padding=(1, 1), groups=8, channels=8, kernel_size=(3, 3))
    y = relay.nn.softmax(relay.nn.batch_flatten(relay.nn.global_avg_pool2d(y)))
    module = tvm.IRModule.from_expr(relay.Function([x, w, d], y))
    values = {name: _random(*shape, seed=n) for n, (name, shape) in enumerate(shapes.items())}
    weights = {name: tvm.nd.array(values[name]) for name in "wd"}
    with tvm.transform.PassContext(opt_level=3):
        library = relay.build(module, targets.resolve(TARGET).tvm_target(), params=weights)
        host = relay.create_executor("graph", module, tvm.cpu(0), "llvm", weights).evaluate()
        return library, values["x"], host(values["x"]).numpy()


def _graph(kind):
    import tvm
    from tvm.contrib import graph_executor
    from tvm.contrib.cuda_graph import cuda_graph_executor

    library, x, expected = _network()
    device = tvm.cuda(0)
    if kind == "graph":
        executor = graph_executor.GraphModule(library["default"](device))
        executor.set_input("x", x)
        executor.run()
        timed = executor.benchmark(device, repeat=2, number=3).results
        return expected, executor.get_output(0).numpy(), timed
    executor = cuda_graph_executor.create(library.get_graph_json(), library.get_lib(), device)
    executor.set_input(**library.get_params())
    executor.set_input("x", np.zeros_like(x))
    executor.capture_cuda_graph()
    # What is recorded reads the input anew.
    executor.set_input("x", x)
    executor.run_cuda_graph()
    return expected, executor.get_output(0).numpy(), ()


@pytest.mark.parametrize("kind", ["graph", "cuda graph"])
def test_executors(emulated, kind):
    expected, got, timed = emulated.call(_graph, kind)
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)
    assert got.std() > 0
    assert all(time_s > 0 for time_s in timed)


def _time(flush):
    import tvm
    from tvm import te

    a = te.placeholder((256,), name="a")
    b = te.compute((256,), lambda i: a[i] * 2.0, name="b")
    schedule = te.create_schedule(b.op)
    schedule[b].bind(b.op.axis[0], te.thread_axis("threadIdx.x"))
    module, _ = _build(schedule, [a, b])
    device = tvm.cuda(0)
    x, y = tvm.nd.array(_random(256), device), tvm.nd.empty((256,), device=device)
    preproc = "l2_cache_flush_cuda" if flush else ""
    evaluator = module.time_evaluator(
        module.entry_name, device, number=2, repeat=3, f_preproc=preproc
    )
    return evaluator(x, y).results


@pytest.mark.parametrize("flush", [False, True], ids=["warm", "flushed"])
def test_time_evaluator(emulated, flush):
    times_s = emulated.call(_time, flush)
    assert len(times_s) == 3
    assert all(0 < time_s < 1 for time_s in times_s)


def _ansor(count):
    """Of ``count`` random schedules of a convolution, ``(expected, got)`` of each."""
    import tvm
    from tvm import auto_scheduler, te, topi

    from mobilenet_tvm import targets

    def work():
        x = te.placeholder((1, 8, 14, 14), name="x")
        w = te.placeholder((16, 8, 3, 3), name="w")
        y = topi.nn.conv2d_nchw(x, w, 1, 1, 1)
        return [x, w, topi.nn.relu(y)]

    auto_scheduler.register_workload("emulated_conv", f=work, override=True)
    target = targets.resolve(TARGET).tvm_target()
    limits = auto_scheduler.HardwareParams(
        target=target,
        max_shared_memory_per_block=48 << 10,
        max_local_memory_per_block=1 << 31 - 1,
        max_threads_per_block=1024,
        max_vthread_extent=8,
        warp_size=32,
        vector_unit_bytes=16,
        num_cores=-1,
        cache_line_bytes=64,
    )
    task = auto_scheduler.SearchTask("emulated_conv", (), target=target, hardware_params=limits)
    few = {"sample_init_min_population": 5, "evolutionary_search_population": 16}
    few = {**auto_scheduler.SketchPolicy.DEFAULT_PARAMS, **few}
    policy = auto_scheduler.SketchPolicy(task, params=few, verbose=0, seed=1)
    x, w = _random(1, 8, 14, 14), _random(16, 8, 3, 3, seed=1)
    reference = tvm.build(
        te.create_schedule(task.compute_dag.tensors[-1].op), task.compute_dag.tensors, "llvm"
    )
    expected = tvm.nd.empty((1, 16, 14, 14))
    hosted = [tvm.nd.array(array) for array in (x, w)]
    reference(*hosted, expected)
    results = []
    for state in policy.sample_initial_population()[:count]:
        schedule, tensors = task.compute_dag.apply_steps_from_state(state)
        module, source = _build(schedule, tensors)
        results.append((expected.numpy(), _run(module, x, w, expected.numpy()), source))
    return results


def test_random_schedules_of_ansor(emulated):
    results = emulated.call(_ansor, 3)
    assert len({source for *_, source in results}) == 3
    assert any("__syncthreads" in source for *_, source in results)
    for expected, got, _ in results:
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)


def _over_rpc(folder):
    """A session of TVM's own server, a process that has a device of its own."""
    import tvm
    from tvm import rpc, te

    from mobilenet_tvm import cuda

    server = rpc.Server("127.0.0.1", 9190, 9199, server_init_callback=cuda.activate)
    try:
        a = te.placeholder((100,), name="a")
        b = te.compute((100,), lambda i: a[i] * 2.0, name="b")
        schedule = te.create_schedule(b.op)
        schedule[b].bind(b.op.axis[0], te.thread_axis("threadIdx.x"))
        module, _ = _build(schedule, [a, b])
        path = f"{folder}/double.so"
        module.export_library(path)
        session = rpc.connect("127.0.0.1", server.port)
        session.upload(path)
        remote = session.load_module("double.so")
        device = session.cuda(0)
        x = _random(100)
        y = tvm.nd.empty((100,), device=device)
        timed = remote.time_evaluator(remote.entry_name, device, number=2)
        mean_s = timed(tvm.nd.array(x, device), y).mean
        return device.device_name, x * 2, y.numpy(), mean_s
    finally:
        server.terminate()


def test_over_rpc(emulated, tmp_path):
    name, expected, got, mean_s = emulated.call(_over_rpc, str(tmp_path))
    assert name == "CUDA emulator (sm_80)"
    np.testing.assert_array_equal(got, expected)
    assert mean_s > 0
