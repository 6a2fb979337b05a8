"""``python -m mobilenet_tvm.cuda``: the plug-in, for programs that load it by its path.

Stock TVM serves a GPU with it (``python -m tvm.exec.rpc_server --load-library "$(python -m
mobilenet_tvm.cuda --path)"``), and a C++ program that is linked with libtvm_runtime ``dlopen``s it
with ``RTLD_GLOBAL``.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from mobilenet_tvm.cli.frame import Output, run_verb


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the verb takes."""
    parser.add_argument(
        "--path", action="store_true", help="print the plug-in's path alone, building it first"
    )
    parser.add_argument(
        "--emulated",
        action="store_true",
        help="the plug-in whose device is the emulator, not a GPU",
    )


def run(args: argparse.Namespace, out: Output) -> dict[str, Any]:
    """Find the plug-in, or build it, and say where it is.

    Raises:
        CudaError: something is missing, and how to get it.
    """
    from mobilenet_tvm.cuda import plugin
    from mobilenet_tvm.cuda.probe import probe

    if args.path:
        with out.working("building the plug-in"):
            path = str(plugin.library(emulated=args.emulated))
        out.line(path)
        return {"path": path, "emulated": args.emulated}
    with out.working("building the plug-in"):
        found = probe(emulated=args.emulated)
    out.line(f"plug-in   {found.path}")
    out.line(f"compiler  {found.compiler or 'none; it was built before'}")
    out.line(f"nvrtc     {found.nvrtc}")
    return {**asdict(found), "emulated": args.emulated}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the verb."""
    return run_verb(
        "cuda",
        "Build the library that lets TVM compile for NVIDIA GPUs and run on them, and say where "
        "it is: for `tvm.exec.rpc_server --load-library`, and for programs in C++.",
        add_arguments,
        run,
        argv,
    )


if __name__ == "__main__":
    sys.exit(main())
