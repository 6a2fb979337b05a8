"""``python -m mobilenet_tvm.compile``: from a model and its records to a checked artifact."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mobilenet_tvm.cli import artifact
from mobilenet_tvm.cli.frame import Output, run_verb
from mobilenet_tvm.errors import UsageError
from mobilenet_tvm.records import Record, choose_records, read_log


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's own arguments."""
    artifact.add_artifact_options(parser)
    parser.add_argument(
        "--logs",
        type=Path,
        nargs="+",
        metavar="PATH",
        help="tuning logs, or folders of them (default: the log of this model under -o)",
    )


def run(args: argparse.Namespace, out: Output) -> dict[str, Any]:
    """Compile, check, print the coverage and the verdict.

    Raises:
        UsageError: the model, the target or a log cannot be used.
        CheckFailedError: ``--require-tuned`` or parity failed.
    """
    with out.working("importing the model"):
        job = artifact.prepare(args)
    records = _records(args, job.log, out)
    best = choose_records(job.tasks, records)
    if records and not best:
        out.warn(
            f"none of the {len(records)} records is of this model's tasks on {job.preset.name}: "
            "compiling with untuned schedules"
        )
    return artifact.compile_and_check(job, best, args, out)[2]


def _records(args: argparse.Namespace, default: Path, out: Output) -> list[Record]:
    logs: Sequence[Path] | None = args.logs
    if logs is None:
        if not default.exists():
            if not args.require_tuned:  # that has its own words for it
                out.warn(
                    f"no log at {default}: compiling with untuned schedules; tune first with "
                    "python -m mobilenet_tvm.tune, or name a log with --logs"
                )
            return []
        logs = [default]
    found: list[Record] = []
    for path in logs:
        files = sorted(path.rglob("*.autotvm.jsonl")) if path.is_dir() else [path]
        if not files:
            raise UsageError(f"no *.autotvm.jsonl in {path}: name a tuning log")
        for file in files:
            found += read_log(file, out.warn)
    return found


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
