"""Options that say where an artifact or a trial runs: here, on a board, on an emulated one."""

from __future__ import annotations

import argparse
import contextlib
import platform
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from mobilenet_tvm.devices.tracker import DEFAULT_PORT, Address, parse_address
from mobilenet_tvm.errors import UsageError

if TYPE_CHECKING:
    from mobilenet_tvm.devices.rpc import BoardSession, RpcDevice
    from mobilenet_tvm.targets import Preset

LOCAL: Final = "local"
RPC: Final = "rpc"
QEMU: Final = "qemu"
EMULATED: Final = "emulated"

_HELP: Final = {
    LOCAL: "this machine",
    RPC: "a board at --tracker",
    QEMU: "an emulated board, whose times mean nothing",
    EMULATED: "an emulated GPU, which checks results and has no times",
}

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
    parser: argparse.ArgumentParser, devices: Sequence[str] = (LOCAL, RPC, QEMU, EMULATED)
) -> argparse._ArgumentGroup:
    """Add the DEVICE group; ``devices`` are those that the verb can do with."""
    group = parser.add_argument_group(
        "device", "where it runs; see python -m mobilenet_tvm.serve for boards"
    )
    group.add_argument(
        "--device",
        choices=devices,
        help="; ".join(f"{name}: {_HELP[name]}" for name in devices if name in _HELP)
        + " (default: rpc with --tracker, else local)",
    )
    group.add_argument(
        "--tracker",
        type=tracker_address,
        metavar="HOST:PORT",
        help=f"TVM RPC tracker that knows the boards (port: {DEFAULT_PORT})",
    )
    group.add_argument("--key", metavar="KEY", help="what the boards are called there")
    return group


def add_cuda_graph_option(group: argparse._ArgumentGroup) -> None:
    """Add ``--cuda-graph``."""
    group.add_argument(
        "--cuda-graph",
        action="store_true",
        help="launch all kernels of an inference on a GPU at once",
    )


def refuse_cuda_graph(args: argparse.Namespace) -> None:
    """Of a board.

    Raises:
        UsageError: it was asked for.
    """
    if args.cuda_graph:
        raise UsageError("--cuda-graph is for a GPU of this machine: leave it out with a board")


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
    name = device_name(args)
    if name == EMULATED:
        _emulate_for(artifact)
    if name in (LOCAL, EMULATED):
        yield None
        return
    cpu = _cpu_of(artifact) if name == QEMU else ""
    with open_device(args, cpu) as device:
        assert device is not None
        device = replace(device, gpu=_is_for_gpu(artifact))
        with device.open(session_timeout_s=SESSION_S, wait_s=WAIT_S) as session:
            yield session


def _cpu_of(artifact: Path) -> str:
    """LLVM's name of the CPU that an artifact is for."""
    from mobilenet_tvm import targets
    from mobilenet_tvm.build.manifest import read_manifest

    target = read_manifest(artifact).target
    if target.cuda_arch is not None:
        raise UsageError(
            f"{artifact} has kernels for a GPU (preset {target.preset}), and qemu emulates CPUs: "
            "use --device emulated"
        )
    if target.arch != "aarch64":
        raise UsageError(
            f"{artifact} is for {target.arch} (preset {target.preset}), the emulated board is "
            "aarch64: compile it with --target rpi4, say"
        )
    return targets.resolve(target.preset).cpu


def prepare_emulated(args: argparse.Namespace, preset: Preset) -> None:
    """With ``--device emulated`` make the emulator the GPU of this process, before it uses any.

    Raises:
        UsageError: the preset is for a CPU, or its host is no such machine as this.
        CudaError: this process has used a GPU already.
    """
    if getattr(args, "device", None) != EMULATED:
        return
    if preset.gpu is None:
        raise UsageError(
            f"--device emulated emulates GPUs, and {preset.name} is for a CPU: leave it out, or "
            "give --target cuda"
        )
    if not preset.runs_here():
        raise UsageError(
            f"--device emulated runs the host's part of {preset.name} on this machine, which is "
            f"{platform.machine()} and not {preset.arch}: give --target cuda-sm80, say"
        )
    from mobilenet_tvm.cuda import switch

    switch.emulate(preset.gpu.arch)


def _is_for_gpu(artifact: Path) -> bool:
    from mobilenet_tvm.build.manifest import read_manifest

    return read_manifest(artifact).target.cuda_arch is not None


def _emulate_for(artifact: Path) -> None:
    """Make the emulator the GPU that an artifact runs on."""
    from mobilenet_tvm.build.manifest import read_manifest
    from mobilenet_tvm.runtime.gpus import emulate_for

    emulate_for(artifact, read_manifest(artifact))
