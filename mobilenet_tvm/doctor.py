"""``python -m mobilenet_tvm.doctor``: what is here, what works here, and how to mend the rest.

Nothing that may be broken is imported before it is looked at, and every look is caught: a
missing or shadowed TVM is a line of the report, never a traceback.
"""

from __future__ import annotations

import argparse
import platform
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any, TypeVar

from rich import box
from rich.markup import escape
from rich.table import Table

from mobilenet_tvm import environment, targets, toolchain
from mobilenet_tvm.cli.frame import Output, VerbFailedError, run_verb
from mobilenet_tvm.environment import Package, TargetRow
from mobilenet_tvm.targets import presets
from mobilenet_tvm.toolchain import Problem

_T = TypeVar("_T")


def run(args: argparse.Namespace, out: Output) -> dict[str, Any]:
    """Look at everything, print it, and fail when the main job cannot run here.

    Raises:
        VerbFailedError: it cannot; the payload says all that was found.
    """
    troubles: list[Problem] = []

    def look(what: str, function: Callable[[], _T]) -> _T | None:
        try:
            return function()
        except Exception as error:  # whatever a broken installation raises
            said = environment.last_line(error)
            mend = "mend what else is listed, or report it with the traceback of -v"
            troubles.append(Problem(f"{what} cannot be looked at ({said})", mend))
            if args.verbose:
                out.errors.print_exception()
            return None

    with out.working("looking around"):
        packages = look("the packages", lambda: environment.packages(troubles)) or []
        tvm = look("TVM", environment.tvm)
        default = look("the target x86", lambda: targets.resolve("x86").name)
        rows = look("the targets", lambda: environment.target_rows(tvm is not None)) or []
        cpu = look("the CPU", environment.cpu)
        memory_gb = look("the memory", environment.memory_gb)
        cache = look("the cache folder", lambda: environment.cache(troubles))
        board = look("the emulated board", environment.emulated_board)
        cuda = look("CUDA", lambda: environment.cuda(tvm is not None))
        look("the toolchain", lambda: troubles.extend(toolchain.problems()))
    usable = next((row for row in rows if row.preset == default), None)
    if usable is not None and tvm is not None and not (usable.compile.ok and usable.run.ok):
        why = usable.run.why if usable.compile.ok else usable.compile.why
        mend = "reinstall the packages above, or report it"
        troubles.append(Problem(f"{default} does not work on this machine ({why})", mend))

    payload: dict[str, Any] = {
        "ok": bool(
            tvm is not None
            and packages
            and all(package.ok for package in packages)
            and usable is not None
            and usable.compile.ok
            and usable.run.ok
        ),
        "python": {"version": platform.python_version(), "executable": sys.executable},
        "system": platform.platform(),
        "packages": [asdict(package) for package in packages],
        "tvm": tvm,
        "cpu": cpu,
        "memory_gb": memory_gb,
        "cache": cache,
        "default": default,
        "targets": [asdict(row) for row in rows],
        "emulated_board": board,
        "cuda": cuda,
        "troubles": [asdict(trouble) for trouble in troubles],
    }
    _print(payload, packages, rows, out)
    if not payload["ok"]:
        count = f"{len(troubles)} trouble" + ("s" if len(troubles) > 1 else "")
        message = f"the main job cannot run here: see the {count} above, each with its mend"
        raise VerbFailedError(message, payload)
    return payload


def _print(
    payload: dict[str, Any], packages: Sequence[Package], rows: Sequence[TargetRow], out: Output
) -> None:
    tvm, cpu, memory_gb, cache = (payload[k] for k in ("tvm", "cpu", "memory_gb", "cache"))
    out.line("python    {version}, {executable}".format(**payload["python"]))
    out.line(f"system    {payload['system']}")
    out.line(
        "tvm       {version} ({package} {package_version}), LLVM {llvm}".format(**tvm)
        if tvm
        else "tvm       not usable"
    )
    if cpu:
        out.line("cpu       {name}, {cores} cores, {logical_cores} logical".format(**cpu))
        # The full list has a hundred names; --json has it.
        used = {name for preset in presets.PRESETS for name in preset.cpu_features}
        shown = [name for name in cpu["features"] if name in used]
        out.line(f"features  {' '.join(shown)}; {len(cpu['features'])} in all (--json)")
    if memory_gb:
        out.line("memory    {total} GB, {available} GB available".format(**memory_gb))
    if cache:
        out.line(f"cache     {cache['path']}" + ("" if cache["writable"] else ", not writable"))
    if payload["emulated_board"]:
        found = (
            "python {python}, aarch64, under qemu"
            if payload["emulated_board"]["set_up"]
            else "{why}"
        )
        out.line(f"board     {found}".format(**payload["emulated_board"]))
    if payload["cuda"]:
        _print_cuda(payload["cuda"], out)
    _print_table(
        out,
        ("package", "installed", "wanted", "ok"),
        [(p.name, p.installed or "-", p.wanted, "yes" if p.ok else "NO") for p in packages],
    )
    _print_table(
        out,
        ("preset", "compile here", "run here", "emulate here"),
        [
            (
                row.preset + (" (x86)" if row.preset == payload["default"] else ""),
                *map(str, (row.compile, row.run, row.emulate)),
            )
            for row in rows
        ],
    )
    for trouble in payload["troubles"]:
        out.line(f"trouble   {trouble['what']}: {trouble['mend']}")
    if payload["ok"]:
        out.line("the main job can run here: python -m mobilenet_tvm.tune")


def _print_cuda(cuda: dict[str, Any], out: Output) -> None:
    if not cuda["compile"]["ok"]:
        out.line(f"cuda      {cuda['compile']['why']}")
    else:
        by = cuda["compiler"] or "a compiler that is gone"
        out.line(f"cuda      NVRTC {cuda['nvrtc']}, plug-in built by {by}")
    if cuda["gpu"]:
        out.line(f"gpu       {cuda['gpu']}")
    else:
        why = str(cuda["why_no_gpu"]).removeprefix("no NVIDIA GPU: ")
        out.line(f"gpu       none ({why}): compile and --device emulated only")


def _print_table(out: Output, header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> None:
    """A table in a terminal, aligned plain lines elsewhere."""
    if out.console.is_terminal:
        table = Table(*header, box=box.SIMPLE_HEAD)
        for row in rows:
            table.add_row(*map(escape, row))
        out.console.print(table)
        return
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    for row in (header, *rows):
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        out.line("  ".join(cells).rstrip())


def main(argv: Sequence[str] | None = None) -> int:
    """Run the verb; the exit status is 1 when the main job cannot run here."""
    return run_verb(
        "doctor",
        "Say what is here: versions, CPU, which targets can be compiled, run and emulated (each "
        "tried on a tiny kernel), what is missing and how to mend it.",
        lambda parser: None,
        run,
        argv,
    )


if __name__ == "__main__":
    sys.exit(main())
