"""What ``compile`` and ``tune`` say of the kernels for a GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from rich import box
from rich.markup import escape
from rich.table import Table

from mobilenet_tvm.build.cuda_info import CudaInfo, KernelInfo
from mobilenet_tvm.cli.frame import Output

_HEADINGS: Final = (
    *("blocks", "threads", "registers", "spilled\nbytes", "local\nbytes", "shared\nbytes"),
    *("occupancy", "limited\nby", "global\nefficiency", "bank\nconflicts"),
)


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
        parts[1] = f"{which} registers (up to {worst.spill_bytes} bytes a thread: {worst.name})"
    lowest = min(info.kernels, key=lambda kernel: kernel.occupancy)
    parts.append(f"lowest occupancy {lowest.occupancy:.0%} ({lowest.name}, by {lowest.limited_by})")
    return ", ".join(parts)


def table(kernels: tuple[KernelInfo, ...]) -> Table:
    """All kernels for a person."""
    view = Table(box=box.SIMPLE)
    view.add_column("kernel", overflow="fold")
    for heading in _HEADINGS:
        view.add_column(heading, justify="right", no_wrap=True)
    for one in kernels:
        counts = (one.blocks, one.threads_per_block, one.registers)
        spilled = f"[red]{one.spill_bytes}[/]" if one.spill_bytes else "0"
        view.add_row(
            escape(one.name),
            *map(str, counts),
            spilled,
            str(one.local_bytes),
            str(one.shared_bytes),
            f"{one.occupancy:.0%}",
            one.limited_by,
            "-" if one.global_efficiency is None else f"{one.global_efficiency:.0%}",
            "-" if one.bank_conflicts is None else f"{one.bank_conflicts:.1f}",
        )
    return view
