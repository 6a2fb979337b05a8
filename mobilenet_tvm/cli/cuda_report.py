"""What ``compile`` and ``tune`` say of the kernels for a GPU."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from mobilenet_tvm.build.cuda_info import CudaInfo
from mobilenet_tvm.cli.frame import Output
from mobilenet_tvm.cuda.kernel import KernelInfo

# Names are long: the last column, and no table that a terminal's width would squeeze.
_ROW: Final = "  {:>12} {:>5} {:>8} {:>7} {:>14} {:>7} {:>6}  {}"
_HEADINGS: Final = (
    _ROW.format("blocks x", "", "spilled", "shared", "", "global", "shared", ""),
    _ROW.format("threads", "regs", "bytes", "bytes", "occupancy", "memory", "turns", "kernel"),
)


def print_kernels(info: CudaInfo, source: Path, out: Output) -> None:
    """One line, and with ``-v`` a table of all kernels."""
    out.line(f"kernels   {summary(info)}; source {source}")
    if out.verbose:
        for line in table(info.kernels):
            out.line(line)


def summary(info: CudaInfo) -> str:
    """``27 for sm_80, no spills, lowest occupancy 25% (a_kernel, by registers)``."""
    if not info.kernels:
        return f"for {info.arch}"
    parts = [f"{len(info.kernels)} for {info.arch}", "no spills"]
    if spilling := [kernel for kernel in info.kernels if kernel.spill_bytes]:
        worst = max(spilling, key=lambda kernel: kernel.spill_bytes)
        parts[1] = (
            f"{len(spilling)} of them spilling registers to memory (the most in "
            f"{short_name(worst.name)}, {worst.spill_bytes} bytes a thread)"
        )
    if broken := [kernel.name for kernel in info.kernels if not kernel.occupancy]:
        parts.append(f"{len(broken)} too large to be launched ({short_name(broken[0])})")
    lowest = min(info.kernels, key=lambda kernel: kernel.occupancy)
    parts.append(
        f"lowest occupancy {lowest.occupancy:.0%} ({short_name(lowest.name)}, by "
        f"{lowest.limited_by})"
    )
    return ", ".join(parts)


def table(kernels: Sequence[KernelInfo]) -> Iterator[str]:
    """The lines of a table; the manifest has more of each kernel."""
    if not kernels:
        return
    yield from (heading.rstrip() for heading in _HEADINGS)
    for one in kernels:
        yield _ROW.format(
            f"{one.blocks} x {one.threads_per_block}",
            one.registers,
            one.spill_bytes,
            one.shared_bytes,
            f"{one.occupancy:.0%} {one.limited_by}",
            f"{one.global_efficiency:.0%}",
            f"{one.bank_conflicts:.1f}",
            short_name(one.name),
        )


def short_name(kernel: str) -> str:
    """Without what all of TVM's names have."""
    return kernel.removeprefix("tvmgen_default_").removeprefix("fused_").removesuffix("_kernel")
