"""MobileNets on this x86 CPU against every other runtime: measure, write RESULTS.md.

    MOBILENET_TVM_PEERS=~/peers/bin/python .venv/bin/python benchmarks/peers.py [ARTIFACT.so ...]
        [--models v1-1.0-224,...] [--threads 1,2] [--rounds 20] [--tvm-logs DIR]
        [--title TEXT] [--no-write]

Without artifacts six models of the zoo are compiled first, for each number of threads as
``compile --threads`` does it. Each is one ``bench --against all --json``, as a user runs it; one
section of RESULTS.md holds all of them. Leave the machine alone meanwhile (about 3 minutes a
model): the quiet-machine figure in the result says whether it was.
"""

from __future__ import annotations

import argparse
import datetime
import json
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from results import write

MODELS = {
    "v1-1.0-224": ("mobilenet_v1", "--alpha", "1.0", "--resolution", "224"),
    "v1-0.5-160": ("mobilenet_v1", "--alpha", "0.5", "--resolution", "160"),
    "v1-0.25-128": ("mobilenet_v1", "--alpha", "0.25", "--resolution", "128"),
    "v2-1.0-224": ("mobilenet_v2", "--alpha", "1.0", "--resolution", "224"),
    "v3-large": ("mobilenet_v3_large",),
    "v3-small": ("mobilenet_v3_small",),
}
# Of what ``bench --json`` says, what is a list with entries of one number of threads.
_LISTS = (
    *("timings", "ratios", "best_f32_peers", "noise", "agreements", "absent", "peers", "f32_peers"),
    "warnings",
)
TITLE = "Against other runtimes on x86, fp32, batch 1"


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("artifacts", nargs="*", type=Path, help="(default: compile --models)")
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--against", default="all")
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--rounds", default="20")
    parser.add_argument("--tvm-logs", help="records of stock searches")
    parser.add_argument("--title", default=TITLE, help=f"of the section (default: {TITLE})")
    parser.add_argument("--no-write", action="store_true", help="print the section only")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        if args.artifacts:
            results = [(path.stem, measured(path, args.threads, args)) for path in args.artifacts]
        else:
            results = [of_model(name, args, Path(folder)) for name in args.models.split(",")]
    given = sys.argv[1:] if argv is None else argv
    text = section(results, shlex.join(["python", "benchmarks/peers.py", *given]))
    print(text)
    if not args.no_write:
        write(args.title, text)


def of_model(name: str, args: argparse.Namespace, folder: Path) -> tuple[str, dict[str, Any]]:
    """The name and the result of one of ``MODELS``, compiled for each number of threads."""
    parts = []
    for threads in args.threads.split(","):
        artifact = compiled(name, threads, folder)
        parts.append(measured(artifact, threads, args))
    return artifact.stem.partition(".x86")[0], joined(parts)


def compiled(name: str, threads: str, folder: Path) -> Path:
    """The artifact of one of ``MODELS``."""
    model, *options = MODELS[name]
    verb = ["mobilenet_tvm.compile", "--target", "x86", "--model", model, *options]
    verb += ["--threads", threads, "--json", "-o", str(folder / name / threads)]
    return Path(run(verb)["artifact"])


def measured(artifact: Path, threads: str, args: argparse.Namespace) -> dict[str, Any]:
    """What ``bench --json`` says."""
    verb = ["mobilenet_tvm.bench", str(artifact), "--against", args.against]
    verb += ["--threads", threads, "--rounds", args.rounds, "--json"]
    if args.tvm_logs is not None:
        verb += ["--tvm-logs", args.tvm_logs]
    return run(verb)


def joined(parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The results of one model at one number of threads each, as one of all of them."""
    together = dict(parts[0])
    for part in parts[1:]:
        for field in _LISTS:
            known = together[field]
            together[field] = known + [one for one in part[field] if one not in known]
    return together


def run(verb: Sequence[str]) -> dict[str, Any]:
    """The JSON object of a verb that ends well."""
    done = subprocess.run(
        [sys.executable, "-m", *verb], check=True, stdout=subprocess.PIPE, text=True
    )
    payload: dict[str, Any] = json.loads(done.stdout)
    return payload


def section(results: Sequence[tuple[str, dict[str, Any]]], command: str) -> str:
    """All models' results as Markdown: a table of the best f32 peers, then everybody."""
    first = results[0][1]
    lines = [
        f"`{command}`, {datetime.date.today()}. {first['machine']}; measured FMA peak "
        f"{first['peak_gflops']:.1f} GFLOP/s a core. {first['timings'][0]['rounds']} alternating "
        "rounds; ratios are medians over the rounds, with their 5th and 95th percentiles. What the "
        "rows are: docs/peers.md.",
        "",
        "| model | threads | ours, ms | of peak | best f32 peer | its ms | ours as fast as it |",
        "|---" * 7 + "|",
    ]
    for name, result in results:
        times = {(t["label"], t["threads"]): t for t in result["timings"]}
        for best in result["best_f32_peers"]:
            ours = times[best["of"], best["threads"]]
            peer = times[best["to"], best["threads"]]
            lines.append(
                f"| {name} | {best['threads']} | {milliseconds(ours)} | "
                f"{ours['peak_fraction']:.0%} | {best['to']} | {milliseconds(peer)} | "
                f"{ratio_text(best)} |"
            )
    lines += [
        "",
        "| model | threads | contender | median ms | p5-p95 ms | ours as fast as it |",
        "|---" * 6 + "|",
    ]
    for name, result in results:
        lines += rows(name, result)
    lines.append("")
    for name, result in results:
        lines += remarks(name, result)
    return "\n".join(lines)


def rows(name: str, result: dict[str, Any]) -> list[str]:
    """One row for each contender and number of threads."""
    ours = result["timings"][0]["label"]
    ratios = {(r["to"], r["threads"]): r for r in result["ratios"] if r["of"] == ours}
    found = []
    for timing in result["timings"]:
        ratio = ratios.get((timing["label"], timing["threads"]))
        found.append(
            f"| {name} | {timing['threads']} | {'ours' if ratio is None else timing['label']} | "
            f"{milliseconds(timing)} | {timing['p5_ms']:.3f}-{timing['p95_ms']:.3f} | "
            f"{'1' if ratio is None else ratio_text(ratio)} |"
        )
    return found


def remarks(name: str, result: dict[str, Any]) -> list[str]:
    """What makes the figures what they are: quiet, agreement, who is missing."""
    noise = ", ".join(f"{n['spread']:.2f} on {n['threads']} core(s)" for n in result["noise"])
    lines = [f"- {name}: quiet-machine check, p95/p5 of equal bursts: {noise} (quiet: <= 1.10)"]
    for limit in sorted({a["limit"] for a in result["agreements"]}):
        held = [a for a in result["agreements"] if a["limit"] == limit]
        worst = max(held, key=lambda a: a["max_error"])
        lines.append(
            f"- {name}: outputs differ from {worst['reference']}'s by at most "
            f"{worst['max_error']:.1e} of its max |output| ({worst['label']}; limit {limit:.0e})"
        )
    lines += [f"- {name}: {one['name']} is absent: {one['reason']}" for one in result["absent"]]
    return lines


def milliseconds(timing: dict[str, Any]) -> str:
    return f"{timing['median_ms']:.3f}"


def ratio_text(ratio: dict[str, Any]) -> str:
    return f"{ratio['median']:.2f}x ({ratio['p5']:.2f}-{ratio['p95']:.2f})"


if __name__ == "__main__":
    main()
