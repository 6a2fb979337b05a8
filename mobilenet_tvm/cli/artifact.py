"""What ``tune`` and ``compile`` share: options of an artifact, and the way to a checked one."""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from mobilenet_tvm import cuda, frontend, targets
from mobilenet_tvm.bench import check_threads
from mobilenet_tvm.build import Plan, coverage, make_plans, plan_tasks, rivals
from mobilenet_tvm.build.link import parse_linker
from mobilenet_tvm.build.manifest import (
    Manifest,
    ModelInfo,
    Preprocessing,
    manifest_path,
    read_manifest,
    write_manifest,
)
from mobilenet_tvm.build.plans import transform_bytes_per_s
from mobilenet_tvm.build.static import c_name, parse_c_name
from mobilenet_tvm.cli.candidates import Decision, build_and_decide, table
from mobilenet_tvm.cli.cuda_report import print_kernels
from mobilenet_tvm.cli.device_options import prepare_emulated
from mobilenet_tvm.cli.frame import Output, VerbFailedError
from mobilenet_tvm.cli.options import add_model_options, model_info, positive, resolve_model
from mobilenet_tvm.cli.scratch import folder_beside
from mobilenet_tvm.errors import CheckFailedError, DeviceError, UsageError
from mobilenet_tvm.parity import ParityResult
from mobilenet_tvm.parity.inputs import find_images
from mobilenet_tvm.records import Record, SearcherName, Task, extract_tasks
from mobilenet_tvm.records.lines import autotvm_task
from mobilenet_tvm.records.tasks import Schedules
from mobilenet_tvm.runtime import gpus
from mobilenet_tvm.runtime.static import emulator, why_not
from mobilenet_tvm.targets import Preset

if TYPE_CHECKING:
    from mobilenet_tvm.cli.boards import Device


def add_artifact_options(parser: argparse.ArgumentParser) -> None:
    """Add the model, the target, and what goes into the manifest."""
    add_model_options(parser)
    parser.add_argument(
        "--target",
        default="x86",
        metavar="PRESET",
        help=f"what to compile for: {', '.join(targets.names())} (default: x86, this machine)",
    )
    parser.add_argument(
        "--linker",
        type=_linker,
        metavar="COMMAND",
        help="link with this in place of the preset's zig: aarch64-linux-gnu-gcc, or "
        "'zig cc -target aarch64-linux-gnu.2.17' for a system as old as that glibc",
    )
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        default=Path("out"),
        metavar="DIR",
        help="folder of the artifact and of tuning_logs/ (default: out)",
    )
    parser.add_argument(
        "--schedules",
        choices=("best", "ours", "stock"),
        default="best",
        help="whose templates its layers have: ours, stock (TVM's own), or best: whichever is the "
        "fastest end to end of ours, Ansor's schedules and, where it was tuned, stock "
        "(default: best)",
    )
    parser.add_argument(
        "--require-tuned",
        action="store_true",
        help="fail (exit 1) when a task has no tuning record of its own",
    )
    parser.add_argument(
        "--threads",
        type=positive,
        default=1,
        metavar="N",
        help="threads the artifact will run on: trials and the choice between candidates are "
        "timed with so many (default: 1)",
    )
    group = parser.add_argument_group("parity and preprocessing")
    group.add_argument(
        "--images", type=Path, metavar="DIR", help="photos for the parity check, beside noise"
    )
    group.add_argument("--no-check", action="store_true", help="skip the parity check")
    group.add_argument(
        "--labels", type=Path, metavar="FILE", help="class labels for the manifest, one a line"
    )
    group.add_argument(
        "--mean", type=_channels, metavar="R,G,B", help="of the pixels in 0-1 (default: 0.5)"
    )
    group.add_argument(
        "--std", type=_deviations, metavar="R,G,B", help="of the pixels in 0-1 (default: 0.5)"
    )
    group.add_argument(
        "--color", choices=("RGB", "BGR"), default="RGB", help="channel order (default: RGB)"
    )


def add_c_options(parser: argparse.ArgumentParser) -> None:
    """Add what makes a static C library of a model."""
    group = parser.add_argument_group("C")
    group.add_argument(
        "--format",
        choices=("so", "c"),
        default="so",
        help="so: a shared library for TVM's runtime (the default); c: a static library and its "
        "header, for programs and boards without it, on one thread",
    )
    group.add_argument(
        "--name",
        type=_c_name,
        metavar="NAME",
        help="with --format c, what the library is called, and what the names in it begin with "
        "(default: the model's name)",
    )


def _linker(text: str) -> tuple[str, ...]:
    return parse_linker(text)


def _channels(text: str) -> tuple[float, ...]:
    values = tuple(float(part) for part in text.split(","))
    if len(values) == 1:
        values *= 3
    if len(values) != 3 or not all(map(math.isfinite, values)):
        raise ValueError
    return values


def _deviations(text: str) -> tuple[float, ...]:
    values = _channels(text)
    if min(values) <= 0:  # pixels are divided by them
        raise ValueError
    return values


def _c_name(text: str) -> str:
    return parse_c_name(text)


_linker.__name__ = "command"
_c_name.__name__ = "C identifier"
# argparse names the type by its __name__: "invalid one or three numbers value: 'x'".
_channels.__name__ = "one or three numbers"
_deviations.__name__ = "one or three positive numbers"


@dataclass(frozen=True)
class Job:
    """A model on its way to an artifact, resolved once and for all from the arguments.

    ``tasks`` are AutoTVM's, of TVM's own templates if ``schedules`` says ``stock``;
    ``ansor_tasks``, which take seconds to find, and with ``best`` ``stock_tasks`` are there if
    wanted. ``threads`` is what it will run on. ``transferred`` are keys of tasks whose record the
    nearest shape lent (``records.serving``). ``device`` is where it is tuned; None is this
    machine, if that can run the preset. ``c_prefix`` is what the names of a static library begin
    with, None for a ``.so``.
    """

    relay: frontend.RelayModel
    info: ModelInfo
    preset: Preset
    tasks: tuple[Task, ...]
    preprocessing: Preprocessing | None
    labels: tuple[str, ...] | None
    images: tuple[Path, ...]
    folder: Path
    ansor_tasks: tuple[Task, ...] = ()
    linker: tuple[str, ...] | None = None
    c_prefix: str | None = None
    device: Device | None = None
    threads: int = 1
    schedules: str = "best"
    stock_tasks: tuple[Task, ...] = ()
    transferred: frozenset[str] = frozenset()

    @property
    def templates(self) -> Schedules:
        """Whose templates ``tasks`` are of."""
        return "stock" if self.schedules == "stock" else "ours"

    @property
    def runs(self) -> bool:
        """Whether there is something to run the artifact on: this machine, its GPU or the
        emulator, or a board."""
        on_board = self.device is not None and self.device.rpc is not None
        return on_board or gpus.runs_here(self.preset)

    @property
    def timed(self) -> bool:
        """Whether candidates can be timed there."""
        timing = "measured" if self.device is None else self.device.timing
        on_emulator = self.preset.gpu is not None and cuda.emulated()
        return timing == "measured" and self.runs and not on_emulator

    @property
    def all_tasks(self) -> tuple[Task, ...]:
        """Those of both searchers."""
        return (*self.tasks, *self.ansor_tasks)

    @property
    def artifact(self) -> Path:
        """``<folder>/<model>.<preset>.so``; ``.tar`` where only objects are made, and
        ``<folder>/<model>.<preset>/lib<name>.a`` for C."""
        if self.c_prefix is not None:
            folder = self.folder / f"{self.info.name}.{self.preset.name}"
            return folder / f"lib{self.c_prefix}.a"
        suffix = "so" if self.preset.kind == "so" else "tar"
        return self.folder / f"{self.info.name}.{self.preset.name}.{suffix}"

    def log_of(self, searcher: SearcherName, templates: Schedules | None = None) -> Path:
        """``<folder>/tuning_logs/<preset>/<model>.<searcher>.jsonl``: by default the one that
        ``tune`` writes.

        Times with more than one thread, and those of TVM's own templates, are in logs of their
        own: ``<model>.stock.2-threads.autotvm.jsonl``.
        """
        stock = ".stock" if (templates or self.templates) == "stock" else ""
        threads = f".{self.threads}-threads" if self.threads != 1 else ""
        return self.logs_folder / f"{self.info.name}{stock}{threads}.{searcher}.jsonl"

    @property
    def logs_folder(self) -> Path:
        """Where logs for the preset are."""
        return self.folder / "tuning_logs" / self.preset.name


def prepare(args: argparse.Namespace) -> Job:
    """Read and import the model, and find its tasks.

    Raises:
        UsageError: the model, the target, the photos or the labels cannot be used.
    """
    # All that can be wrong is found here, not after the search.
    preset = targets.resolve(args.target)
    prepare_emulated(args, preset)
    if preset.runs_here():
        check_threads([args.threads])
    labels = read_labels(args.labels) if args.labels else None
    images = tuple(find_images(args.images)) if args.images else ()
    clean = resolve_model(args)
    relay = frontend.to_relay(clean)
    _refuse_misfit(labels, relay)
    info = model_info(args, clean)
    return Job(
        relay=relay,
        info=info,
        preset=preset,
        tasks=extract_tasks(
            relay.module,
            preset,
            schedules="stock" if args.schedules == "stock" else "ours",
            threads=args.threads,
        ),
        preprocessing=_preprocessing(args, relay),
        labels=labels,
        images=images,
        folder=args.output,
        linker=args.linker,
        c_prefix=_c_prefix(args, info.name, preset),
        threads=args.threads,
        schedules=args.schedules,
    )


def with_stock_tasks(job: Job, records: Iterable[Record]) -> Job:
    """The job with the tasks of TVM's own templates, where it may be built of them: with
    ``--schedules best``, and a record of one."""
    templates = {autotvm_task(one)[0] for one in records if one.searcher == "autotvm"}
    if job.schedules != "best" or templates <= {task.handle.name for task in job.tasks}:
        return job
    return replace(job, stock_tasks=extract_tasks(job.relay.module, job.preset, schedules="stock"))


def _c_prefix(args: argparse.Namespace, model: str, preset: Preset) -> str | None:
    """What the names of a static library begin with; None for a ``.so``."""
    name: str | None = getattr(args, "name", None)
    if getattr(args, "format", "so") == "so":
        if name is not None:
            raise UsageError("--name is for --format c: a .so is called after its model")
        return None
    if preset.gpu is not None:
        raise UsageError(
            f"--format c is for CPUs, and kernels of {preset.name} need TVM's runtime to be "
            "launched: leave it out, or give the --target of a CPU"
        )
    if args.linker is not None:
        raise UsageError("--linker is for a .so: with --format c it is your program that is linked")
    return name or c_name(model)


def _refuse_misfit(labels: tuple[str, ...] | None, relay: frontend.RelayModel) -> None:
    """Labels that are one off name every class wrongly."""
    for output in relay.outputs:
        if labels is not None and len(labels) != output.shape[-1]:
            raise UsageError(
                f"--labels has {len(labels)} lines and the model's output {output.name} "
                f"{output.shape[-1]} classes: give one line a class, the background's included"
            )


def _preprocessing(args: argparse.Namespace, relay: frontend.RelayModel) -> Preprocessing | None:
    guess = frontend.guess_preprocessing(relay.inputs)
    if guess is None:
        if args.mean or args.std:
            raise UsageError("--mean and --std: the model's input is no [N, 3, H, W] image")
        return None
    return msgspec.structs.replace(
        guess, color=args.color, mean=args.mean or guess.mean, std=args.std or guess.std
    )


def read_labels(path: Path) -> tuple[str, ...]:
    """Class labels, one a line.

    Raises:
        UsageError: the file cannot be read or is empty.
    """
    try:
        labels = tuple(line.strip() for line in path.read_text(encoding="utf-8").splitlines())
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read the labels {path}: {error}") from None
    if not any(labels):
        raise UsageError(f"{path} has no labels: write one a line")
    return labels


def compile_and_check(
    job: Job, best: dict[str, Record], args: argparse.Namespace, out: Output
) -> tuple[Manifest, ParityResult | None, dict[str, Any]]:
    """Compile with the best records, check parity, and say both in a line each.

    With records of both searchers several builds are candidates (``build.plans``), and where
    they can be measured the untuned defaults are one of them, unless ``--require-tuned`` asks
    for records. They are measured against each other, and the fastest that passes becomes the
    artifact.

    Returns:
        The manifest, the parity result (None with ``--no-check``), and both for ``--json``.

    Raises:
        CheckFailedError: ``--require-tuned``, and a task has no record.
        VerbFailedError: parity failed; the artifact is there and marked as failed.
    """
    bytes_per_s = transform_bytes_per_s(job.preset.gpu)
    plans = make_plans(job.relay.module, job.all_tasks, best, bytes_per_s=bytes_per_s)
    if job.templates == "stock":
        plans = tuple(replace(plan, name="stock", schedules="stock") for plan in plans)
    if args.require_tuned:
        plans = _tuned_plans(job, plans, best)
    elif job.timed and job.c_prefix is None:
        plans += rivals(job.tasks, best, schedules=job.templates, stock_tasks=job.stock_tasks)
    why = "--no-check" if args.no_check else _why_not(job)
    check = why is None
    with folder_beside(job.artifact) as folder:
        decision = build_and_decide(
            job, plans, best, folder, threads=args.threads, check=check, out=out
        )
        _keep(decision, job.artifact)
    manifest, parity = read_manifest(job.artifact), decision.chosen.parity
    if len(decision.candidates) > 1:
        out.console.print(table(decision.candidates))
    size_mb = job.artifact.stat().st_size / 1e6
    covered = f"{manifest.tuning.tuned} of {manifest.tuning.tasks} tasks tuned"
    if lent := len(manifest.tuning.transferred):
        covered += f", {lent} by the nearest shape{'' if lent == 1 else 's'}"
    if not decision.chosen.plan.records:
        covered += ": the untuned defaults are the fastest"
    out.line(f"artifact  {job.artifact} ({size_mb:.1f} MB), {covered}")
    if manifest.c_library is not None:
        header = job.artifact.with_name(manifest.c_library.header)
        kib = manifest.c_library.workspace_bytes / 1024
        out.line(f"header    {header}: {manifest.c_library.prefix}_run, workspace {kib:.0f} KiB")
    elif job.preset.kind == "object":
        out.line("          objects only: TVM links them on the machine that loads the .tar")
    if manifest.cuda is not None:
        print_kernels(manifest.cuda, job.artifact.with_name(manifest.cuda.source), out)
    payload: dict[str, Any] = {
        "artifact": str(job.artifact),
        "preset": job.preset.name,
        "tuned": manifest.tuning.tuned,
        "transferred": len(manifest.tuning.transferred),
        "tasks": manifest.tuning.tasks,
        "schedules": manifest.tuning.schedules,
        "layout_transforms": manifest.tuning.layout_transforms,
        "decision": [msgspec.structs.asdict(one) for one in decision.candidates],
        "parity": None if parity is None else parity.as_dict(),
        "cuda": msgspec.to_builtins(manifest.cuda),
    }
    if parity is None:
        out.line(f"parity    not checked: {why}")
    elif not parity:
        raise VerbFailedError(parity.summary(), payload)
    else:
        out.line(f"parity    {parity.summary().removeprefix('parity ')}")
    return manifest, parity, payload


def _why_not(job: Job) -> str | None:
    """Why parity cannot be checked here, or None."""
    if job.c_prefix is not None:
        return None if emulator(job.preset) is not None else why_not(job.preset)
    if job.runs:
        return None
    if job.preset.gpu is not None and job.preset.runs_here():
        capability = job.preset.gpu.compute_capability
        return f"it {gpus.why_not(capability, job.preset.name)}"
    where = "--device qemu, or --tracker and --key" if job.preset.qemu else "--tracker and --key"
    return (
        f"{job.preset.name} does not run on this machine; python -m mobilenet_tvm.check with "
        f"{where} runs it elsewhere"
    )


def _tuned_plans(job: Job, plans: tuple[Plan, ...], best: dict[str, Record]) -> tuple[Plan, ...]:
    """The plans of which every task has a record of its own."""
    own = {key: record for key, record in best.items() if key not in job.transferred}
    covered = [coverage(plan_tasks(job.relay.module, job.all_tasks, plan), own) for plan in plans]
    tuned = tuple(plan for plan, one in zip(plans, covered, strict=True) if one)
    if not any(plan.dropped is None for plan in tuned):
        least = min(covered, key=lambda one: len(one.missing))
        shown = "; ".join(least.missing[:3]) + ("; ..." if len(least.missing) > 3 else "")
        raise CheckFailedError(
            f"{least}, and --require-tuned was given: no record for {shown}: tune first with "
            "python -m mobilenet_tvm.tune, or name its log with --logs"
        )
    return tuned


def _keep(decision: Decision, artifact: Path) -> None:
    """Move the chosen candidate to where the artifact belongs, its manifest saying why."""
    path = decision.chosen.path
    manifest = msgspec.structs.replace(read_manifest(path), decision=decision.candidates)
    try:
        write_manifest(path, manifest)
        if manifest.c_library is not None:
            header = manifest.c_library.header
            path.with_name(header).replace(artifact.with_name(header))
        if manifest.cuda is not None:
            source = artifact.with_name(manifest.cuda.source)
            path.with_name(source.name).replace(source)
        path.replace(artifact)
        # Until this is done too, the digest gives the old manifest away.
        manifest_path(path).replace(manifest_path(artifact))
    except OSError as error:
        raise DeviceError(f"cannot write {artifact}: {error.strerror or error}") from None
