"""Our ARM templates through LLVM's own back end, run under qemu: the instructions are right too."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mobilenet_tvm import targets, toolchain
from mobilenet_tvm.devices import qemu

pytestmark = pytest.mark.slow

TOLERANCE = 2e-6  # as in test_schedule_numerics

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


@pytest.mark.parametrize("preset", ["rpi3", "rpi4", "neoverse-n1"])
def test_kernels_of_every_shape(
    preset: str,
    make_kernel: Callable[..., Any],
    references: dict[str, Callable[..., Any]],
    tmp_path: Path,
) -> None:
    if not qemu.is_set_up():
        pytest.skip(f"no emulated board: {qemu.why_not()}; python -m mobilenet_tvm.devices.qemu")
    import tvm
    from tvm.topi.utils import get_const_tuple

    target = targets.resolve(preset)
    random = np.random.default_rng(0)
    expected = {}
    for case, (kind, data_shape, weight_shape, *how) in enumerate(CASES):
        made = make_kernel(kind, target.target, data_shape, weight_shape, *how)
        data, weight = (
            random.uniform(-1, 1, s).astype(np.float32) for s in (data_shape, weight_shape)
        )
        wanted = references[kind](data, weight, *how)
        scale = references[kind](np.abs(data), np.abs(weight), *how).max()
        for number, config in enumerate([made.default, *made.samples(2, seed=case)]):
            schedule, arguments = made.scheduled(config)
            path = tmp_path / f"{case}.{number}"
            with made.task.target:
                module = tvm.build(schedule, arguments, target=made.task.target, name="kernel")
            module.save(f"{path}.o")
            toolchain.zig(*target.linker, "-o", f"{path}.so", f"{path}.o")
            image, packed = made.packed(arguments, data, weight)
            shape = get_const_tuple(arguments[2].shape)
            np.savez(f"{path}.npz", data=image, weight=packed, shape=shape)
            expected[str(path)] = (f"{kind} {data_shape} {config}", wanted, scale)
    done = qemu.runtime(set_up=False).run_python(
        ["-c", RUN_ALL, *expected],
        cpu=qemu.emulated_cpu(target.cpu).name,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    for path, (label, wanted, scale) in expected.items():
        found = np.load(f"{path}.npy")
        n, c, h, w, x = found.shape
        found = found.transpose(0, 1, 4, 2, 3).reshape(n, c * x, h, w)
        error = np.abs(found - wanted).max() / scale
        assert error <= TOLERANCE, f"{label}: relative error {error:.2g}"  # NaN fails it too
