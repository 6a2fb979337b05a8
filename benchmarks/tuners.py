"""AutoTVM alone, Ansor alone and both in one run, the same time each: which model is fastest?

    .venv/bin/python benchmarks/tuners.py [--onnx FILE] [--time-budget 30m] [--seeds 0,1,2]

For each seed, ``tune --tuner autotvm``, ``ansor`` and ``all`` run as a user runs them, each in a
fresh folder. What ``all`` had found after its first minutes is compiled too. Then all artifacts
and ONNX Runtime take turns in one comparison at one thread. Takes three times the budget for
each seed; ``--at-once 2`` runs two searches at a time, each bound to a core of its own. Leave
the machine alone meanwhile.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import datetime
import json
import os
import queue
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from results import write

from mobilenet_tvm import bench
from mobilenet_tvm.build.manifest import read_manifest
from mobilenet_tvm.records import parse_line, run_path
from mobilenet_tvm.records.lines import ended_at_s, trial_seconds
from mobilenet_tvm.records.workloads import workloads_path

TUNERS = ("autotvm", "ansor", "all")
# The first minutes that are to reach most of the final speed.
EARLY_S = 300


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--onnx", type=Path, help="a model of your own (default: the zoo's V1)")
    parser.add_argument("--time-budget", default="30m")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--at-once", type=int, default=1, help="searches that run at a time")
    parser.add_argument("--rounds", type=int, default=24)
    parser.add_argument(
        "--keep", type=Path, help="folder of the artifacts and logs (default: none)"
    )
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.keep or Path(temporary)
        if any(folder.glob("*-*")):
            parser.error(f"{folder} holds earlier runs: name a new folder")
        runs = search(args, folder)
        artifacts = {key: Path(run["artifact"]) for key, run in runs.items()}
        manifest = read_manifest(next(iter(artifacts.values())))
        onnx, mult_adds = bench.reference_model(manifest, None, folder)
        contenders = [
            bench.Contender(f"{tuner}, seed {seed}", "artifact", str(path))
            for (seed, tuner), path in artifacts.items()
        ]
        contenders += [
            bench.Contender(early_label(seed), "artifact", str(early(args, folder, seed, run)))
            for (seed, tuner), run in runs.items()
            if tuner == "all"
        ]
        contenders.append(bench.Contender("ONNX Runtime", "onnxruntime", str(onnx)))
        result = bench.compare(contenders, threads=(1,), rounds=args.rounds, mult_adds=mult_adds)
    command = "python benchmarks/tuners.py" + (f" --onnx {args.onnx.name}" if args.onnx else "")
    command += f" --time-budget {args.time_budget} --seeds {args.seeds} --at-once {args.at_once}"
    title = f"{manifest.model.name}, one searcher or both, fp32, batch 1, one thread"
    write(title, section(runs, result, command))


def search(args: argparse.Namespace, folder: Path) -> dict[tuple[int, str], dict[str, Any]]:
    """What every run of ``tune --json`` said, by seed and tuner."""
    cores: queue.Queue[int] = queue.Queue()
    for core in sorted(os.sched_getaffinity(0))[: args.at_once]:
        cores.put(core)

    def one(seed: int, tuner: str) -> dict[str, Any]:
        core = cores.get()
        verb = [sys.executable, "-m", "mobilenet_tvm.tune", "--target", "x86", "--tuner", tuner]
        verb += ["--seed", str(seed), "--time-budget", args.time_budget]
        verb += ["--no-bench", "--json", "--no-transfer"]
        verb += [*model_options(args), "-o", str(folder / f"{seed}-{tuner}")]
        if args.at_once > 1:
            verb = ["taskset", "-c", str(core), *verb]
        try:
            done = subprocess.run(verb, check=True, stdout=subprocess.PIPE, text=True)
        finally:
            cores.put(core)
        payload: dict[str, Any] = json.loads(done.stdout)
        return payload

    keys = [(int(seed), tuner) for seed in args.seeds.split(",") for tuner in TUNERS]
    with concurrent.futures.ThreadPoolExecutor(args.at_once) as pool:
        return dict(zip(keys, pool.map(lambda key: one(*key), keys), strict=True))


def early_label(seed: int) -> str:
    return f"all, seed {seed}, first {EARLY_S // 60} minutes"


def early(args: argparse.Namespace, folder: Path, seed: int, run: dict[str, Any]) -> Path:
    """The model as ``compile`` makes it of what was found in the first minutes of a run."""
    place = folder / f"{seed}-early"
    logs = [Path(log) for log in run["logs"]]
    lines = {log: log.read_text().splitlines() for log in logs}
    records = [parse_line(line) for text in lines.values() for line in text]
    begun_s = min(ended_at_s(record) - trial_seconds(record) for record in records)
    for log, text in lines.items():
        kept = place / "logs" / log.name
        kept.parent.mkdir(parents=True, exist_ok=True)
        soon = [line for line in text if ended_at_s(parse_line(line)) <= begun_s + EARLY_S]
        kept.write_text("".join(line + "\n" for line in soon))
        shutil.copy(run_path(log), run_path(kept))
        if workloads_path(log).exists():
            shutil.copy(workloads_path(log), workloads_path(kept))
    verb = [sys.executable, "-m", "mobilenet_tvm.compile", "--target", "x86", "--json"]
    verb += [*model_options(args), "--logs", str(place / "logs"), "-o", str(place)]
    done = subprocess.run(verb, check=True, stdout=subprocess.PIPE, text=True)
    return Path(json.loads(done.stdout)["artifact"])


def model_options(args: argparse.Namespace) -> list[str]:
    return ["--onnx", str(args.onnx)] if args.onnx else []


def section(
    runs: dict[tuple[int, str], dict[str, Any]], result: bench.BenchResult, command: str
) -> str:
    """The comparison as Markdown."""
    timings = {timing.label: timing for timing in result.timings}
    lines = [
        f"`{command}`, {datetime.date.today()}. {result.machine}; {timings['ONNX Runtime'].rounds} "
        "alternating rounds of all of them in one comparison. A choice is made while whatever else "
        "`--at-once` allows goes on: its times compare with each other alone.",
        "",
        "| seed | tuner | median ms | p5-p95 ms | trials | search s | 90 % of it after s (sum of "
        "the layers' best) | candidate chosen | all layers by Ansor, ms (in that choice) |",
        "|---" * 9 + "|",
    ]
    for (seed, tuner), run in runs.items():
        timing = timings[f"{tuner}, seed {seed}"]
        chosen = next(c for c in run["decision"] if c["chosen"])
        found = run["search"]
        lines.append(
            f"| {seed} | {tuner} | {timing.median_ms:.2f} | {timing.p5_ms:.2f}-"
            f"{timing.p95_ms:.2f} | {found['trials']} | {found['spent_s']:.0f} | "
            f"{reached_s(found['trace'], 0.9):.0f} | {chosen['name']}: {chosen['why']} | "
            f"{all_by_ansor(run['decision'])} |"
        )
    for label in (early_label(seed) for seed, tuner in runs if tuner == "all"):
        timing = timings[label]
        lines.append(
            f"| | {label} | {timing.median_ms:.2f} | {timing.p5_ms:.2f}-{timing.p95_ms:.2f} "
            "| | | | | |"
        )
    other = timings["ONNX Runtime"]
    lines.append(
        f"| | ONNX Runtime | {other.median_ms:.2f} | {other.p5_ms:.2f}-{other.p95_ms:.2f} "
        "| | | | | |"
    )
    lines.append("")
    seeds = sorted({seed for seed, _ in runs})
    for seed in seeds:
        ms = {tuner: timings[f"{tuner}, seed {seed}"].median_ms for tuner in TUNERS}
        better = min(ms["autotvm"], ms["ansor"])
        lines.append(
            f"- seed {seed}: both / the better one alone: {better / ms['all']:.3f} of its speed; "
            f"Ansor alone / AutoTVM alone: {ms['autotvm'] / ms['ansor']:.3f}; the first "
            f"{EARLY_S // 60} minutes / the whole of both: "
            f"{ms['all'] / timings[early_label(seed)].median_ms:.3f}"
        )
    lines.append(
        f"- median over the seeds: both {median_ms(timings, 'all', seeds):.2f} ms, AutoTVM "
        f"{median_ms(timings, 'autotvm', seeds):.2f} ms, Ansor "
        f"{median_ms(timings, 'ansor', seeds):.2f} ms"
    )
    noise = ", ".join(f"{n.spread:.2f}" for n in result.noise)
    lines.append(f"- quiet-machine check, p95/p5 of equal bursts: {noise} (quiet: at most 1.10)")
    return "\n".join(lines)


def all_by_ansor(decision: Sequence[dict[str, Any]]) -> str:
    """Milliseconds of the candidate with all layers by Ansor; what is not chosen has a time too."""
    for candidate in decision:
        if candidate["name"] == "ansor":
            ms = candidate["median_ms"]
            return candidate["why"] if ms is None else f"{ms:.2f}"
    return "no such candidate"


def median_ms(timings: dict[str, bench.Timing], tuner: str, seeds: Sequence[int]) -> float:
    return median(timings[f"{tuner}, seed {seed}"].median_ms for seed in seeds)


def reached_s(trace: Sequence[tuple[float, float]], share: float) -> float:
    """Seconds of search until the estimate of the model had ``share`` of its final speed."""
    if not trace:
        return float("nan")
    return next(seconds for seconds, cost_s in trace if cost_s <= trace[-1][1] / share)


if __name__ == "__main__":
    main()
