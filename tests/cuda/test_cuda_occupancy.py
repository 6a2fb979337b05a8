"""Occupancy against NVIDIA's own calculator, and against figures done by hand."""

from __future__ import annotations

import importlib.metadata
import itertools
import subprocess

import pytest

from mobilenet_tvm.cuda.occupancy import Occupancy, occupancy
from mobilenet_tvm.targets.gpus import GPUS

KIB = 1 << 10

# Reads lines of numbers and answers each with the resident blocks of one multiprocessor.
CALCULATOR = r"""
#include <cstdio>
#include <cuda_occupancy.h>
int main() {
  cudaOccDeviceProp gpu;
  cudaOccFuncAttributes kernel;
  cudaOccDeviceState state;
  gpu.maxThreadsPerBlock = 1024;
  gpu.regsPerBlock = gpu.regsPerMultiprocessor = 65536;
  gpu.warpSize = 32;
  gpu.sharedMemPerBlock = gpu.sharedMemPerBlockOptin = 48 << 10;
  gpu.numSms = 1;
  kernel.maxThreadsPerBlock = 1024;
  kernel.numBlockBarriers = 1;
  int threads;
  while (scanf("%d %d %d %zu %zu %d %d %zu", &gpu.computeMajor, &gpu.computeMinor,
               &gpu.maxThreadsPerMultiprocessor, &gpu.sharedMemPerMultiprocessor,
               &gpu.reservedSharedMemPerBlock, &threads, &kernel.numRegs,
               &kernel.sharedSizeBytes) == 8) {
    cudaOccResult result;
    cudaOccError error = cudaOccMaxActiveBlocksPerMultiprocessor(&result, &gpu, &kernel, &state,
                                                                 threads, 0);
    if (error != CUDA_OCC_SUCCESS) return error;
    printf("%d\n", result.activeBlocksPerMultiprocessor);
  }
}
"""

THREADS = (1, 32, 33, 64, 96, 128, 200, 256, 288, 384, 512, 640, 768, 1000, 1024)
REGISTERS = (8, 16, 24, 25, 32, 33, 40, 48, 56, 64, 65, 80, 96, 128, 129, 168, 200, 255)
SHARED = (0, 1, 100, 1024, 3000, 4096, 8192, 10000, 16384, 20000, 24576, 32768, 40000, 49152)


@pytest.fixture(scope="module")
def calculator(cuda_compiler, tmp_path_factory):
    folder = tmp_path_factory.mktemp("calculator")
    (folder / "calculator.cc").write_text(CALCULATOR)
    package = importlib.metadata.distribution("nvidia-cuda-runtime-cu12")
    include = package.locate_file("nvidia/cuda_runtime/include")
    done = cuda_compiler.run(
        [*cuda_compiler.compile_flags, *cuda_compiler.link_flags, f"-I{include}",
         str(folder / "calculator.cc"), "-o", str(folder / "calculator")]
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder / "calculator"


@pytest.mark.parametrize("arch", sorted(GPUS))
def test_it_is_nvidia_s_calculator(calculator, arch):
    gpu = GPUS[arch]
    kernels = list(itertools.product(THREADS, REGISTERS, SHARED))
    about = (
        *gpu.compute_capability,
        gpu.threads_per_multiprocessor,
        gpu.shared_per_multiprocessor,
        gpu.shared_reserved,
    )
    lines = "".join(f"{' '.join(map(str, (*about, *kernel)))}\n" for kernel in kernels)
    done = subprocess.run(
        [str(calculator)], input=lines, capture_output=True, text=True, check=True
    )
    wanted = list(map(int, done.stdout.split()))
    assert len(wanted) == len(kernels)
    assert [occupancy(gpu, *kernel).blocks for kernel in kernels] == wanted


@pytest.mark.parametrize(
    ("arch", "kernel", "wanted"),
    [
        # 2048 threads of 32 registers are all 65536.
        ("sm_80", (256, 32, 0), Occupancy(8, 64, 1.0, "warps")),
        # One more: 33 are given out as 40, 1280 a warp; 12 warps a partition, 48 in all.
        ("sm_80", (256, 33, 0), Occupancy(6, 48, 0.75, "registers")),
        # 32 KiB and 1 KiB for the system, of 164.
        ("sm_80", (256, 32, 32 * KIB), Occupancy(4, 32, 0.5, "shared")),
        # Of 64, and nothing for the system.
        ("sm_75", (256, 32, 32 * KIB), Occupancy(2, 16, 0.5, "shared")),
        # 32 blocks of one warp each, be it one thread.
        ("sm_80", (1, 32, 8), Occupancy(32, 32, 0.5, "blocks")),
        ("sm_86", (1, 32, 8), Occupancy(16, 16, 1 / 3, "blocks")),
        # 48 warps hold one block of 32, not two.
        ("sm_86", (1024, 32, 0), Occupancy(1, 32, 2 / 3, "warps")),
        # 255 registers are 8192 a warp: two warps a partition, one block of eight.
        ("sm_90", (256, 255, 0), Occupancy(1, 8, 0.125, "registers")),
        # What cannot be launched.
        ("sm_80", (1024, 128, 0), Occupancy(0, 0, 0.0, "registers")),
        ("sm_80", (1025, 16, 0), Occupancy(0, 0, 0.0, "warps")),
        ("sm_80", (64, 16, 48 * KIB + 1), Occupancy(0, 0, 0.0, "shared")),
        ("sm_80", (64, 256, 0), Occupancy(0, 0, 0.0, "registers")),
    ],
)
def test_by_hand(arch, kernel, wanted):
    assert occupancy(GPUS[arch], *kernel) == wanted
