"""Timing: contenders side by side on this machine, and what one core of it could do at best.

``compare`` alternates between worker processes that are stopped when it is not their turn;
``measure_peak_gflops`` and ``machine_noise`` say what its figures are to be held against.
"""

from __future__ import annotations

from mobilenet_tvm.bench.alternate import DEFAULT_ROUNDS, Contender, check_threads, compare
from mobilenet_tvm.bench.gpu import compare_on_gpu, require_gpu
from mobilenet_tvm.bench.gpu_results import GpuBenchResult, gpu_table
from mobilenet_tvm.bench.noise import NOISY, machine_noise
from mobilenet_tvm.bench.peak import host_target, machine_name, measure_peak_gflops
from mobilenet_tvm.bench.reference import reference_model
from mobilenet_tvm.bench.results import Agreement, BenchResult, Noise, Ratio, Timing, table

__all__ = [
    "DEFAULT_ROUNDS",
    "NOISY",
    "Agreement",
    "BenchResult",
    "Contender",
    "GpuBenchResult",
    "Noise",
    "Ratio",
    "Timing",
    "check_threads",
    "compare",
    "compare_on_gpu",
    "gpu_table",
    "host_target",
    "machine_name",
    "machine_noise",
    "measure_peak_gflops",
    "reference_model",
    "require_gpu",
    "table",
]
