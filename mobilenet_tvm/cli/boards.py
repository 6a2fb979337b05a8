"""Where ``tune`` measures: this machine or its GPU, boards at a tracker, or emulated ones."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import platform
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mobilenet_tvm import cuda, targets
from mobilenet_tvm.cli import device_options
from mobilenet_tvm.cli.artifact import Job
from mobilenet_tvm.cli.device_options import EMULATED, LOCAL, QEMU, RPC
from mobilenet_tvm.cli.frame import Output
from mobilenet_tvm.cli.options import parse_duration, positive
from mobilenet_tvm.cuda.gpu import GpuInfo, find_gpu, why_none
from mobilenet_tvm.devices.cuda import ServedGpu
from mobilenet_tvm.errors import UsageError
from mobilenet_tvm.records.runfile import Timing
from mobilenet_tvm.runtime.gpus import Capability, can_run
from mobilenet_tvm.search import LocalMeasurer, Measurer, RemoteMeasurer
from mobilenet_tvm.search.board import Opened
from mobilenet_tvm.search.candidates import build_launch
from mobilenet_tvm.search.gpu import GpuMeasurer
from mobilenet_tvm.targets import Preset
from mobilenet_tvm.targets.gpus import Gpu

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
        cpu: whose they are, as run files name it: a CPU, or a GPU.
        rpc: its boards; None where there are none.
        gpu: whether it is this machine's GPU.
        peak_flops: of a GPU; infinite where nothing is known.
        launch_s: what a GPU needs to start a kernel, which none is faster than.
        notes: what else run files say of it.
    """

    measurer: Measurer
    timing: Timing
    cpu: str
    rpc: RpcDevice | None = None
    gpu: bool = False
    peak_flops: float = float("inf")
    launch_s: float = 0.0
    notes: tuple[str, ...] = ()

    @property
    def here(self) -> bool:
        """Whether it is this machine's CPU."""
        return self.rpc is None and self.timing == "measured" and not self.gpu


def add_device_options(parser: argparse.ArgumentParser) -> None:
    """Add where to measure: the DEVICE group, and what is only of tuning."""
    group = device_options.add_device_options(parser, (LOCAL, RPC, QEMU, ESTIMATE, EMULATED))
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
    if preset.gpu is not None:
        _check_gpu_options(args, preset, preset.gpu, name)
        return
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


def _check_gpu_options(args: argparse.Namespace, preset: Preset, gpu: Gpu, name: str) -> None:
    if name in (QEMU, ESTIMATE):
        raise UsageError(
            f"--device {name} is for CPUs, and {preset.name} for a GPU: use this machine's, or "
            "another's with --tracker, or --device emulated"
        )
    if args.threads != 1:
        raise UsageError(
            f"--threads is of a CPU's kernels, and {preset.name} is for a GPU: leave it out"
        )
    emulated = name == EMULATED or (name == LOCAL and cuda.emulated())
    if emulated and not args.allow_emulated:
        raise UsageError(_EMULATED_GPU.format(what="--device emulated"))
    if name == LOCAL and not emulated and (why := _why_not_here(preset, gpu)):
        raise UsageError(
            f"{preset.name} cannot be tuned on this machine: {why}: give the --tracker and --key "
            "of a machine that can, or use python -m mobilenet_tvm.compile with a log from it; "
            "--device emulated --allow-emulated tries all but the speed"
        )


def _why_not_here(preset: Preset, gpu: Gpu) -> str | None:
    """Why this machine cannot tune for a GPU's preset."""
    if not preset.runs_here():
        return f"it is {platform.machine()}, not {preset.arch}"
    found = find_gpu()
    if found is None:
        return why_none()
    if fits(preset, found.name, found.compute_capability):
        return None
    has = ".".join(map(str, found.compute_capability))
    return f"its {found.name} has compute capability {has}, and {preset.name} is for {gpu.arch}"


def fits(preset: Preset, name: str, capability: Capability) -> bool:
    """Whether a GPU runs the machine code of a preset; or the PTX, if it has no preset nearer."""
    if preset.gpu is None:
        return False
    if can_run(preset.gpu.compute_capability, capability, ptx=False):
        return True
    try:
        return targets.for_gpu(name, capability, preset.arch) == preset
    except UsageError:
        return False


_EMULATED_GPU = (
    "{what}: an emulator's times mean nothing, so nothing can be tuned by them: use a GPU, this "
    "machine's or another's with --tracker; --allow-emulated runs all the same, to try the way"
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
    preset = job.preset
    if preset.gpu is not None:
        with out.working("getting ready to compile for a GPU"):
            # What is missing for it is found here: in a trial it would be the candidate's fault.
            build_launch(preset.target, preset.host)
    if rpc is not None:
        return _boards(args, job, rpc, model_bytes, out)
    if preset.gpu is not None:
        return _gpu(preset, preset.gpu, model_bytes, out)
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


def _gpu(preset: Preset, gpu: Gpu, model_bytes: int, out: Output) -> Device:
    """This machine's GPU, or the emulator in its place."""
    measurer = GpuMeasurer(model_bytes)
    if measurer.emulated:
        out.warn("the GPU is emulated: what runs is checked, and its times mean nothing")
        return Device(measurer, "emulated", f"CUDA emulator ({gpu.arch})")
    found = find_gpu()
    assert found is not None, "check_device_options has seen it"
    try:
        with out.working("measuring what a launch takes"):
            launch_s = measurer.launch_s(preset)
    except BaseException:
        measurer.close()
        raise
    out.line(f"GPU       {found}; {_launch_note(launch_s)}")
    return Device(
        measurer,
        "measured",
        found.name,
        gpu=True,
        peak_flops=_peak_flops(gpu, found),
        launch_s=launch_s,
        notes=(str(found), _launch_note(launch_s)),
    )


def _launch_note(launch_s: float) -> str:
    return f"a launch takes {1e6 * launch_s:.1f} us"


def _peak_flops(gpu: Gpu, found: GpuInfo) -> float:
    """Operations a second of a GPU, or of its preset's card where that says more: a peak that is
    too low would end the search of a layer early."""
    multiprocessors = max(gpu.multiprocessors, found.multiprocessors or 0)
    clock_hz = max(1e9 * gpu.clock_ghz, 1e6 * (found.max_sm_clock_mhz or 0))
    return 2.0 * gpu.lanes * multiprocessors * clock_hz


def _boards(
    args: argparse.Namespace, job: Job, rpc: RpcDevice, model_bytes: int, out: Output
) -> Device:
    on_gpu = job.preset.gpu is not None
    rpc = dataclasses.replace(rpc, gpu=on_gpu)
    measurer = RemoteMeasurer(
        rpc,
        job.preset,
        model_bytes=model_bytes,
        threads=args.threads,
        wait_s=args.board_wait,
        notice=out.line,
        linker=job.linker,
    )
    try:
        with out.working("looking for a board"):
            first = measurer.find_board()
        if first.timing != "measured" and not args.allow_emulated:
            text = _EMULATED_GPU if on_gpu else _EMULATED
            raise UsageError(text.format(what=f"board {first.board} is an emulator"))
        _refuse_misfit(first, job.preset, args.threads)
        launch_s = measurer.launch_s() if on_gpu else 0.0
        count = rpc.boards()
    except BaseException:
        measurer.close()
        raise
    others = f" and {count - 1} more" if count > 1 else ""
    out.line(f"boards    {first.board} ({first.cpu}){others}, key {rpc.key}")
    if first.timing != "measured":
        out.warn("the boards are emulated: what runs is checked, and its times mean nothing")
    notes: tuple[str, ...] = ()
    if first.gpu is not None and on_gpu and first.timing == "measured":
        notes = (_card_note(first.gpu), _launch_note(launch_s))
    return Device(measurer, first.timing, first.cpu, rpc, launch_s=launch_s, notes=notes)


def _card_note(gpu: ServedGpu) -> str:
    return gpu.name if gpu.driver is None else f"{gpu.name}, driver {gpu.driver}"


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
    if preset.gpu is not None and board.machine is not None:
        if board.gpu is None:
            raise UsageError(
                f"{which} serves no GPU, and {preset.name} is for one: start "
                "python -m mobilenet_tvm.serve where there is one, or give another --key"
            )
        if not fits(preset, board.gpu.name, board.gpu.capability):
            has = ".".join(map(str, board.gpu.capability))
            raise UsageError(
                f"{which} has compute capability {has}, which {preset.name} is not for: give its "
                "own --target or another --key"
            )
    if board.cores is not None and board.cores < threads:
        raise UsageError(f"--threads {threads}: {which} has {board.cores} cores")
