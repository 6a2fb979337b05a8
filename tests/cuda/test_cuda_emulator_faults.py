"""Kernels with a fault planted in them: the emulator names each, or the result shows it."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest

SIZE = 100
KERNEL = """extern "C" __global__ void %s k(float* __restrict__ a, float* __restrict__ b) {
%s
}
"""
COPY = "b[threadIdx.x] = a[threadIdx.x];"


def _kernel(body, bound="", dynamic=False):
    """A function of the two buffers, the blocks, the threads (and bytes of shared memory)."""
    import tvm

    from mobilenet_tvm.cuda import sources

    source = KERNEL % (bound, body)
    # The emulator has no use for machine code: any image with a source will do.
    image = source.encode()
    sources.add(source, sources.digest(image))
    tags = ["blockIdx.x", "threadIdx.x", *["tir.use_dyn_shared_memory"][: int(dynamic)]]
    described = [{"name": "k", "arg_types": ["handle"] * 2, "launch_param_tags": tags}]
    create = tvm.get_global_func("mobilenet_tvm.cuda.module")
    module = create(bytearray(image), "ptx", json.dumps(described), source)
    return module["k"]


def _launch(body, *launch, bound="", order="forward", size=SIZE):
    """``b``, before which is ``a``: 0, 1, 2 ...; both have ``size`` floats."""
    import ctypes

    import tvm

    from mobilenet_tvm.cuda import emulator

    device = tvm.cuda(0)
    emulator.set_order(reverse=order == "reverse")
    a = tvm.nd.array(np.arange(size, dtype="float32"), device)
    b = tvm.nd.empty((size,), "float32", device)
    run = _kernel(body, bound, dynamic=len(launch) > 2)
    run(*(ctypes.c_void_p(array.handle.contents.data) for array in (a, b)), *launch)
    return b.numpy()


def _reversed(body, *launch):
    return _launch(body, *launch, order="reverse")


def _bounded(body, *launch):
    return _launch(body, *launch, bound="__launch_bounds__(32)")


def fault(emulated, function, *arguments):
    """The line that tells what was wrong."""
    with pytest.raises(RuntimeError, match="CUDA_ERROR_") as caught:
        emulated.call(function, *arguments)
    return re.findall(r"CUDA_ERROR_\w+: .*", str(caught.value))[0]


def test_a_right_kernel_first(emulated):
    np.testing.assert_array_equal(emulated.call(_launch, COPY, 1, SIZE), np.arange(SIZE))


# 100 floats are 400 bytes: 48 more, for TVM's alignment, are poison; then comes the guard.
@pytest.mark.parametrize(
    ("body", "told"),
    [
        (
            "b[threadIdx.x] = a[threadIdx.x + 50];",
            "reads 48 bytes past the end of a buffer of 400 bytes (argument 0), in thread "
            "(62, 0, 0) of block (0, 0, 0)",
        ),
        (
            "b[threadIdx.x + 50] = a[threadIdx.x];",
            "writes 48 bytes past the end of a buffer of 400 bytes (argument 1), in thread "
            "(62, 0, 0) of block (0, 0, 0)",
        ),
        (
            "b[threadIdx.x + 1] = a[threadIdx.x];",
            "wrote 0 bytes past the end of a buffer of 400 bytes (argument 1)",
        ),
        (
            "b[(int)threadIdx.x - 1] = a[threadIdx.x];",
            "wrote 4 bytes before a buffer of 400 bytes (argument 1)",
        ),
        (
            # A channel of 112 x 112 too many.
            "b[threadIdx.x] = a[threadIdx.x + 12544];",
            "reads 49776 bytes past the end of a buffer of 400 bytes (argument 0), in thread "
            "(0, 0, 0) of block (0, 0, 0)",
        ),
        (
            "b[threadIdx.x] = *(float*)16;",
            "reads where no buffer is, in thread (0, 0, 0) of block (0, 0, 0)",
        ),
    ],
    ids=["read", "write", "write by one", "write before", "read a channel on", "null"],
)
def test_out_of_bounds(emulated, body, told):
    assert fault(emulated, _launch, body, 1, SIZE) == (
        f"CUDA_ERROR_ILLEGAL_ADDRESS: kernel k {told}"
    )
    # The device is as good as new.
    np.testing.assert_array_equal(emulated.call(_launch, COPY, 1, SIZE), np.arange(SIZE))


@pytest.mark.parametrize("shift", [-1, 1])
def test_reading_beside_a_buffer_is_nan(emulated, shift):
    body = f"b[threadIdx.x] = max(a[(int)threadIdx.x + {shift}], 0.0f);"
    result = emulated.call(_launch, body, 1, SIZE)
    assert np.isnan(result[0 if shift < 0 else -1]), "max() must not hide it"
    assert np.isnan(result).sum() == 1


def _use_after_free():
    import ctypes

    import tvm

    device = tvm.cuda(0)
    a = tvm.nd.array(np.zeros(SIZE, "float32"), device)
    b = tvm.nd.empty((SIZE,), "float32", device)
    pointers = [ctypes.c_void_p(array.handle.contents.data) for array in (a, b)]
    del a
    tvm.nd.empty((SIZE,), "float32", device)
    _kernel(COPY)(*pointers, 1, 1)


def test_use_after_free(emulated):
    assert "kernel k reads in a buffer that was freed" in fault(emulated, _use_after_free)


def test_what_is_never_written_is_nan(emulated):
    result = emulated.call(_launch, "if (threadIdx.x < 99) b[threadIdx.x] = 1;", 1, SIZE)
    assert np.isnan(result).tolist() == [False] * 99 + [True]


REVERSE = """__shared__ float s[64]; s[threadIdx.x] = a[threadIdx.x]; %s
b[threadIdx.x] = s[63 - threadIdx.x];"""


def test_a_missing_barrier_is_nan_in_both_orders(emulated):
    whole, without = REVERSE % "__syncthreads();", REVERSE % ""
    for run, bad in ((_launch, slice(0, 32)), (_reversed, slice(32, 64))):
        expected = np.arange(63, -1, -1, dtype="float32")
        np.testing.assert_array_equal(emulated.call(run, whole, 1, 64)[:64], expected)
        result = emulated.call(run, without, 1, 64)[:64]
        assert np.isnan(result[bad]).all()
        assert not np.isnan(np.delete(result, bad)).any()


def test_shared_memory_does_not_pass_from_block_to_block(emulated):
    body = "__shared__ float s[1]; if (blockIdx.x == 0) s[0] = 3; b[blockIdx.x] = s[0];"
    result = emulated.call(_launch, body, 2, 1)
    assert result[0] == 3
    assert np.isnan(result[1])


@pytest.mark.parametrize(
    ("body", "blocks", "threads"),
    [
        ("b[0] = threadIdx.x;", 1, 64),
        ("b[0] = blockIdx.x;", 64, 1),
        (
            "b[threadIdx.x] = 0; __syncthreads(); b[(threadIdx.x + 1) % 64] += b[threadIdx.x] + 1;",
            1,
            64,
        ),
    ],
    ids=["threads", "blocks", "neighbours"],
)
def test_a_race_differs_in_reverse_order(emulated, body, blocks, threads):
    forward = emulated.call(_launch, body, blocks, threads)
    backward = emulated.call(_reversed, body, blocks, threads)
    assert (forward[:64] != backward[:64]).any()


@pytest.mark.parametrize(
    ("body", "threads", "told"),
    [
        (
            REVERSE % "__syncthreads();",
            65,
            "writes 0 bytes past the end of the shared array s of 256 bytes, in thread (64, 0, 0) "
            "of block (0, 0, 0)",
        ),
        (
            # 252 bytes are not a multiple of what shared arrays are aligned to.
            "__shared__ float s[63]; s[threadIdx.x] = 1;",
            64,
            "wrote 0 bytes past the end of the shared array s of 252 bytes",
        ),
        (
            "__shared__ float s[64]; __shared__ float t[64]; s[threadIdx.x] = t[threadIdx.x] = 1;"
            "b[threadIdx.x] = t[threadIdx.x + 1];",
            64,
            "reads 0 bytes past the end of the shared array t of 256 bytes, in thread (63, 0, 0) "
            "of block (0, 0, 0)",
        ),
        (
            "__shared__ float s[64]; s[(int)threadIdx.x - 1] = 1;",
            64,
            "wrote 4 bytes before the shared array s of 256 bytes",
        ),
    ],
    ids=["write", "write by one", "read of the second array", "write before"],
)
def test_out_of_bounds_in_shared_memory(emulated, body, threads, told):
    assert fault(emulated, _launch, body, 1, threads) == (
        f"CUDA_ERROR_ILLEGAL_ADDRESS: kernel k {told}"
    )


DYNAMIC = (
    "extern __shared__ float s[]; s[threadIdx.x] = a[threadIdx.x]; b[threadIdx.x] = s[threadIdx.x];"
)


def test_dynamic_shared_memory_is_as_long_as_the_launch_says(emulated):
    result = emulated.call(_launch, DYNAMIC, 1, 64, 256)
    np.testing.assert_array_equal(result[:64], np.arange(64))
    told = fault(emulated, _launch, DYNAMIC, 1, 64, 252 - 12)
    assert "writes 0 bytes past the end of the shared array s of 240 bytes" in told


@pytest.mark.parametrize(
    ("function", "body", "launch", "told"),
    [
        (_launch, COPY, (1, 2048), "wants 2048 threads a block, sm_80 has at most 1024"),
        (
            _bounded,
            COPY,
            (1, 64),
            "wants 64 threads a block, its __launch_bounds__ say at most 32",
        ),
        (
            _launch,
            "__shared__ float s[12289]; s[threadIdx.x] = 1;",
            (1, 64),
            "wants 49156 bytes of shared memory a block, sm_80 has at most 49152",
        ),
        (
            _launch,
            "__shared__ float t[12288]; t[0] = 1;" + DYNAMIC,
            (1, 4, 16),
            "wants 49168 bytes of shared memory a block, sm_80 has at most 49152",
        ),
    ],
    ids=["threads", "bounds", "shared", "dynamic"],
)
def test_limits(emulated, function, body, launch, told):
    assert fault(emulated, function, body, *launch) == f"CUDA_ERROR_INVALID_VALUE: kernel k {told}"


def test_more_shared_memory_for_who_asks(emulated):
    # 100 KiB: TVM asks the driver for it. 164 KiB less the system's 1 KiB is all there is.
    result = emulated.call(_launch, DYNAMIC, 1, 64, 100 << 10)
    np.testing.assert_array_equal(result[:64], np.arange(64))
    emulated.call(_launch, DYNAMIC, 1, 64, 163 << 10)
    with pytest.raises(Exception, match="Failed to set the allowed dynamic shared memory size"):
        emulated.call(_launch, DYNAMIC, 1, 64, 164 << 10)


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (
            "if (threadIdx.x < 3) __syncthreads();",
            "3 threads at the __syncthreads() of line 2, 61 at the end",
        ),
        (
            "if (threadIdx.x < 3)\n__syncthreads();\nelse\n__syncthreads();",
            "3 threads at the __syncthreads() of line 3, 61 at that of line 5",
        ),
        (
            "for (int i = 0; i < threadIdx.x; ++i) __syncthreads();",
            "63 threads at the __syncthreads() of line 2, 1 at the end",
        ),
        (
            "if (threadIdx.x == 40)\n b[0] = __shfl_down_sync(0xffffffff, 1.0f, 1, 32);\n"
            "__syncthreads();",
            "63 threads at the __syncthreads() of line 4, 1 thread in a warp operation that lanes "
            "of its mask do not come to",
        ),
    ],
    ids=["some end", "two places", "counts", "a warp"],
)
def test_divergent_barriers(emulated, body, told):
    assert fault(emulated, _launch, body, 1, 64) == (
        "CUDA_ERROR_LAUNCH_FAILED: kernel k has threads that wait for each other at different "
        f"places: {told}, in block (0, 0, 0)"
    )


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ("b[0] = 3 / (int)a[0];", "divides an integer by zero"),
        ("__trap();", "calls __trap()"),
        (
            "volatile char x[600000]; x[0] = 1; b[0] = x[0];",
            "needs more than 512 KiB of local memory for a thread",
        ),
    ],
    ids=["division", "trap", "stack"],
)
def test_other_faults(emulated, body, told):
    assert f"kernel k {told}, in thread (0, 0, 0)".replace("(), in", "() in") in fault(
        emulated, _launch, body, 1, 1
    )


def _refused(body):
    from mobilenet_tvm.cuda import CudaError

    try:
        _launch(body, 1, 1)
    except CudaError as error:
        return str(error)
    raise AssertionError("it ran")


def test_what_cannot_be_run_is_said_in_a_line(emulated):
    assert emulated.call(_refused, 'asm volatile("cp.async.wait_all;");') == (
        "the CUDA emulator does not have inline assembly (cp.async, mma) (line 2 of the kernels)"
    )
    told = emulated.call(_refused, "floot x = 3;")
    assert "refuses the kernels for the emulator: kernels.cu:2:1: error: " in told


def _unknown():
    import ctypes

    import tvm

    from mobilenet_tvm.cuda import CudaError

    described = [{"name": "k", "arg_types": ["handle"], "launch_param_tags": ["blockIdx.x"]}]
    create = tvm.get_global_func("mobilenet_tvm.cuda.module")
    module = create(bytearray(b"// of someone else"), "ptx", json.dumps(described), "")
    try:
        module["k"](ctypes.c_void_p(0), 1)
    except CudaError as error:
        return str(error)
    raise AssertionError("it ran")


def test_an_image_without_a_source(emulated):
    assert emulated.call(_unknown).startswith(
        "the emulator runs CUDA C, and the source of this artifact's kernels is not here: "
        "<name>.cu belongs beside the .so (image "
    )


def _host_fault():
    """A fault outside of a kernel is not the emulator's: it ends the process, as it always did."""
    import ctypes

    _launch(COPY, 1, SIZE)
    ctypes.string_at(8)


def test_a_fault_of_the_host_stays_one(cuda_compiler):
    from concurrent.futures.process import BrokenProcessPool

    from emulated_process import EmulatedProcess

    process = EmulatedProcess()
    try:
        with pytest.raises(BrokenProcessPool):
            process.call(_host_fault)
    finally:
        process.close()
