"""Where ``tune`` measures: this machine, boards at a tracker, or boards that are emulated here."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mobilenet_tvm import targets
from mobilenet_tvm.cli import device_options
from mobilenet_tvm.cli.artifact import Job
from mobilenet_tvm.cli.device_options import LOCAL, QEMU, RPC
from mobilenet_tvm.cli.frame import Output
from mobilenet_tvm.cli.options import parse_duration, positive
from mobilenet_tvm.errors import UsageError
from mobilenet_tvm.records.runfile import Timing
from mobilenet_tvm.search import LocalMeasurer, Measurer, RemoteMeasurer
from mobilenet_tvm.search.board import Opened
from mobilenet_tvm.targets import Preset

if TYPE_CHECKING:
    from mobilenet_tvm.devices.rpc import RpcDevice

ESTIMATE = "estimate"
WAIT_S = 120.0


@dataclass(frozen=True)
class Device:
    """What trials are measured on.

    Attributes:
        measurer: of the trials.
        timing: what its times are.
        cpu: whose they are, as run files name it.
        rpc: its boards; None where there are none.
    """

    measurer: Measurer
    timing: Timing
    cpu: str
    rpc: RpcDevice | None = None

    @property
    def here(self) -> bool:
        """Whether it is this machine."""
        return self.rpc is None and self.timing == "measured"


def add_device_options(parser: argparse.ArgumentParser) -> None:
    """Add where to measure: the DEVICE group, and what is only of tuning."""
    group = device_options.add_device_options(parser, (LOCAL, RPC, QEMU, ESTIMATE))
    group.add_argument(
        "--boards",
        type=positive,
        default=1,
        metavar="N",
        help="--device qemu: so many of them (default: 1)",
    )
    group.add_argument(
        "--allow-emulated",
        action="store_true",
        help="tune on an emulator all the same: to try everything but the speed",
    )
    group.add_argument(
        "--board-wait",
        type=parse_duration,
        default=WAIT_S,
        metavar="TIME",
        help=f"how long there may be no board before the run ends (default: {WAIT_S:.0f}s)",
    )


def check_device_options(args: argparse.Namespace, preset: Preset) -> None:
    """Refuse, before anything takes time, what cannot be measured on.

    Raises:
        UsageError: the options contradict each other, or the preset.
    """
    name = device_options.device_name(args)
    if name == QEMU:
        if not args.allow_emulated:
            raise UsageError(_EMULATED.format(what="--device qemu"))
        if preset.qemu is None or preset.arch != "aarch64":
            raise UsageError(
                f"--device qemu emulates 64-bit ARM boards, {preset.name} is for {preset.arch}: "
                "give an ARM preset, --target arm say"
            )
    if name == LOCAL and not preset.runs_here():
        raise UsageError(
            f"{preset.name} cannot be tuned on this machine ({targets.cpu_name()}): give the "
            "boards' --tracker and --key or --device estimate, or use "
            "python -m mobilenet_tvm.compile with a log from a machine that can"
        )


_EMULATED = (
    "{what}: an emulator's times mean nothing, so nothing can be tuned by them: use a board with "
    "--tracker, or --device estimate; --allow-emulated runs all the same, to try the way"
)


@contextlib.contextmanager
def measuring_device(args: argparse.Namespace, job: Job, out: Output) -> Iterator[Device]:
    """What the arguments say to measure on, for as long as the block runs.

    Raises:
        UsageError: the boards cannot run what is compiled for the preset.
        DeviceError: there is no board, or nothing can be emulated or estimated here.
    """
    with contextlib.ExitStack() as stack:
        rpc: RpcDevice | None = None
        if device_options.device_name(args) in (RPC, QEMU):
            with out.working("looking for boards"):
                rpc = stack.enter_context(
                    device_options.open_device(args, job.preset.cpu, count=args.boards)
                )
        device = make_measurer(args, job, rpc, out)
        stack.callback(device.measurer.close)
        yield device


def make_measurer(args: argparse.Namespace, job: Job, rpc: RpcDevice | None, out: Output) -> Device:
    """The measurer, what its times are, and of which CPU: the one place that decides it."""
    model_bytes = sum(task.weight * task.weight_bytes for task in job.tasks)
    if rpc is not None:
        return _boards(args, job, rpc, out)
    if device_options.device_name(args) == ESTIMATE:
        from mobilenet_tvm.devices.estimate import EstimateMeasurer

        with out.working("getting ready to estimate"):
            estimate = EstimateMeasurer(job.preset, model_bytes=model_bytes)
        out.warn(
            f"--device estimate: what is found ranks schedules for {job.preset.cpu}, and says "
            "nothing of their speed"
        )
        return Device(estimate, estimate.timing, f"{job.preset.cpu} (estimated)")
    return Device(LocalMeasurer(model_bytes, args.threads), "measured", targets.cpu_name())


def _boards(args: argparse.Namespace, job: Job, rpc: RpcDevice, out: Output) -> Device:
    measurer = RemoteMeasurer(
        rpc,
        job.preset,
        threads=args.threads,
        wait_s=args.board_wait,
        notice=out.line,
        linker=job.linker,
    )
    try:
        with out.working("looking for a board"):
            first = measurer.find_board()
        if first.timing != "measured" and not args.allow_emulated:
            raise UsageError(_EMULATED.format(what=f"board {first.board} is an emulator"))
        _refuse_misfit(first, job.preset, args.threads)
        count = rpc.boards()
    except BaseException:
        measurer.close()
        raise
    others = f" and {count - 1} more" if count > 1 else ""
    out.line(f"boards    {first.board} ({first.cpu}){others}, key {rpc.key}")
    if first.timing != "measured":
        out.warn("the boards are emulated: what runs is checked, and its times mean nothing")
    return Device(measurer, first.timing, first.cpu, rpc)


def _refuse_misfit(board: Opened, preset: Preset, threads: int) -> None:
    """A board that cannot run the preset's code fails every trial."""
    which = f"board {board.board} ({board.cpu})"
    if board.machine is not None and board.machine != preset.arch:
        raise UsageError(
            f"{which} is {board.machine}, {preset.name} is for {preset.arch}: give its own "
            "--target or another --key"
        )
    if board.features is not None and board.timing == "measured":
        missing = [name for name in preset.cpu_features if name not in board.features]
        if missing:
            raise UsageError(
                f"{which} lacks CPU features that {preset.name} uses: {', '.join(missing)}: "
                "give its own --target or another --key"
            )
    if board.cores is not None and board.cores < threads:
        raise UsageError(f"--threads {threads}: {which} has {board.cores} cores")
