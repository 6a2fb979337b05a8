"""A model that was never tuned, served by the shipped logs, against a tuning run of its own.

    .venv/bin/python benchmarks/transfer.py [--models 0.75-192,1.0-160] [--time-budget 20m]
                                            [--threads 1] [--rounds 40]

For each MobileNet V1 (``alpha-resolution``) ``compile`` runs as a user runs it who never tunes,
with no log but the package's; then ``tune`` runs for the time budget. The two artifacts and the
untuned defaults take turns in one comparison. Leave the machine alone meanwhile; the quiet-machine
figure in the result says whether it was.
"""

from __future__ import annotations

import argparse
import datetime
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from results import write

from mobilenet_tvm import bench

# A served artifact may take so many times as long as the one of a tuning run.
BAR = 1.15
SERVED, TUNED, UNTUNED = "served", "tuned", "untuned"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", default="0.75-192,1.0-160", help="V1s, alpha-resolution")
    parser.add_argument("--time-budget", default="20m")
    parser.add_argument("--tuner", default="autotvm")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=40)
    args = parser.parse_args()
    rows = []
    for model in args.models.split(","):
        with tempfile.TemporaryDirectory() as folder:
            rows.append(measure(model, args, Path(folder)))
    threads = f"{args.threads} thread{'' if args.threads == 1 else 's'}"
    command = f"python benchmarks/transfer.py --models {args.models}"
    command += f" --time-budget {args.time_budget} --tuner {args.tuner}"
    command += f" --threads {args.threads} --rounds {args.rounds}"
    write(f"served by the shipped logs, fp32, batch 1, {threads}", section(rows, args, command))


def measure(model: str, args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """One model's payloads of ``compile`` and ``tune``, and the comparison."""
    alpha, _, resolution = model.partition("-")
    which = ["--alpha", alpha, "--resolution", resolution, "--threads", str(args.threads)]
    search = ["--time-budget", args.time_budget, "--tuner", args.tuner, "--no-bench"]
    payloads = {
        SERVED: verb("compile", *which, "-o", str(folder / SERVED)),
        UNTUNED: verb("compile", *which, "--logs", "none", "-o", str(folder / UNTUNED)),
        TUNED: verb("tune", *which, *search, "-o", str(folder / TUNED)),
    }
    contenders = [
        bench.Contender(label, "artifact", payload["artifact"])
        for label, payload in payloads.items()
    ]
    result = bench.compare(contenders, threads=(args.threads,), rounds=args.rounds)
    return {"model": model, "payloads": payloads, "bench": result.as_dict()}


def verb(name: str, *options: str) -> dict[str, Any]:
    """What a verb says with ``--json``."""
    done = subprocess.run(
        [sys.executable, "-m", f"mobilenet_tvm.{name}", "--target", "x86", *options, "--json"],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    payload: dict[str, Any] = json.loads(done.stdout)
    return payload


def ratio(row: dict[str, Any], slow: str, fast: str) -> tuple[float, float, float]:
    """How many times as long ``slow`` takes as ``fast``, from paired rounds: median, p5, p95."""
    for one in row["bench"]["ratios"]:
        if (one["of"], one["to"]) == (fast, slow):
            return one["median"], one["p5"], one["p95"]
        if (one["of"], one["to"]) == (slow, fast):
            return 1 / one["median"], 1 / one["p95"], 1 / one["p5"]
    raise KeyError((slow, fast))


def section(rows: list[dict[str, Any]], args: argparse.Namespace, command: str) -> str:
    """The models' results as Markdown."""
    first = rows[0]["bench"]
    lines = [
        f"`{command}`, {datetime.date.today()}. {first['machine']}. `served` is `compile` with no "
        f"log but the package's, `tuned` is `tune --tuner {args.tuner}` for {args.time_budget}, "
        f"both as their own decision left them; {args.rounds} alternating rounds. The bar is "
        f"{BAR:.2f} times the tuned time.",
        "",
        "| V1 | served ms | tuned ms | untuned ms | served / tuned | untuned / tuned | "
        "own records, lent, tasks | kept build | bar |",
        "|---" * 9 + "|",
    ]
    for row in rows:
        ms = {timing["label"]: timing["median_ms"] for timing in row["bench"]["timings"]}
        served, untuned = (ratio(row, name, TUNED) for name in (SERVED, UNTUNED))
        payload = row["payloads"][SERVED]
        kept = [one["name"] for one in payload["decision"] if one["chosen"]]
        counts = f"{payload['tuned']}, {payload['transferred']}, {payload['tasks']}"
        lines.append(
            f"| {row['model']} | {ms[SERVED]:.3f} | {ms[TUNED]:.3f} | {ms[UNTUNED]:.3f} | "
            f"{shown(served)} | {shown(untuned)} | {counts} | {', '.join(kept)} | "
            f"{'met' if served[0] <= BAR else 'missed'} |"
        )
    noise = ", ".join(
        f"{one['spread']:.2f} ({row['model']})" for row in rows for one in row["bench"]["noise"]
    )
    lines += ["", f"- quiet-machine check, p95/p5 of equal bursts of work: {noise} (quiet: 1.10)"]
    return "\n".join(lines)


def shown(value: tuple[float, float, float]) -> str:
    return f"{value[0]:.3f} ({value[1]:.3f}-{value[2]:.3f})"


if __name__ == "__main__":
    main()
