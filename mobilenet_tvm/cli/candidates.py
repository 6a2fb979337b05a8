"""The candidates for one artifact: built, checked, run against each other, one of them kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
from rich import box
from rich.markup import escape
from rich.table import Table

from mobilenet_tvm.bench.board import compare_on_board, open_board
from mobilenet_tvm.bench.decide import Candidate, Choice, choose, decide, decide_on_gpu
from mobilenet_tvm.build import Plan, compile_model
from mobilenet_tvm.build.manifest import CandidateInfo, Manifest
from mobilenet_tvm.build.plans import by_estimate, times
from mobilenet_tvm.cli.frame import Output
from mobilenet_tvm.errors import DeviceError, carries_interrupt, last_line
from mobilenet_tvm.parity import ParityResult, check_artifact
from mobilenet_tvm.records import Record

if TYPE_CHECKING:
    from mobilenet_tvm.cli.artifact import Job


@dataclass(frozen=True)
class Built:
    """One plan's artifact; ``parity`` is None where it was not checked."""

    plan: Plan
    path: Path
    manifest: Manifest
    parity: ParityResult | None

    @property
    def passed(self) -> bool:
        """Whether nothing speaks against it."""
        return self.parity is None or bool(self.parity)


@dataclass(frozen=True)
class Decision:
    """The build to keep, and what is to be said of every plan."""

    chosen: Built
    candidates: tuple[CandidateInfo, ...]


def build_and_decide(
    job: Job,
    plans: Sequence[Plan],
    best: dict[str, Record],
    folder: Path,
    *,
    threads: int,
    check: bool,
    out: Output,
) -> Decision:
    """Build the plans into ``folder``, check them, measure them, and choose.

    A plan that fails is left out, and so is the measurement if one of them fails in it: hours
    of search end in an artifact. Where there is nothing to time them on, a board or this machine,
    and for a static library, which is not timed, only the plan with the least estimate is built.

    Raises:
        DeviceError: no plan can be built and run; it is what the first one failed with.
    """
    measured = job.timed and job.c_prefix is None
    wanted = [plan for plan in plans if plan.dropped is None]
    if not measured:
        wanted.sort(key=by_estimate)
    told = {
        plan.name: CandidateInfo(plan.name, False, f"not built: {plan.dropped}")
        for plan in plans
        if plan.dropped is not None
    }
    built: list[Built] = []
    failures: list[DeviceError] = []
    for plan in wanted:
        if built and not measured:
            told[plan.name] = _not_built(plan, built[0].plan)
            continue
        try:
            built.append(_build(job, plan, best, folder / plan.name, check=check, out=out))
        except DeviceError as error:
            failures.append(error)
            told[plan.name] = CandidateInfo(plan.name, False, f"left out: {error}")
            reason = str(error).removeprefix(f"plan {plan.name} ")
            out.warn(f"plan {plan.name} is left out: {reason}")
    if not built:
        raise failures[0]

    fit = [one for one in built if one.passed]
    for one in built:
        if one.parity is not None and not one.passed and fit:
            out.warn(f"plan {one.plan.name} is left out: {one.parity.summary()}")
            told[one.plan.name] = _info(one, f"left out: {one.parity.summary()}")
    # Where nothing passes, the first stays and is marked as failed.
    fit = fit or built[:1]
    chosen = fit[0]
    if len(fit) == 1:
        told[chosen.plan.name] = _info(chosen, _only(plans, chosen, job), chosen=True)
    else:
        chosen, infos = _fastest(fit, job, threads=threads, out=out)
        told |= {info.name: info for info in infos}
    return Decision(chosen, tuple(told[plan.name] for plan in plans if plan.name in told))


def _build(
    job: Job, plan: Plan, best: dict[str, Record], folder: Path, *, check: bool, out: Output
) -> Built:
    path = folder / job.artifact.name
    with out.working(f"compiling {job.info.name} for {job.preset.name}: plan {plan.name}"):
        manifest = compile_model(
            job.relay,
            job.preset,
            path,
            info=job.info,
            tasks=job.stock_tasks if plan.schedules != job.templates else job.all_tasks,
            best=best if plan.records else {},
            transferred=job.transferred,
            preprocessing=job.preprocessing,
            labels=job.labels,
            schedules=plan.schedules,
            plan=plan,
            linker=job.linker,
            c_prefix=job.c_prefix,
        )
    if not check:
        return Built(plan, path, manifest, None)
    with out.working(f"checking parity: plan {plan.name}"):
        try:
            parity = _check(job, path, out)
        except RuntimeError as error:  # TVM's, raised by a kernel; a Ctrl-C may come as one too
            if carries_interrupt(error):
                raise
            raise DeviceError(f"it fails in the parity check: {last_line(error)}") from error
    return Built(plan, path, manifest, parity)


def _check(job: Job, path: Path, out: Output) -> ParityResult:
    """The parity check, on a board where there is one."""
    if job.device is None or job.device.rpc is None:
        return check_artifact(path, images=job.images, warn=out.warn)
    with open_board(job.device.rpc, job.device.cpu) as session:
        return check_artifact(path, images=job.images, warn=out.warn, session=session)


def _fastest(
    fit: Sequence[Built], job: Job, *, threads: int, out: Output
) -> tuple[Built, list[CandidateInfo]]:
    """The fastest as measured, or the one with the least estimate if measuring fails."""
    try:
        with out.working("measuring: the candidates take turns"):
            choice = _decide(fit, job, threads)
    except DeviceError as error:
        out.warn(f"the candidates cannot be measured: {error}")
        chosen = min(fit, key=lambda one: by_estimate(one.plan))
        why = f"least estimate: not measured, for {error}"
        return chosen, [
            _info(one, why if one is chosen else "not measured", chosen=one is chosen)
            for one in fit
        ]
    for warning in choice.warnings:
        out.warn(warning)
    chosen = next(one for one in fit if one.plan.name == choice.chosen)
    return chosen, [_measured(one, choice) for one in fit]


def _decide(fit: Sequence[Built], job: Job, threads: int) -> Choice:
    """Measured where the search was: on a board, or on this machine."""
    if job.device is None or job.device.rpc is None:
        candidates = [_candidate(one) for one in fit]
        if job.preset.gpu is not None:
            return decide_on_gpu(candidates)
        return decide(candidates, threads=threads)
    result = compare_on_board(
        job.device.rpc,
        [(one.plan.name, one.path) for one in fit],
        cpu=job.device.cpu,
        threads=(threads,),
    )
    return choose(result, [_candidate(one) for one in fit])


def _measured(one: Built, choice: Choice) -> CandidateInfo:
    name = one.plan.name
    chosen, ratio = name == choice.chosen, choice.ratio[name]
    why = choice.why if chosen else f"{ratio:.2f}x the time of {choice.chosen}"
    return msgspec.structs.replace(
        _info(one, why, chosen=chosen), median_ms=choice.median_ms[name], ratio=ratio
    )


def _candidate(one: Built) -> Candidate:
    tuning = one.manifest.tuning
    return Candidate(one.plan.name, one.path, tuning.layout_transforms, tuning.tuned > 0)


def _info(one: Built, why: str, *, chosen: bool = False) -> CandidateInfo:
    return CandidateInfo(
        one.plan.name,
        chosen,
        why,
        layout_transforms=one.manifest.tuning.layout_transforms,
        parity_passed=None if one.parity is None else bool(one.parity),
    )


def _not_built(plan: Plan, chosen: Plan) -> CandidateInfo:
    why = f"not built: estimated {times(plan, chosen)} the time of {chosen.name}"
    if plan.untuned:
        why = f"not built: {plan.untuned} of its convolutions have no record"
    return CandidateInfo(plan.name, False, why)


def _only(plans: Sequence[Plan], chosen: Built, job: Job) -> str:
    """Why the one that is left is the chosen one."""
    if not chosen.passed:
        return "no candidate passed the parity check"
    if chosen.manifest.tuning.tuned == 0 and chosen.plan.records:
        if chosen.manifest.tuning.transferred:
            return "no record is of its own tasks: by those of the nearest shapes"
        return "untuned: there are no records of its tasks"
    if len(plans) == 1:
        return "the only plan that there are records for"
    if job.timed:
        return "the only candidate left"
    if job.device is not None and job.device.timing == "emulated":
        return "least estimate, of an emulator's times: says nothing of its speed"
    return "least estimate: estimated, not measured"


def table(candidates: Sequence[CandidateInfo]) -> Table:
    """The candidates for a person."""
    view = Table(box=box.SIMPLE)
    view.add_column("candidate", no_wrap=True)
    for heading in ("median\nms", "layout\ntransforms"):
        view.add_column(heading, justify="right", no_wrap=True)
    view.add_column("parity", no_wrap=True)
    view.add_column("", overflow="fold")
    for one in candidates:
        parity = {None: "-", True: "passed", False: "failed"}[one.parity_passed]
        view.add_row(
            one.name,
            "-" if one.median_ms is None else f"{one.median_ms:.3f}",
            "-" if one.layout_transforms is None else str(one.layout_transforms),
            parity,
            escape(f"chosen: {one.why}" if one.chosen else one.why),
        )
    return view
