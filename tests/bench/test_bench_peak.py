"""The FMA kernel: that it measures what it says."""

from __future__ import annotations

import platform
import re

import numpy as np
import pytest

from mobilenet_tvm import targets, toolchain
from mobilenet_tvm.bench import peak

X86 = platform.machine() in ("x86_64", "AMD64")
only_x86 = pytest.mark.skipif(not X86, reason="reads x86 assembly")


def innermost_loop(assembly: str) -> list[str]:
    """The instructions between a label and the jump back to it that hold most FMAs."""
    loops = re.findall(r"^(\.LBB\S+):\n((?:(?!^\.LBB).*\n)*?)\s+j\w+\s+\1$", assembly, re.MULTILINE)
    bodies = [body.split("\n") for _, body in loops]
    best = max(bodies, key=lambda body: sum("vfmadd" in line for line in body))
    return [line.strip() for line in best if line.strip() and not line.strip().startswith(".")]


@only_x86
@pytest.mark.parametrize(
    ("target", "register", "chains"),
    [("llvm -mcpu=core-avx2", "ymm", 12), ("llvm -mcpu=skylake-avx512 -num-cores 2", "zmm", 16)],
)
def test_the_loop_is_independent_fmas_and_no_memory(
    target: str, register: str, chains: int
) -> None:
    assert peak.vector_unit(target).chains == chains
    loop = innermost_loop(peak.build_kernel(target).get_source("asm"))
    fmas = [line for line in loop if line.startswith("vfmadd")]
    assert len(fmas) >= chains
    assert len(loop) - len(fmas) <= 3  # the counter
    assert not [line for line in loop if "(" in line]  # a memory operand
    assert all(register in line for line in fmas)
    accumulators = {line.rsplit("%", 1)[1] for line in fmas}
    assert len(accumulators) == chains


@pytest.mark.parametrize("target", [peak.host_target()])
def test_the_kernel_computes_every_iteration(target: str) -> None:
    toolchain.activate()
    import tvm

    unit = peak.vector_unit(target)
    coefficients = tvm.nd.array(np.repeat(np.array([1.0, 1.0], "float32"), unit.lanes))
    start = np.arange(unit.lanes * unit.chains, dtype="float32")
    chains = tvm.nd.array(start)
    peak.build_kernel(target)["fma_chains"](coefficients, chains, 37)
    np.testing.assert_array_equal(chains.numpy(), start + 37)


@only_x86
def test_a_target_without_fma_multiplies_and_adds() -> None:
    assert not peak.vector_unit("llvm -mcpu=x86-64").fused
    assembly = peak.build_kernel("llvm -mcpu=x86-64").get_source("asm")
    assert "mulps" in assembly
    assert "fmaf" not in assembly


def test_an_arm_target_is_known_without_being_run() -> None:
    unit = peak.vector_unit("llvm -mtriple=aarch64-linux-gnu -mcpu=cortex-a72")
    assert (unit.lanes, unit.fused) == (4, True)


@only_x86
def test_peak_is_that_of_vectors_and_can_be_measured_again() -> None:
    wide = peak.measure_peak_gflops(peak.host_target())
    again = peak.measure_peak_gflops(peak.host_target())
    scalar_bound_gflops = 2 * 2 * 8  # two scalar FMAs a cycle at 8 GHz
    assert wide > scalar_bound_gflops
    assert again == pytest.approx(wide, rel=0.3)


def test_machine_name_says_how_many_cores() -> None:
    assert re.search(rf", {targets.physical_cores()} cores?$", peak.machine_name())
