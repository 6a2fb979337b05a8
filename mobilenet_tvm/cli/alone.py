"""A model built just to be checked: ``check --onnx FILE`` with no artifact."""

from __future__ import annotations

import argparse
import math
from pathlib import Path

from mobilenet_tvm import frontend, targets
from mobilenet_tvm.build import compile_model, make_plans
from mobilenet_tvm.build.manifest import ModelInfo
from mobilenet_tvm.build.plans import by_estimate, transform_bytes_per_s
from mobilenet_tvm.cli.device_options import prepare_emulated
from mobilenet_tvm.cli.frame import Output
from mobilenet_tvm.cli.logs_given import read_logs
from mobilenet_tvm.cli.options import file_name, parse_shape, positive
from mobilenet_tvm.errors import UsageError
from mobilenet_tvm.records import choose_records, extract_tasks
from mobilenet_tvm.records.ansor_tasks import extract_ansor_tasks


def add_build_options(group: argparse._ArgumentGroup) -> None:
    """Add what a build needs beside the model's file; None where it was not given."""
    group.add_argument(
        "--target", metavar="PRESET", help="what to compile for (default: x86, this machine)"
    )
    group.add_argument(
        "--logs", type=Path, nargs="+", metavar="PATH", help="tuning logs, or folders of them"
    )
    group.add_argument(
        "--shape", type=parse_shape, metavar="N,C,H,W", help="of an input that is left open"
    )
    group.add_argument("--batch", type=positive, metavar="N", help="images a run (default: 1)")


def given_build_options(args: argparse.Namespace) -> list[str]:
    """The build options that were given, as they are written."""
    names = ("target", "logs", "shape", "batch")
    return [f"--{name}" for name in names if getattr(args, name) is not None]


def build_alone(args: argparse.Namespace, folder: Path, out: Output) -> Path:
    """Compile the model ``--onnx`` into ``folder``, with the records of ``--logs``.

    A log decides whose schedules it is: with records of Ansor alone, its layers are Ansor's.

    Returns:
        The artifact.

    Raises:
        UsageError: the model, the target or a log cannot be used, or no record is of the model.
        DeviceError: it cannot be compiled.
    """
    preset = targets.resolve(args.target or "x86")
    prepare_emulated(args, preset)
    with out.working(f"compiling {args.onnx} for {preset.name}"):
        clean = frontend.clean(frontend.read(args.onnx), shape=args.shape, batch=args.batch)
        relay = frontend.to_relay(clean)
        records = [record for log in read_logs(args.logs or (), out.warn) for record in log.records]
        tasks = extract_tasks(relay.module, preset)
        if any(record.searcher == "ansor" for record in records):
            tasks = (*tasks, *extract_ansor_tasks(relay.module, preset))
        best = choose_records(tasks, records)
        if records and not best:
            raise UsageError(
                f"none of the {len(records)} records is of a task of {args.onnx} on "
                f"{preset.name}: name its own log, or its own --target"
            )
        bytes_per_s = transform_bytes_per_s(preset.gpu)
        made = make_plans(relay.module, tasks, best, bytes_per_s=bytes_per_s)
        plans = [plan for plan in made if plan.dropped is None]
        plan = min(plans, key=by_estimate, default=None)
        path = folder / f"{file_name(args.onnx.stem)}.{preset.name}.so"
        compile_model(
            relay,
            preset,
            path,
            info=ModelInfo(
                file_name(args.onnx.stem),
                clean.original.digest,
                path=str(args.onnx.resolve()),
                batch=args.batch,
                shape=args.shape,
            ),
            tasks=tasks,
            best=best,
            preprocessing=frontend.guess_preprocessing(relay.inputs),
            plan=plan,
        )
    tuned = "untuned"
    if plan is not None and best and math.isfinite(plan.estimate_s):
        tuned = f"plan {plan.name}, {len(best)} records"
    out.line(f"built     {args.onnx} for {preset.name}: {tuned}")
    return path
