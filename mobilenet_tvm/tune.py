"""``python -m mobilenet_tvm.tune``: the main job, from a model to a tuned, checked artifact."""

from __future__ import annotations

import argparse
import dataclasses
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from mobilenet_tvm import bench, targets, toolchain
from mobilenet_tvm.build import compile_model
from mobilenet_tvm.build.manifest import LatencyInfo, Manifest, read_manifest, write_manifest
from mobilenet_tvm.cli import artifact
from mobilenet_tvm.cli.artifact import Job
from mobilenet_tvm.cli.frame import Output, VerbFailedError, run_verb
from mobilenet_tvm.cli.options import parse_duration
from mobilenet_tvm.errors import UsageError
from mobilenet_tvm.records import (
    Record,
    RecordLog,
    RunInfo,
    choose_records,
    read_run,
    run_path,
    write_run,
)
from mobilenet_tvm.search import (
    AutoTvmSearcher,
    Budget,
    LocalMeasurer,
    PlainProgress,
    RichProgress,
    Summary,
    tune_tasks,
)
from mobilenet_tvm.search.tuning import failures_of

DEFAULT_TRIALS = 96


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's own arguments."""
    artifact.add_artifact_options(parser)
    group = parser.add_argument_group("search")
    group.add_argument(
        "--tuner", choices=("autotvm",), default="autotvm", help="who searches (default: autotvm)"
    )
    group.add_argument(
        "--trials",
        type=_positive,
        default=DEFAULT_TRIALS,
        metavar="N",
        help=f"at most so many trials a task, earlier runs' included (default: {DEFAULT_TRIALS})",
    )
    group.add_argument(
        "--time-budget",
        type=parse_duration,
        metavar="TIME",
        help="at most so long searching, e.g. 90s or 20m (default: no limit)",
    )
    group.add_argument(
        "--seed", type=int, default=0, metavar="N", help="of the search (default: 0)"
    )
    group.add_argument(
        "--fresh",
        action="store_true",
        help="start a new log; the old one is kept beside it as .old",
    )
    measuring = parser.add_argument_group("measurement at the end")
    measuring.add_argument("--no-bench", action="store_true", help="skip it")
    measuring.add_argument(
        "--rounds",
        type=_positive,
        default=bench.DEFAULT_ROUNDS,
        metavar="N",
        help=f"alternating rounds (default: {bench.DEFAULT_ROUNDS})",
    )


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise ValueError
    return value


_positive.__name__ = "positive number"


def run(args: argparse.Namespace, out: Output) -> dict[str, Any]:
    """Import, search, compile, check, measure.

    Raises:
        UsageError: the model, the target or the log cannot be used.
        CheckFailedError: ``--require-tuned`` or parity failed.
        DeviceError: nothing could be measured, or the log cannot be written.
    """
    with out.working("importing the model"):
        job = artifact.prepare(args)
    if not job.preset.runs_here():
        raise UsageError(
            f"{job.preset.name} cannot be tuned on this machine ({targets.cpu_name()}): use "
            "python -m mobilenet_tvm.compile with a log from a machine that can"
        )
    records, summary = _search(job, args, out)
    searched = {"log": str(job.log), "search": dataclasses.asdict(summary)}
    try:
        manifest, _, payload = artifact.compile_and_check(
            job, choose_records(job.tasks, records), args, out
        )
    except VerbFailedError as error:
        error.payload |= searched
        raise
    payload |= searched
    if not args.no_bench:
        payload["bench"] = _measure(job, manifest, args, out)
    return payload


def _search(job: Job, args: argparse.Namespace, out: Output) -> tuple[list[Record], Summary]:
    """The tuning run, with its log and its run file."""
    if not args.fresh:
        _refuse_foreign(job)
    console = out.console
    progress = RichProgress(console) if console.is_terminal else PlainProgress(console)
    measurer = LocalMeasurer(sum(task.weight * task.weight_bytes for task in job.tasks))
    with RecordLog(job.log, out.warn) as log:
        if args.fresh:  # now that no other run can be writing it
            _set_aside(job.log)
            log.records.clear()
        keys = {task.key for task in job.tasks}
        known = sum(record.key in keys for record in log.records)
        if known:
            out.line(f"resuming  {job.log}: {known} finished trials are not repeated")
        earlier = read_run(job.log)
        summary = Summary()
        # At once, so that even after a kill -9 the log says which machine it is of.
        _write_run_file(job, args, log, summary, earlier)
        try:
            with progress:
                tune_tasks(
                    job.tasks,
                    make_searcher=lambda task, done: AutoTvmSearcher(
                        task, trials=args.trials, seed=args.seed, done=done
                    ),
                    measurer=measurer,
                    log=log,
                    budget=Budget(args.trials, args.time_budget),
                    progress=progress,
                    summary=summary,
                )
        except KeyboardInterrupt:
            out.line(
                f"{job.log}: {len(log.records)} finished trials are kept; run the same "
                "command again to go on"
            )
            raise
        finally:
            measurer.close()
            _write_run_file(job, args, log, summary, earlier)
        failed = ", ".join(f"{count} {kind}" for kind, count in summary.failures.items())
        out.line(
            f"searched  {summary.trials} trials in {summary.spent_s:.0f} s"
            + (f", failed: {failed} (first: {summary.first_error})" if failed else "")
            + ("; the time budget is used up" if summary.out_of_time else "")
        )
        return list(log.records), summary


def _refuse_foreign(job: Job) -> None:
    """A log from another CPU says nothing about this one."""
    run = read_run(job.log) if job.log.exists() else None
    if run is not None and run.cpu != targets.cpu_name():
        raise UsageError(
            f"{job.log} was measured on {run.cpu}, this machine is {targets.cpu_name()}: use "
            "--fresh or another -o to tune here, or compile to use the log as it is"
        )


def _set_aside(log: Path) -> None:
    for path in (log, run_path(log)):
        if path.exists():
            path.replace(path.with_name(path.name + ".old"))


def _write_run_file(
    job: Job, args: argparse.Namespace, log: RecordLog, summary: Summary, earlier: RunInfo | None
) -> None:
    write_run(
        job.log,
        RunInfo(
            format_version=1,
            preset=job.preset.name,
            target=job.preset.target,
            cpu=targets.cpu_name(),
            tvm=toolchain.TVM_VERSION,
            llvm=toolchain.llvm_version(),
            model=job.info.name,
            model_digest=job.info.digest,
            searcher=args.tuner,
            seed=args.seed,
            threads=1,
            spent_s=summary.spent_s + (earlier.spent_s if earlier else 0.0),
            trials=len(log.records),
            failures=failures_of(log.records),
        ),
    )


def _measure(job: Job, manifest: Manifest, args: argparse.Namespace, out: Output) -> Any:
    """Tuned against untuned and ONNX Runtime, in one run; the latencies go to the manifest."""
    threads = sorted({1, targets.physical_cores()})
    with tempfile.TemporaryDirectory(prefix="mobilenet_tvm-") as name:
        folder = Path(name)
        with out.working("compiling the untuned modules to compare with"):
            for schedules in ("ours", "stock"):
                compile_model(
                    job.relay,
                    job.preset,
                    folder / f"{schedules}.so",
                    info=job.info,
                    schedules=schedules,
                )
        onnx, mult_adds = bench.reference_model(manifest, None, folder)
        contenders = (
            bench.Contender("tuned", "artifact", str(job.artifact)),
            bench.Contender("untuned (TVM's schedules)", "artifact", str(folder / "stock.so")),
            bench.Contender("untuned (our schedules)", "artifact", str(folder / "ours.so")),
            bench.Contender("ONNX Runtime", "onnxruntime", str(onnx)),
        )
        with out.working("measuring: tuned, untuned and ONNX Runtime take turns"):
            result = bench.compare(
                contenders,
                threads=threads,
                rounds=args.rounds,
                mult_adds=mult_adds,
            )
    out.console.print(bench.table(result))
    for warning in result.warnings:
        out.warn(warning)
    latency = tuple(
        LatencyInfo(
            machine=result.machine,
            threads=timing.threads,
            median_ms=timing.median_ms,
            p5_ms=timing.p5_ms,
            p95_ms=timing.p95_ms,
        )
        for timing in result.timings
        if timing.label == "tuned"
    )
    write_manifest(
        job.artifact, msgspec.structs.replace(read_manifest(job.artifact), latency=latency)
    )
    return result.as_dict()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the verb."""
    return run_verb(
        "tune",
        "Tune a MobileNet for this machine, compile it into one checked .so, and measure it "
        "against untuned and ONNX Runtime. Run it again to go on where it ended.",
        add_arguments,
        run,
        argv,
    )


if __name__ == "__main__":
    sys.exit(main())
