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

from mobilenet_tvm import bench, targets
from mobilenet_tvm.bench.board import compare_on_board
from mobilenet_tvm.build import compile_model
from mobilenet_tvm.build.manifest import LatencyInfo, Manifest, read_manifest, write_manifest
from mobilenet_tvm.cli import artifact
from mobilenet_tvm.cli.artifact import Job
from mobilenet_tvm.cli.boards import (
    Device,
    add_device_options,
    check_device_options,
    measuring_device,
)
from mobilenet_tvm.cli.finals import add_finals_options, play_finals
from mobilenet_tvm.cli.frame import Output, VerbFailedError, run_verb
from mobilenet_tvm.cli.options import positive
from mobilenet_tvm.cli.search import add_search_options, search, searchers
from mobilenet_tvm.records import CLEARLY, CLEARLY_ESTIMATED, choose_records
from mobilenet_tvm.records.ansor_tasks import extract_ansor_tasks
from mobilenet_tvm.records.serving import current


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's own arguments."""
    artifact.add_artifact_options(parser)
    add_search_options(parser)
    add_finals_options(parser)
    add_device_options(parser)
    measuring = parser.add_argument_group("measurement at the end")
    measuring.add_argument("--no-bench", action="store_true", help="skip it")
    measuring.add_argument(
        "--rounds",
        type=positive,
        default=bench.DEFAULT_ROUNDS,
        metavar="N",
        help=f"alternating rounds (default: {bench.DEFAULT_ROUNDS})",
    )


def run(args: argparse.Namespace, out: Output) -> dict[str, Any]:
    """Import, search, compile, check, measure.

    Raises:
        UsageError: the model, the target or the log cannot be used.
        CheckFailedError: ``--require-tuned`` or parity failed.
        DeviceError: nothing could be measured, or the log cannot be written.
    """
    check_device_options(args, targets.resolve(args.target))
    names = searchers(args)
    with out.working("importing the model"):
        job = artifact.prepare(args)
    if args.schedules == "best" and ("ansor" in names or job.log_of("ansor").exists()):
        with out.working("finding Ansor's tasks"):
            tasks = extract_ansor_tasks(job.relay.module, job.preset, threads=args.threads)
        job = dataclasses.replace(job, ansor_tasks=tasks)
    with measuring_device(args, job, out) as device:
        job = dataclasses.replace(job, device=device)
        records, summary = search(job, device, args, out)
        records = play_finals(job, records, args, out)
        job = artifact.with_stock_tasks(job, records)
        logs = [str(job.log_of(name)) for name in names]
        searched = {
            "logs": logs,
            "search": dataclasses.asdict(summary),
            "timing": device.timing,
            "cpu": device.cpu,
        }
        clearly = CLEARLY_ESTIMATED if device.timing == "estimated" else CLEARLY
        tasks = (*job.all_tasks, *job.stock_tasks)
        usable = current(tasks, records)
        best = choose_records(tasks, usable, clearly=clearly, launch_s=device.launch_s)
        try:
            manifest, _, payload = artifact.compile_and_check(job, best, args, out)
        except VerbFailedError as error:
            error.payload |= searched
            raise
        payload |= searched
        if not args.no_bench:
            payload["bench"] = _measure(job, device, manifest, args, out)
    return payload


def _measure(
    job: Job, device: Device, manifest: Manifest, args: argparse.Namespace, out: Output
) -> Any:
    """Tuned against untuned and, on this machine, ONNX Runtime, in one run; the latencies go to
    the manifest."""
    if device.timing != "measured":
        out.line(f"bench     none: {device.timing} times are no latencies")
        return None
    threads = {1, args.threads} | ({targets.physical_cores()} if device.rpc is None else set())
    with tempfile.TemporaryDirectory(prefix="mobilenet_tvm-") as name:
        folder = Path(name)
        with out.working("compiling the untuned modules to compare with"):
            for schedules in ("ours", "stock"):
                compile_model(
                    job.relay,
                    job.preset,
                    folder / f"{schedules}{job.artifact.suffix}",
                    info=job.info,
                    schedules=schedules,
                    linker=job.linker,
                )
        onnx, mult_adds = bench.reference_model(manifest, None, folder)
        artifacts = [
            ("tuned", job.artifact),
            ("untuned (TVM's schedules)", folder / f"stock{job.artifact.suffix}"),
            ("untuned (our schedules)", folder / f"ours{job.artifact.suffix}"),
        ]
        result: bench.BenchResult | bench.GpuBenchResult
        if device.rpc is not None:
            with out.working("measuring on a board: tuned and untuned take turns"):
                result = compare_on_board(
                    device.rpc,
                    artifacts,
                    cpu=device.cpu,
                    threads=sorted(threads),
                    rounds=args.rounds,
                    mult_adds=mult_adds,
                )
        elif job.preset.gpu is not None:
            with out.working("measuring on the GPU: tuned, untuned and other runtimes take turns"):
                result = bench.compare_on_gpu(
                    artifacts, onnx=onnx, rounds=args.rounds, mult_adds=mult_adds
                )
        else:
            contenders = [
                bench.Contender(label, "artifact", str(path)) for label, path in artifacts
            ]
            contenders.append(bench.Contender("ONNX Runtime", "onnxruntime", str(onnx)))
            with out.working("measuring: tuned, untuned and ONNX Runtime take turns"):
                result = bench.compare(
                    contenders, threads=sorted(threads), rounds=args.rounds, mult_adds=mult_adds
                )
    if isinstance(result, bench.GpuBenchResult):
        out.console.print(bench.gpu_table(result))
    else:
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
