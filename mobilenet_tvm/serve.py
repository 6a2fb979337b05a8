"""``python -m mobilenet_tvm.serve``: let others run and measure kernels on this board."""

from __future__ import annotations

import argparse
import contextlib
import re
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mobilenet_tvm.cli.device_options import tracker_address
from mobilenet_tvm.cli.frame import Output, run_verb
from mobilenet_tvm.cli.scratch import held_folder
from mobilenet_tvm.cuda import switch
from mobilenet_tvm.cuda.emulator import DEFAULT_ARCH
from mobilenet_tvm.devices.server import FIRST_PORT, LAST_PORT, Memory, Server, Serving, bind
from mobilenet_tvm.devices.tracker import DEFAULT_PORT, show
from mobilenet_tvm.errors import UsageError
from mobilenet_tvm.targets.gpus import GPUS
from mobilenet_tvm.toolchain import die_with_parent

TRUST = "TVM RPC trusts its clients: whoever can connect runs code here"


def memory(text: str) -> Memory:
    """``512`` or ``512MB`` or ``1.5GB``, or a share as ``50%``: a type for argparse."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(%|mb|gb)?", text.strip().lower())
    value = float(found[1]) if found else 0.0
    if not found or value <= 0 or (found[2] == "%" and value > 100):
        raise argparse.ArgumentTypeError(f"{text!r} is no memory: give MB, e.g. 512, or 50%")
    if found[2] == "%":
        return Memory(share=value / 100)
    return Memory(bytes=int(value * (1e9 if found[2] == "gb" else 1e6)))


def port(text: str) -> int:
    """A TCP port, 0 for any that is free: a type for argparse."""
    value = int(text)
    if not 0 <= value < 65536:
        raise ValueError
    return value


def seconds(text: str) -> float:
    """A number of seconds above zero: a type for argparse."""
    value = float(text)
    if not 0 < value < float("inf"):
        raise ValueError
    return value


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's own arguments."""
    parser.add_argument(
        "--tracker",
        type=tracker_address,
        metavar="HOST:PORT",
        help=f"where clients look for boards (port: {DEFAULT_PORT})",
    )
    parser.add_argument("--key", metavar="KEY", help="what clients call boards of this kind, rpi4")
    parser.add_argument(
        "--tracker-only",
        action="store_true",
        help="be the tracker, and no board: on the machine that tunes, say",
    )
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        metavar="ADDR",
        help="this machine's address to serve at (default: 127.0.0.1, reached from this machine "
        "and by SSH tunnels alone)",
    )
    parser.add_argument(
        "--port",
        type=port,
        metavar="PORT",
        help=f"where to listen, 0 for any (default: {FIRST_PORT}; of a tracker {DEFAULT_PORT})",
    )
    parser.add_argument(
        "--port-end",
        type=port,
        metavar="PORT",
        help=f"the last port to try (default: --port, else {LAST_PORT})",
    )
    parser.add_argument(
        "--memory",
        type=memory,
        default=Memory(),
        metavar="MB|SHARE",
        help="what a session may take before it is killed, e.g. 512 or 50%% (default: 80%% of what "
        "is free when it begins)",
    )
    parser.add_argument(
        "--session-timeout",
        type=seconds,
        metavar="SECONDS",
        help="the longest session (default: what the client asks for)",
    )
    parser.add_argument(
        "--emulated",
        metavar="CPU",
        help="this is an emulator that plays that CPU: clients are told that times mean nothing",
    )
    parser.add_argument(
        "--emulated-cuda",
        nargs="?",
        const=DEFAULT_ARCH,
        choices=tuple(GPUS),
        metavar="ARCH",
        help="serve the CUDA emulator as this machine's GPU, sm_80 say: it checks results, and "
        "clients are told that times mean nothing",
    )
    # Whoever starts a server for its own use alone takes it along, even of a ``kill -9``.
    parser.add_argument("--parent", type=int, metavar="PID", help=argparse.SUPPRESS)


def run(args: argparse.Namespace, out: Output) -> dict[str, Any]:
    """Serve until interrupted.

    Raises:
        UsageError: there is no such address, or options are missing.
        DeviceError: TVM cannot be loaded here.
    """
    if args.parent is not None:
        die_with_parent(args.parent)
    if args.tracker_only:
        if args.key or args.tracker:
            raise UsageError("--tracker-only is no board: leave out --key and --tracker")
        return _track(args, out)
    if not args.key:
        raise UsageError("name what clients call this board: --key rpi4, say")
    if re.search(r"\s", args.key):
        raise UsageError(f"the key {args.key!r} has a space in it, which TVM RPC cannot send")
    if args.emulated_cuda is not None:
        if args.emulated:
            raise UsageError("--emulated-cuda runs on this machine's CPU: leave out --emulated")
        switch.emulate(args.emulated_cuda)
    first = FIRST_PORT if args.port is None else args.port
    serving = Serving(
        key=args.key,
        host=args.host,
        port=first,
        last_port=args.port_end or (LAST_PORT if args.port is None else args.port),
        tracker=args.tracker,
        memory=args.memory,
        session_timeout_s=args.session_timeout,
        emulated=args.emulated,
        verbose=args.verbose,
    )
    with held_folder(Path(tempfile.gettempdir()), "mobilenet_tvm-serve-") as folder:
        server = Server(serving, folder, out.line)
        with contextlib.closing(server):
            told = f", tracker {show(args.tracker)}" if args.tracker else ""
            gpu = "" if server.gpu is None else f", GPU {server.gpu.name}"
            out.line(f"serving {args.key} at {show(server.address)}{told}{gpu}; {TRUST}")
            server.serve_forever()
    raise AssertionError("it serves for ever")


def _track(args: argparse.Namespace, out: Output) -> dict[str, Any]:
    """TVM's own tracker, in this process."""
    from mobilenet_tvm.devices.server import import_runtime

    import_runtime()
    first = DEFAULT_PORT if args.port is None else args.port
    listening = bind(args.host, first, args.port_end or first)
    from tvm.rpc import base, tracker

    address = listening.getsockname()[:2]
    out.line(f"tracker at {show(address)}; {TRUST}")
    tracker.logger.setLevel("INFO" if args.verbose else "ERROR")
    tracker._tracker_server(listening, base.random_key("tracker"))
    return {"tracker": show(address)}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the verb; the exit status is 130 when it was interrupted, as it must be."""
    return run_verb(
        "serve",
        "Serve this machine to others over TVM's RPC: they run and measure kernels on it. A "
        "session that crashes, hangs or eats the memory ends, and the server serves on.",
        add_arguments,
        run,
        argv,
    )


if __name__ == "__main__":
    sys.exit(main())
