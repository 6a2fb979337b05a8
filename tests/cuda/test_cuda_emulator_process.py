"""The emulated plug-in as a library, in a process with TVM's runtime alone, and its settings."""

from __future__ import annotations

import json

import numpy as np
import pytest
from elftools.elf.elffile import ELFFile
from emulated_process import EmulatedProcess

from mobilenet_tvm.cuda import CudaError, compilers, emulator, plugin
from mobilenet_tvm.cuda.emulator_source import translate
from mobilenet_tvm.targets.gpus import GPUS


def test_the_library_has_all_of_cuda_to_itself(cuda_compiler):
    """What TVM calls is there, and nobody else in the process gets to call it."""
    with plugin.library(emulated=True).open("rb") as file:
        table = ELFFile(file).get_section_by_name(".dynsym")
        names = [symbol.name for symbol in table.iter_symbols() if symbol.name.startswith("cu")]
    assert names == []


def _save(path):
    import tvm
    from tvm import te

    from mobilenet_tvm import targets

    a = te.placeholder((64,), name="a")
    b = te.compute((64,), lambda i: a[i] + 1.0, name="b")
    schedule = te.create_schedule(b.op)
    schedule[b].bind(b.op.axis[0], te.thread_axis("threadIdx.x"))
    target = targets.resolve("cuda-sm80").tvm_target()
    module = tvm.build(schedule, [a, b], target=target, name="add")
    module.export_library(path)


def _load(path):
    from mobilenet_tvm import cuda

    cuda.activate()
    import tvm

    device = tvm.cuda(0)
    a = tvm.nd.array(np.arange(64, dtype="float32"), device)
    b = tvm.nd.empty((64,), device=device)
    tvm.runtime.load_module(path)["add"](a, b)
    has_compiler = tvm.get_global_func("relay._transform.InferType", True) is not None
    return b.numpy(), has_compiler, device.device_name


def test_with_the_runtime_alone(emulated, tmp_path):
    """Another process, with another GPU; it finds the source of the image in the cache."""
    path = str(tmp_path / "add.so")
    emulated.call(_save, path)
    process = EmulatedProcess("sm_75", activate=False, environment={"TVM_USE_RUNTIME_LIB": "1"})
    try:
        got, has_compiler, name = process.call(_load, path)
    finally:
        process.close()
    np.testing.assert_array_equal(got, np.arange(64) + 1)
    assert not has_compiler
    assert name == "CUDA emulator (sm_75)"


HUNGRY = """extern "C" __global__ void k(float* a) {
  float x[160];
#pragma unroll
  for (int i = 0; i < 160; ++i) x[i] = a[i * 64 + threadIdx.x];
  for (int round = 0; round < 3; ++round) {
#pragma unroll
    for (int i = 0; i < 160; ++i) x[i] = x[i] * x[(i * 7 + 1) % 160] + 1;
  }
#pragma unroll
  for (int i = 0; i < 160; ++i) a[i * 64 + threadIdx.x] = x[i];
}
"""


def _registers(threads):
    import ctypes

    import tvm

    from mobilenet_tvm.cuda import nvrtc, sources

    image = nvrtc.compile_source(HUNGRY, "sm_80").fatbin
    sources.add(HUNGRY, sources.digest(image))
    described = [{"name": "k", "arg_types": ["handle"], "launch_param_tags": ["threadIdx.x"]}]
    create = tvm.get_global_func("mobilenet_tvm.cuda.module")
    module = create(bytearray(image), "cubin", json.dumps(described), HUNGRY)
    a = tvm.nd.array(np.zeros(160 * 64 + 1024, "float32"), tvm.cuda(0))
    module["k"](ctypes.c_void_p(a.handle.contents.data), threads)


def test_too_many_registers(emulated):
    emulated.call(_registers, 256)
    told = "OUT_OF_RESOURCES: kernel k wants [0-9]+ registers a block, sm_80 has at most 65536"
    with pytest.raises(RuntimeError, match=told):
        emulated.call(_registers, 1024)


def test_the_gpu_is_chosen_by_the_environment(monkeypatch):
    monkeypatch.delenv(emulator.ARCH_VARIABLE, raising=False)
    assert emulator.emulated_gpu().arch == "sm_80"
    for arch, gpu in GPUS.items():
        monkeypatch.setenv(emulator.ARCH_VARIABLE, arch)
        assert emulator.emulated_gpu() is gpu
    monkeypatch.setenv(emulator.ARCH_VARIABLE, "sm_30")
    with pytest.raises(CudaError, match="MOBILENET_TVM_CUDA_ARCH=sm_30 is none of sm_75, sm_80"):
        emulator.emulated_gpu()


def test_an_image_is_compiled_once(monkeypatch, tmp_path, cuda_compiler):
    monkeypatch.setenv("MOBILENET_TVM_CACHE", str(tmp_path))
    kernel = 'extern "C" __global__ void k(float* a) { a[0] = 1; }'
    first = emulator.compile_image(kernel)
    written = first.stat().st_mtime_ns
    assert emulator.compile_image(kernel) == first
    assert first.stat().st_mtime_ns == written
    # Nothing else is left there, and another source is another file.
    assert list(first.parent.iterdir()) == [first]
    assert emulator.compile_image(kernel.replace("1", "2")) != first


def test_where_zig_is_the_only_compiler(monkeypatch, tmp_path):
    """It takes the headers, and a kernel; to link would be to build zig's C library first."""
    pytest.importorskip("ziglang")
    monkeypatch.setattr(compilers, "find", lambda: None)
    emulator._compiler.cache_clear()
    compiler, _ = emulator._compiler(None)
    emulator._compiler.cache_clear()
    assert "ziglang" in compiler.command
    source = tmp_path / "kernels.cc"
    source.write_text(translate("#include <cuda_fp16.h>\n" + HUNGRY))
    flags = [flag for flag in emulator._FLAGS if flag not in ("-shared", "-w")]
    headers = f"-I{emulator._HEADERS}"
    made = tmp_path / "kernels.o"
    done = compiler.run([*flags, "-Wall", "-Werror", headers, "-c", str(source), "-o", str(made)])
    assert done.returncode == 0, done.stderr
