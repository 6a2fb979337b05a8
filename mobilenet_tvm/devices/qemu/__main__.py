"""``python -m mobilenet_tvm.devices.qemu``: set the emulated board up, once."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from mobilenet_tvm.cli.frame import Output, run_verb
from mobilenet_tvm.devices import qemu


def run(args: argparse.Namespace, out: Output) -> dict[str, Any]:
    """Set it up where it is not, and say what it is.

    Raises:
        DeviceError: it cannot be set up here.
    """
    board = qemu.runtime(out.line)
    out.line(f"board     {board.root}")
    out.line(f"python    {board.python_version}, aarch64")
    for emulator in board.emulators.values():
        out.line(f"qemu      {emulator}")
    out.line(f"cpus      {', '.join(board.cpus())}")
    return {
        "root": str(board.root),
        "python": board.python_version,
        "emulators": {arch: str(path) for arch, path in board.emulators.items()},
        "cpus": {arch: board.cpus(arch) for arch in board.emulators},
        "versions": dict(board.versions),
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; the exit status is 3 when the board cannot be set up."""
    return run_verb(
        "devices.qemu",
        "Set up an emulated aarch64 board in the cache folder: qemu-user, Debian's Python and "
        "TVM's runtime. Needs the network once, and no root.",
        lambda parser: None,
        run,
        argv,
    )


if __name__ == "__main__":
    sys.exit(main())
