"""``python -m mobilenet_tvm.compile``: from a model and its records to a checked artifact."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mobilenet_tvm import targets
from mobilenet_tvm.cli import artifact
from mobilenet_tvm.cli.artifact import Job
from mobilenet_tvm.cli.device_options import EMULATED, LOCAL
from mobilenet_tvm.cli.frame import Output, run_verb
from mobilenet_tvm.cli.logs_given import read_logs
from mobilenet_tvm.records import Record, choose_records
from mobilenet_tvm.records.ansor_tasks import extract_ansor_tasks
from mobilenet_tvm.records.choose import WRONG_OUTPUT
from mobilenet_tvm.records.merge import Log


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's own arguments."""
    artifact.add_artifact_options(parser)
    artifact.add_c_options(parser)
    parser.add_argument(
        "--device",
        choices=(LOCAL, EMULATED),
        default=LOCAL,
        help="where kernels for a GPU run in the parity check: on this machine's, or on an "
        "emulated one, which checks results and has no times (default: local)",
    )
    parser.add_argument(
        "--logs",
        type=Path,
        nargs="+",
        metavar="PATH",
        help="tuning logs, or folders of them (default: the logs of this model under -o)",
    )


def run(args: argparse.Namespace, out: Output) -> dict[str, Any]:
    """Compile, check, print the coverage and the verdict.

    Raises:
        UsageError: the model, the target or a log cannot be used.
        CheckFailedError: ``--require-tuned`` or parity failed.
    """
    with out.working("importing the model"):
        job = artifact.prepare(args)
    records = _records(args, job, out)
    if any(record.searcher == "ansor" for record in records):
        with out.working("finding Ansor's tasks"):
            tasks = extract_ansor_tasks(job.relay.module, job.preset, threads=args.threads)
        job = dataclasses.replace(job, ansor_tasks=tasks)
    best = choose_records(job.all_tasks, records)
    if records and not best:
        out.warn(
            f"none of the {len(records)} records is of this model's tasks on {job.preset.name}: "
            "compiling with untuned schedules"
        )
    return artifact.compile_and_check(job, best, args, out)[2]


def _records(args: argparse.Namespace, job: Job, out: Output) -> list[Record]:
    logs: Sequence[Path] | None = args.logs
    if logs is None:
        usual = [job.log_of(searcher) for searcher in ("autotvm", "ansor")]
        logs = [log for log in usual if log.exists()]
        if not logs and not args.require_tuned:  # that has its own words for it
            out.warn(
                f"no log at {usual[0]}: compiling with untuned schedules; tune first with "
                "python -m mobilenet_tvm.tune, or name a log with --logs"
            )
    found = read_logs(logs, out.warn)
    _warn_of_foreign(found, job, args.threads, out)
    return _comparable(found, out)


def _comparable(logs: Sequence[Log], out: Output) -> list[Record]:
    """The records of logs; beside measured times, those of an emulator or an estimate are left
    out, for they would be compared. That a kernel computes something else is true all the same."""
    measured = [log for log in logs if log.run is None or log.run.timing == "measured"]
    others = [log for log in logs if log not in measured]
    records = [record for log in logs for record in log.records]
    if others and any(log.records for log in measured):
        shown = _first_of([str(log.path) for log in others])
        out.warn(f"{shown}: left out beside logs of measured times")
        records = [record for log in measured for record in log.records]
        records += [r for log in others for r in log.records if r.error == WRONG_OUTPUT]
    return records


def _warn_of_foreign(logs: Sequence[Log], job: Job, threads: int, out: Output) -> None:
    """Say once that times are of another machine or thread count, and once that they are none."""
    here = targets.cpu_name()
    foreign: list[str] = []
    unmeasured: dict[str, list[str]] = {}
    for log in logs:
        run = log.run
        if run is None:
            continue
        if run.timing != "measured":
            text = f"{log.path} holds {run.timing} times, not measured ones"
            unmeasured.setdefault(run.timing, []).append(text)
        # What is compiled for another machine is tuned on another machine.
        elif run.threads != threads or (run.cpu != here and job.preset.runs_here()):
            foreign.append(f"{log.path} was measured on {run.cpu} with --threads {run.threads}")
    if foreign:
        out.warn(
            f"{_first_of(foreign)}; this is {here} with --threads {threads}: other schedules may "
            "be faster here, tune first with python -m mobilenet_tvm.tune --from that log"
        )
    for timing, texts in unmeasured.items():
        ranks = (
            "rank schedules, and say" if timing == "estimated" else "say which schedules run, and"
        )
        out.warn(f"{_first_of(texts)}: they {ranks} nothing of their speed")


def _first_of(texts: Sequence[str]) -> str:
    return texts[0] + (f" (and {len(texts) - 1} more logs like it)" if len(texts) > 1 else "")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the verb."""
    return run_verb(
        "compile",
        "Compile a MobileNet with the best records of a tuning log into one .so and its "
        "manifest, and check it against ONNX Runtime.",
        add_arguments,
        run,
        argv,
    )


if __name__ == "__main__":
    sys.exit(main())
