"""What one core of this machine can do.

A kernel of our own: independent chains of vector fused multiply-adds that never leave their
registers. Its best rate is the peak that a network's GFLOP/s are held against.
"""

from __future__ import annotations

import functools
import platform
import timeit
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from mobilenet_tvm import targets, toolchain

# 0.3 s in all. Measured on a shared two-core virtual machine: bursts of 1 ms differ by 1.12x
# through its neighbours alone, bursts of 3 ms by 1.06x; with both cores loaded, 5x and more.
BURSTS = 100
BURST_MS = 3.0

_KERNEL = "fma_chains"


@dataclass(frozen=True)
class VectorUnit:
    """The widest fp32 vectors of a target: lanes, independent chains to keep in flight, and
    whether multiply-add is one instruction.

    Latency x throughput wants 8-16 chains; with 16 registers 12 fit beside the coefficients.
    """

    lanes: int
    chains: int
    fused: bool


def vector_unit(target: str) -> VectorUnit:
    """The vector unit that LLVM may use for ``target`` (a TVM target string)."""
    toolchain.activate()
    import tvm
    from tvm.target.codegen import llvm_get_system_triple, target_has_features

    parsed = tvm.target.Target(target)
    triple = str(parsed.attrs.get("mtriple", "")) or llvm_get_system_triple()
    if triple.startswith(("aarch64", "arm64")):
        return VectorUnit(lanes=4, chains=16, fused=True)
    if target_has_features("avx512f", parsed):
        return VectorUnit(lanes=16, chains=16, fused=True)
    if target_has_features("fma", parsed):
        return VectorUnit(lanes=8, chains=12, fused=True)
    # llvm.fma without the instruction is a call of libm: multiply and add are the peak here.
    return VectorUnit(lanes=4, chains=12, fused=False)


@functools.cache
def build_kernel(target: str) -> Any:
    """``fma_chains(coefficients, chains, iterations)``, a ``tvm.runtime.Module``.

    ``coefficients`` is ``[2 * lanes] float32`` (multiplier, addend) and ``chains`` is
    ``[chains * lanes] float32``, each chain advanced by ``x = x * multiplier + addend``.
    """
    toolchain.activate()
    import tvm
    from tvm import tir

    unit = vector_unit(target)
    vector = f"float32x{unit.lanes}"
    builder = tir.ir_builder.create()
    coefficients = tir.decl_buffer((2 * unit.lanes,), "float32", name="coefficients")
    chains = tir.decl_buffer((unit.chains * unit.lanes,), "float32", name="chains")
    iterations = tir.Var("iterations", "int32")
    coefficient, chain = builder.buffer_ptr(coefficients), builder.buffer_ptr(chains)

    def lanes_of(index: int) -> Any:
        return tir.Ramp(index * unit.lanes, 1, unit.lanes)

    multiplier = builder.let("multiplier", coefficient[lanes_of(0)])
    addend = builder.let("addend", coefficient[lanes_of(1)])
    registers = builder.allocate(vector, (unit.chains,), name="registers", scope="local")
    for index in range(unit.chains):
        registers[index] = chain[lanes_of(index)]
    with builder.for_range(0, iterations):
        for index in range(unit.chains):
            value = registers[index]
            if unit.fused:
                arguments = tir.const(3, "uint32"), value, multiplier, addend
                registers[index] = tir.call_llvm_pure_intrin(vector, "llvm.fma", *arguments)
            else:
                registers[index] = value * multiplier + addend
    for index in range(unit.chains):
        chain[lanes_of(index)] = registers[index]

    handles = tir.Var("coefficients_handle", "handle"), tir.Var("chains_handle", "handle")
    function = tir.PrimFunc(
        [*handles, iterations],
        builder.get(),
        buffer_map=dict(zip(handles, (coefficients, chains), strict=True)),
    ).with_attr({"global_symbol": _KERNEL, "tir.noalias": True})
    with tvm.transform.PassContext(config=toolchain.pass_config()):
        return tvm.build(tvm.IRModule({_KERNEL: function}), target=target)


def measure_peak_gflops(target: str) -> float:
    """Peak of one core in GFLOP/s (a multiply-add is two), with ``target``'s widest vectors.

    ``target`` must be one that this machine can run (``host_target()``). Takes about 0.3 s and
    takes the best burst: a peak is what the core does when nothing is in its way.
    """
    work, flops = burst(target)
    return flops / min(time_bursts(work, BURSTS)) / 1e9


def host_target() -> str:
    """A target string for this machine, by what its CPU reports rather than by its name: a
    virtual machine may hide features that the name promises."""
    features = targets.cpu_features()
    if platform.machine() not in ("x86_64", "AMD64"):
        return "llvm"
    if all(name in features for name in ("avx512f", "avx512bw", "avx512dq", "avx512vl")):
        return "llvm -mcpu=x86-64-v4"
    if "avx2" in features and "fma" in features:
        return "llvm -mcpu=x86-64-v3"
    return "llvm -mcpu=x86-64"


def machine_name() -> str:
    """The CPU and the cores that this process may use: ``AMD EPYC (zen4), 2 cores``."""
    cores = targets.physical_cores()
    return f"{targets.cpu_name()}, {cores} core{'' if cores == 1 else 's'}"


def burst(target: str) -> tuple[Callable[[], object], float]:
    """A function that works for about ``BURST_MS`` with data of its own, and its number of
    floating-point operations."""
    module = build_kernel(target)
    import tvm

    unit = vector_unit(target)
    # x = x / 2 + 1 settles at 2: no overflow, no denormals, however long it runs.
    coefficients = tvm.nd.array(np.repeat(np.array([0.5, 1.0], "float32"), unit.lanes))
    chains = tvm.nd.array(np.ones(unit.chains * unit.lanes, "float32"))
    function = module[_KERNEL]

    trial = 20_000
    trial_s = min(timeit.repeat(lambda: function(coefficients, chains, trial), number=1, repeat=9))
    iterations = max(trial, round(trial * BURST_MS / 1e3 / trial_s))
    flops = 2.0 * unit.lanes * unit.chains * iterations
    return lambda: function(coefficients, chains, iterations), flops


def time_bursts(burst: Callable[[], object], count: int) -> list[float]:
    """Seconds of each of ``count`` bursts, after one that wakes the core up."""
    burst()
    return timeit.repeat(burst, number=1, repeat=count)
