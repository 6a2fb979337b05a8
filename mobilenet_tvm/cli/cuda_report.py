"""What ``compile`` and ``tune`` say of the kernels for a GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from rich import box
from rich.markup import escape
from rich.table import Table

from mobilenet_tvm.build.cuda_info import CudaInfo, KernelInfo
from mobilenet_tvm.cli.frame import Output

_HEADINGS: Final = ("blocks x\nthreads", "regs", "spilt\nB", "shared\nB", "occu-\npancy", "by")
_MEMORY: Final = ("global\nmemory", "shared\nturns")


def print_kernels(info: CudaInfo, source: Path, out: Output) -> None:
    """One line, and with ``-v`` a table of all kernels."""
    out.line(f"kernels   {summary(info)}; source {source}")
    if out.verbose and info.kernels:
        out.console.print(table(info.kernels))


def summary(info: CudaInfo) -> str:
    """``27 for sm_80, no spills, lowest occupancy 25 % (a_kernel, by registers)``."""
    if not info.kernels:
        return f"for {info.arch}"
    count = len(info.kernels)
    spilling = [kernel for kernel in info.kernels if kernel.spill_bytes]
    parts = [f"{count} for {info.arch}", "no spills"]
    if spilling:
        worst = max(spilling, key=lambda kernel: kernel.spill_bytes)
        which = f"{len(spilling)} of them spill" if count > 1 else "it spills"
        parts[1] = (
            f"{which} registers (up to {worst.spill_bytes} bytes a thread: {_short(worst.name)})"
        )
    if broken := [kernel.name for kernel in info.kernels if not kernel.occupancy]:
        parts.append(f"{len(broken)} too large to be launched ({_short(broken[0])})")
    lowest = min(info.kernels, key=lambda kernel: kernel.occupancy)
    parts.append(
        f"lowest occupancy {lowest.occupancy:.0%} ({_short(lowest.name)}, by {lowest.limited_by})"
    )
    return ", ".join(parts)


def table(kernels: tuple[KernelInfo, ...]) -> Table:
    """All kernels for a person; the manifest has more of each."""
    view = Table(box=box.SIMPLE)
    view.add_column("kernel", overflow="fold")
    for heading in (*_HEADINGS, *_MEMORY):
        view.add_column(heading, justify="right", no_wrap=True)
    for one in kernels:
        view.add_row(
            escape(_short(one.name)),
            f"{one.blocks} x {one.threads_per_block}",
            str(one.registers),
            f"[red]{one.spill_bytes}[/]" if one.spill_bytes else "0",
            str(one.shared_bytes),
            f"{one.occupancy:.0%}",
            one.limited_by,
            f"{one.global_efficiency:.0%}",
            f"{one.bank_conflicts:.1f}",
        )
    return view


def _short(name: str) -> str:
    """Without what all of TVM's names have."""
    return name.removeprefix("tvmgen_default_").removeprefix("fused_").removesuffix("_kernel")
