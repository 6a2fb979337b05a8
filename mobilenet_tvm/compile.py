"""``python -m mobilenet_tvm.compile``: from a model and its records to a checked artifact."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from typing import Any

from mobilenet_tvm.cli import artifact
from mobilenet_tvm.cli.artifact import with_stock_tasks
from mobilenet_tvm.cli.device_options import EMULATED, LOCAL
from mobilenet_tvm.cli.frame import Output, run_verb
from mobilenet_tvm.cli.served import add_logs_options, find_logs, serve_job
from mobilenet_tvm.records.ansor_tasks import extract_ansor_tasks


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
    add_logs_options(parser)


def run(args: argparse.Namespace, out: Output) -> dict[str, Any]:
    """Compile, check, print the coverage and the verdict.

    Raises:
        UsageError: the model, the target or a log cannot be used.
        CheckFailedError: ``--require-tuned`` or parity failed.
    """
    with out.working("importing the model"):
        job = artifact.prepare(args)
    logs = find_logs(args, job, out)
    if job.schedules == "best" and any(one.searcher == "ansor" for one in logs.records):
        with out.working("finding Ansor's tasks"):
            tasks = extract_ansor_tasks(job.relay.module, job.preset, threads=args.threads)
        job = dataclasses.replace(job, ansor_tasks=tasks)
    job = with_stock_tasks(job, logs.records)
    served = serve_job(logs, args, job, out)
    job = dataclasses.replace(job, transferred=served.transferred)
    return artifact.compile_and_check(job, served.best, args, out)[2]


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
