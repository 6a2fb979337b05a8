"""MobileNet V1 1.0-224 on this x86 CPU: tune from nothing, measure, write RESULTS.md.

    .venv/bin/python benchmarks/v1_x86.py [--onnx FILE] [--time-budget 25m] [--rounds 40]

Uses the package as a user does: one ``tune --tuner autotvm --json`` in a fresh folder (both
searchers: ``tuners.py``). Leave the machine alone meanwhile; the quiet-machine figure in the
result says whether it was.
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--onnx", type=Path, help="a model of your own (default: the zoo's V1)")
    parser.add_argument("--time-budget", default="25m")
    parser.add_argument("--trials", default="1000")
    parser.add_argument("--rounds", default="40")
    args = parser.parse_args()
    verb = ["mobilenet_tvm.tune", "--target", "x86", "--tuner", "autotvm"]
    verb += ["--time-budget", args.time_budget]
    verb += ["--trials", args.trials, "--rounds", args.rounds, "--json", "--no-transfer"]
    if args.onnx is not None:
        verb += ["--onnx", str(args.onnx)]
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [sys.executable, "-m", *verb, "-o", folder],
            check=True,
            stdout=subprocess.PIPE,
            text=True,
        )
        payload = json.loads(done.stdout)
        log = Path(payload["logs"][0])
        run = json.loads(log.with_name(log.name.replace(".jsonl", ".run.json")).read_text())
    command = "python benchmarks/v1_x86.py " + " ".join(sys.argv[1:]).replace(
        str(args.onnx), args.onnx.name if args.onnx else ""
    )
    write(f"{run['model']}, fp32, batch 1", section(payload, run, command.strip()))


def section(payload: dict[str, Any], run: dict[str, Any], command: str) -> str:
    """One model's results as Markdown."""
    bench, search = payload["bench"], payload["search"]
    baseline = bench["timings"][-1]["label"]
    ratios = {(r["of"], r["threads"]): r for r in bench["ratios"] if r["to"] == baseline}
    lines = [
        f"`{command}`, {datetime.date.today()}. {bench['machine']}; TVM {run['tvm']}, "
        f"LLVM {run['llvm']}; measured FMA peak {bench['peak_gflops']:.1f} GFLOP/s a core. "
        f"{search['trials']} trials in {search['spent_s']:.0f} s, {payload['tuned']} of "
        f"{payload['tasks']} tasks tuned, {bench['timings'][0]['rounds']} alternating rounds.",
        "",
        f"| threads | contender | median ms | p5-p95 ms | GFLOP/s | of peak | "
        f"speed, {baseline} = 1 |",
        "|---" * 7 + "|",
    ]
    for t in bench["timings"]:
        ratio = ratios.get((t["label"], t["threads"]))
        speed = f"{ratio['median']:.3f} ({ratio['p5']:.3f}-{ratio['p95']:.3f})" if ratio else "1"
        lines.append(
            f"| {t['threads']} | {t['label']} | {t['median_ms']:.2f} | {t['p5_ms']:.2f}-"
            f"{t['p95_ms']:.2f} | {t['gflops']:.1f} | {t['peak_fraction']:.0%} | {speed} |"
        )
    tuned = [r for r in bench["ratios"] if r["of"] == "tuned" and r["to"] != baseline]
    lines += [
        "",
        *(
            f"- tuned / {r['to']} at {r['threads']} threads: {r['median']:.3f} "
            f"({r['p5']:.3f}-{r['p95']:.3f})"
            for r in tuned
        ),
    ]
    noise = ", ".join(f"{n['spread']:.2f} on {n['threads']} core(s)" for n in bench["noise"])
    worst = max(a["max_error"] for a in bench["agreements"])
    lines += [
        f"- quiet-machine check, p95/p5 of equal bursts of work: {noise} (quiet: at most 1.10)",
        f"- outputs differ from {baseline}'s by {worst:.1e} of its max |output|",
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
