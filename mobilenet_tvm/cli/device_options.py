"""Options that say where an artifact or a trial runs: here, on a board, on an emulated one."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from mobilenet_tvm.devices.tracker import DEFAULT_PORT, Address, parse_address
from mobilenet_tvm.errors import UsageError

if TYPE_CHECKING:
    from mobilenet_tvm.devices.rpc import BoardSession, RpcDevice

LOCAL: Final = "local"
RPC: Final = "rpc"
QEMU: Final = "qemu"

# Of a board that is shared: long enough for whoever has it to finish a batch of trials.
WAIT_S: Final = 300.0
# For an artifact that somebody waits for: what hangs is noticed a call at a time.
SESSION_S: Final = 24 * 3600.0


def tracker_address(text: str) -> Address:
    """``HOST:PORT``: a type for argparse."""
    try:
        return parse_address(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def add_device_options(
    parser: argparse.ArgumentParser, devices: Sequence[str] = (LOCAL, RPC, QEMU)
) -> argparse._ArgumentGroup:
    """Add the DEVICE group; ``devices`` are those that the verb can do with."""
    group = parser.add_argument_group(
        "device", "where it runs; see python -m mobilenet_tvm.serve for boards"
    )
    group.add_argument(
        "--device",
        choices=devices,
        help="local: this machine; rpc: a board at --tracker; qemu: an emulated board, whose times "
        "mean nothing (default: rpc with --tracker, else local)",
    )
    group.add_argument(
        "--tracker",
        type=tracker_address,
        metavar="HOST:PORT",
        help=f"TVM RPC tracker that knows the boards (port: {DEFAULT_PORT})",
    )
    group.add_argument("--key", metavar="KEY", help="what the boards are called there")
    return group


def device_name(args: argparse.Namespace) -> str:
    """Which of the devices the options mean.

    Raises:
        UsageError: they contradict each other.
    """
    name = args.device or (RPC if args.tracker or args.key else LOCAL)
    if name == RPC:
        missing = [f"--{one}" for one in ("tracker", "key") if not getattr(args, one)]
        if missing:
            raise UsageError(f"{' and '.join(missing)}: missing, to find the board")
    elif args.tracker or args.key:
        raise UsageError(f"--tracker and --key find boards: leave them out with --device {name}")
    return str(name)


@contextlib.contextmanager
def open_device(
    args: argparse.Namespace, cpu: str, *, count: int = 1
) -> Iterator[RpcDevice | None]:
    """The boards that the options mean, None for this machine.

    Args:
        args: of the verb.
        cpu: LLVM's name of the CPU to emulate, a preset's ``cpu``.
        count: of emulated boards.

    Raises:
        UsageError: the options contradict each other.
        DeviceError: no tracker, no such board, or no emulator.
    """
    name = device_name(args)
    if name == RPC:
        from mobilenet_tvm.devices.rpc import RpcDevice

        host, port = args.tracker
        device = RpcDevice(host, port, args.key)
        device.require_boards()
        yield device
    elif name == QEMU:
        from mobilenet_tvm.devices.emulated import emulated_boards

        with emulated_boards(cpu, count) as emulated:
            yield emulated
    else:
        yield None


@contextlib.contextmanager
def open_session(args: argparse.Namespace, artifact: Path) -> Iterator[BoardSession | None]:
    """A session on a board that can run ``artifact``, None for this machine.

    Raises:
        UsageError: the options contradict each other, or no board can be emulated for it.
        DeviceError: no such board, none came free in time, or no emulator.
    """
    if device_name(args) == LOCAL:
        yield None
        return
    cpu = _cpu_of(artifact) if device_name(args) == QEMU else ""
    with open_device(args, cpu) as device:
        assert device is not None
        with device.open(session_timeout_s=SESSION_S, wait_s=WAIT_S) as session:
            yield session


def _cpu_of(artifact: Path) -> str:
    """LLVM's name of the CPU that an artifact is for."""
    from mobilenet_tvm import targets
    from mobilenet_tvm.build.manifest import read_manifest

    target = read_manifest(artifact).target
    if target.arch != "aarch64":
        raise UsageError(
            f"{artifact} is for {target.arch} (preset {target.preset}), the emulated board is "
            "aarch64: compile it with --target rpi4, say"
        )
    return targets.resolve(target.preset).cpu
