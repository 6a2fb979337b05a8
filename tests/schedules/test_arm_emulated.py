"""Our ARM templates through LLVM's own back end, run under qemu: the instructions are right too."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mobilenet_tvm import targets, toolchain
from mobilenet_tvm.devices import qemu

from .conftest import TOLERANCE

pytestmark = pytest.mark.slow


# One emulated process runs all kernels: it takes seconds to start.
RUN_ALL = """
import sys, numpy, tvm
for path in sys.argv[1:]:
    given = numpy.load(path + ".npz")
    out = tvm.nd.array(numpy.full(given["shape"], numpy.nan, "float32"))
    kernel = tvm.runtime.load_module(path + ".so")["kernel"]
    kernel(tvm.nd.array(given["data"]), tvm.nd.array(given["weight"]), out)
    numpy.save(path + ".npy", out.numpy())
"""

# There is no TVM for 32-bit ARM to be had, so a program stands for its runtime.
MAIN = r"""
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
typedef struct { void* data; struct { int type, id; } device; int ndim;
  struct { uint8_t code, bits; uint16_t lanes; } dtype;
  int64_t* shape; int64_t* strides; uint64_t offset; } Tensor;
typedef union { int64_t i; double d; void* p; } Value;
typedef struct { void* sync; int tasks; } Env;
typedef int (*Lambda)(int, Env*, void*);
static int launch(Lambda lambda, void* data, int tasks) {
  Env env = {0, 1}; return lambda(0, &env, data); }
static void* allocate(int t, int i, uint64_t size, int c, int b) {
  void* found = 0; return posix_memalign(&found, 64, size) ? 0 : found; }
static int release(int t, int i, void* p) { free(p); return 0; }
static void set_error(const char* text) { fprintf(stderr, "%s\n", text); }
/* TVM's loader fills these. */
int (*__TVMBackendParallelLaunch)(Lambda, void*, int) = launch;
void* (*__TVMBackendAllocWorkspace)(int, int, uint64_t, int, int) = allocate;
int (*__TVMBackendFreeWorkspace)(int, int, void*) = release;
void (*__TVMAPISetLastError)(const char*) = set_error;
void* __tvm_module_ctx = 0;
int kernel(void*, int*, int, void*, int*, void*);
int main(int argc, char** argv) { /* FILE ndim d0 .. for each of data, weight; then output */
  Tensor tensors[3] = {0}; Value values[3]; int codes[3] = {7, 7, 7};
  for (int t = 0, a = 1; t < 3; t++) {
    const char* path = argv[a++]; size_t count = 1;
    tensors[t].ndim = atoi(argv[a++]);
    tensors[t].shape = calloc(tensors[t].ndim, 8);
    for (int d = 0; d < tensors[t].ndim; d++) count *= tensors[t].shape[d] = atoi(argv[a++]);
    tensors[t].device.type = 1; tensors[t].dtype.code = 2;
    tensors[t].dtype.bits = 32; tensors[t].dtype.lanes = 1;
    tensors[t].data = allocate(0, 0, count * 4, 0, 0);
    FILE* file = fopen(path, t < 2 ? "rb" : "wb");
    values[t].p = &tensors[t];
    if (t < 2) { if (fread(tensors[t].data, 4, count, file) != count) return 2; }
    else {
      Value result; int code;
      if (kernel(values, codes, 3, &result, &code, 0)) return 3;
      fwrite(tensors[t].data, 4, count, file);
    }
    fclose(file);
  }
  return 0;
}
"""

PADS = (1, 1, 1, 1)
CASES: list[tuple[Any, ...]] = [
    ("depthwise", (3, 24, 7, 7), (24, 1, 3, 3), 1, PADS),
    ("depthwise", (1, 6, 14, 14), (6, 1, 3, 3), 2, (0, 0, 1, 1)),
    ("depthwise", (1, 100, 5, 7), (100, 1, 5, 5), 1, (2, 2, 2, 2)),
    ("pointwise", (3, 6, 7, 7), (24, 6, 1, 1)),
    ("pointwise", (1, 100, 5, 7), (36, 100, 1, 1)),
    ("pointwise", (1, 32, 14, 14), (48, 32, 1, 1)),
    ("pointwise", (1, 960, 1, 1), (100, 960, 1, 1)),
    ("stem", (1, 3, 14, 14), (32, 3, 3, 3), 2, (0, 0, 1, 1)),
]


@dataclass(frozen=True)
class Built:
    """An object file, what it reads, and what it should write."""

    path: Path
    label: str
    arguments: list[Any]
    shape: tuple[int, ...]
    expected: Any
    scale: float

    def check(self, found: Any) -> None:
        n, c, h, w, x = self.shape
        plain = found.reshape(self.shape).transpose(0, 1, 4, 2, 3).reshape(n, c * x, h, w)
        error = np.abs(plain - self.expected).max() / self.scale
        assert error <= TOLERANCE, f"{self.label}: relative error {error:.2g}"  # NaN fails it too


def build_all(
    target: str,
    make_kernel: Callable[..., Any],
    references: dict[str, Callable[..., Any]],
    folder: Path,
    samples: int,
) -> list[Built]:
    """The default and some configurations of every case."""
    import tvm
    from tvm.topi.utils import get_const_tuple

    random = np.random.default_rng(0)
    built = []
    for case, (kind, data_shape, weight_shape, *how) in enumerate(CASES):
        made = make_kernel(kind, target, data_shape, weight_shape, *how)
        data, weight = (
            random.uniform(-1, 1, shape).astype(np.float32) for shape in (data_shape, weight_shape)
        )
        expected = references[kind](data, weight, *how)
        scale = references[kind](np.abs(data), np.abs(weight), *how).max()
        for number, config in enumerate([made.default, *made.samples(samples, seed=case)]):
            schedule, tensors = made.scheduled(config)
            with made.task.target:
                module = tvm.build(schedule, tensors, target=made.task.target, name="kernel")
            path = folder / f"{case}-{number}.o"
            module.save(str(path))
            arguments = list(made.packed(tensors, data, weight))
            shape = get_const_tuple(tensors[2].shape)
            label = f"{kind} {data_shape} {config}"
            built.append(Built(path, label, arguments, shape, expected, scale))
    return built


@pytest.fixture
def board() -> qemu.QemuRuntime:
    if not qemu.is_set_up():
        pytest.skip(f"no emulated board: {qemu.why_not()}; python -m mobilenet_tvm.devices.qemu")
    return qemu.runtime(set_up=False)


@pytest.mark.parametrize("preset", ["rpi3", "rpi4", "neoverse-n1"])
def test_aarch64(
    preset: str,
    board: qemu.QemuRuntime,
    make_kernel: Callable[..., Any],
    references: dict[str, Callable[..., Any]],
    tmp_path: Path,
) -> None:
    target = targets.resolve(preset)
    built = build_all(target.target, make_kernel, references, tmp_path, samples=2)
    for kernel in built:
        base = kernel.path.with_suffix("")
        toolchain.zig(*target.linker, "-o", f"{base}.so", str(kernel.path))
        image, weight = kernel.arguments
        np.savez(f"{base}.npz", data=image, weight=weight, shape=kernel.shape)
    done = board.run_python(
        ["-c", RUN_ALL, *(str(kernel.path.with_suffix("")) for kernel in built)],
        cpu=board.emulated_cpu(target.cpu).name,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    for kernel in built:
        kernel.check(np.load(kernel.path.with_suffix(".npy")))


def test_armv7(
    board: qemu.QemuRuntime,
    make_kernel: Callable[..., Any],
    references: dict[str, Callable[..., Any]],
    tmp_path: Path,
) -> None:
    (tmp_path / "main.c").write_text(MAIN)
    cc = ("cc", "-target", "arm-linux-musleabihf", "-mcpu=generic+v7a+neon", "-static")
    toolchain.zig(*cc, "-c", "-o", str(tmp_path / "main.o"), str(tmp_path / "main.c"))
    target = targets.resolve("armv7").target
    for kernel in build_all(target, make_kernel, references, tmp_path, samples=1):
        program, out = kernel.path.with_suffix(""), kernel.path.with_suffix(".out")
        toolchain.zig(*cc, "-o", str(program), str(tmp_path / "main.o"), str(kernel.path))
        words = []
        for number, array in enumerate(kernel.arguments):
            path = kernel.path.with_suffix(f".{number}")
            np.ascontiguousarray(array).tofile(path)
            words += [str(path), array.ndim, *array.shape]
        words += [str(out), len(kernel.shape), *kernel.shape]
        done = board.run([str(program), *map(str, words)], capture_output=True, text=True)
        assert done.returncode == 0, f"{kernel.label}: {done.stderr}"
        kernel.check(np.fromfile(out, np.float32))
