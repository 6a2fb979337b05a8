"""Resources read from the machine code, held against what NVIDIA's assembler says of them."""

from __future__ import annotations

import importlib.metadata
import re
import subprocess

import pytest

from mobilenet_tvm.cuda import cubin, nvrtc
from mobilenet_tvm.targets.gpus import GPUS

pytestmark = pytest.mark.usefixtures("cuda_wheels")

# 48 values that all live at once where there is room for 32 or 64 registers, an array that is
# indexed at run time, shared memory, and a table in constant memory.
SOURCE = """
extern "C" __global__ void __launch_bounds__(1024, MOST) spills(float* a, float* b) {
  float live[48];
  #pragma unroll
  for (int i = 0; i < 48; ++i) live[i] = a[i * 1024 + threadIdx.x];
  #pragma unroll
  for (int j = 0; j < 4; ++j) {
    #pragma unroll
    for (int i = 0; i < 48; ++i) live[i] = live[i] * live[(i * 7 + j + 1) % 48] + 1.f;
  }
  #pragma unroll
  for (int i = 0; i < 48; ++i) b[i * 1024 + threadIdx.x] = live[i];
}
extern "C" __global__ void shares(float* a, float* b) {
  __shared__ float tile[1000];
  tile[threadIdx.x] = a[threadIdx.x];
  __syncthreads();
  b[threadIdx.x] = tile[999 - threadIdx.x];
}
extern "C" __global__ void indexes(float* a, const int* b, int n) {
  float kept[100];
  for (int i = 0; i < 100; ++i) kept[i] = a[i];
  for (int i = 0; i < n; ++i) kept[b[i]] += kept[b[i + 1]];
  for (int i = 0; i < 100; ++i) a[i] = kept[i];
}
__constant__ float table[64];
extern "C" __global__ void looks_up(float* a) { a[threadIdx.x] *= table[threadIdx.x]; }
"""
KERNELS = {"spills", "shares", "indexes", "looks_up"}


def assembled(ptx, arch, folder):
    """What ``ptxas -v`` says of each kernel: registers, shared, stack, spill stores and loads."""
    package = importlib.metadata.distribution("nvidia-cuda-nvcc-cu12")
    tool = package.locate_file("nvidia/cuda_nvcc/bin/ptxas")
    (folder / "kernels.ptx").write_bytes(ptx.rstrip(b"\0"))
    command = [str(tool), "-v", f"-arch={arch}", "kernels.ptx", "-o", "kernels.cubin"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    found = {}
    for part in done.stderr.split("Compiling entry function")[1:]:
        (name,) = re.findall(r"^ '(\w+)'", part)
        numbers = [
            re.search(pattern, part)
            for pattern in (
                r"Used (\d+) registers",
                r"(\d+) bytes smem",
                r"(\d+) bytes stack frame",
                r"(\d+) bytes spill stores",
                r"(\d+) bytes spill loads",
            )
        ]
        found[name] = tuple(int(number[1]) if number else 0 for number in numbers)
    return found, (folder / "kernels.cubin").read_bytes()


# Turing has room for 1024 threads in all; with one block each has 64 registers.
@pytest.mark.parametrize("arch", sorted(GPUS))
def test_resources_are_what_ptxas_says(arch, tmp_path):
    most = GPUS[arch].threads_per_multiprocessor // 1024
    source = SOURCE.replace("MOST", str(most))
    image = nvrtc.compile_source(source, arch)
    wanted, other = assembled(image.ptx, arch, tmp_path)
    assert set(wanted) == KERNELS
    found = cubin.resources(image.cubin, image.log)
    assert {
        name: (
            one.registers,
            one.shared_bytes,
            one.local_bytes,
            one.spill_store_bytes,
            one.spill_load_bytes,
        )
        for name, one in found.items()
    } == wanted
    # And so they are in the file that ptxas itself wrote.
    alone = cubin.resources(other)
    assert {name: one.registers for name, one in alone.items()} == {
        name: numbers[0] for name, numbers in wanted.items()
    }
    assert found["shares"].shared_bytes == 4000
    assert found["indexes"].local_bytes == 400
    assert found["indexes"].spill_store_bytes == 0
    if most == 2:  # 32 registers a thread are less than the 48 values that live
        assert found["spills"].registers == 32
        assert found["spills"].spill_store_bytes > 0
        assert found["spills"].spill_load_bytes > 0
    else:
        assert found["spills"].spill_store_bytes == 0


def test_without_the_log_spills_are_not_known():
    image = nvrtc.compile_source(SOURCE.replace("MOST", "2"), "sm_80")
    found = cubin.resources(image.cubin)["spills"]
    assert (found.spill_store_bytes, found.spill_load_bytes) == (None, None)
    assert found.local_bytes > 0


def test_constants_are_the_parameters_and_what_comes_before_them():
    image = nvrtc.compile_source(SOURCE.replace("MOST", "2"), "sm_80")
    # 0x160 bytes that the driver fills in, then the pointers.
    assert cubin.resources(image.cubin)["shares"].constant_bytes == 0x160 + 2 * 8


@pytest.mark.parametrize("data", [b"", b"no ELF file at all", "fatbin"], ids=["no", "text", "fat"])
def test_something_else_is_refused(data):
    if data == "fatbin":
        data = nvrtc.compile_source('extern "C" __global__ void k() {}', "sm_80").fatbin
    with pytest.raises(ValueError, match="not a cubin"):
        cubin.resources(data)


def test_the_host_s_code_is_refused():
    import sys
    from pathlib import Path

    with pytest.raises(ValueError, match="something else"):
        cubin.resources(Path(sys.executable).read_bytes())
