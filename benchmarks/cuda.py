"""MobileNets on this machine's NVIDIA GPU: tune, measure, fill tuning_logs/, write RESULTS.md.

    python benchmarks/cuda.py [--models NAME,...] [--time-budget 60m] [--work DIR] [--dry-run]

For each model, ``tune --target cuda --tuner all`` as a user runs it, which ends in a comparison
with our untuned schedules, TVM's, and every runtime that is installed (ONNX Runtime, TensorRT,
PyTorch: `docs/cuda.md`); then the best record of each layer goes to ``tuning_logs/<preset>/`` and a
section to ``benchmarks/RESULTS.md``. It may be stopped and started again: what was searched, and
each model that was finished, is kept in ``--work``. Leave the GPU alone meanwhile.
``--dry-run`` prints the commands, and needs no GPU.
"""

from __future__ import annotations

import argparse
import datetime
import json
import shlex
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from results import RESULTS, write

from mobilenet_tvm import bench, targets
from mobilenet_tvm.bench.gpu_results import CONDITIONS, difference
from mobilenet_tvm.bench.results import Agreement
from mobilenet_tvm.cuda.gpu import causes
from mobilenet_tvm.errors import MobilenetTvmError

REPO = Path(__file__).resolve().parents[1]

# What is tuned by default, most wanted first: options of the zoo's models.
MODELS = {
    "mobilenet_v1_1.0_224": ("--model", "mobilenet_v1"),
    "mobilenet_v2_1.0_224": ("--model", "mobilenet_v2"),
    "mobilenet_v3_small_1.0_224": ("--model", "mobilenet_v3_small"),
    "mobilenet_v3_large_1.0_224": ("--model", "mobilenet_v3_large"),
    "mobilenet_v1_0.25_128": ("--model", "mobilenet_v1", "--alpha", "0.25", "--resolution", "128"),
}
Run = Callable[[Sequence[str]], str]


def main(argv: Sequence[str] | None = None, run: Run | None = None) -> None:
    """The command; ``run`` runs another one and returns its stdout."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", default=",".join(MODELS), help="default: %(default)s")
    parser.add_argument("--time-budget", default="60m", help="of each model's search")
    parser.add_argument("--rounds", default="40", help="of the comparison")
    parser.add_argument("--work", type=Path, default=Path("out/cuda"), help="default: %(default)s")
    parser.add_argument("--logs", type=Path, default=REPO / "tuning_logs", help=argparse.SUPPRESS)
    parser.add_argument("--results", type=Path, default=RESULTS, help=argparse.SUPPRESS)
    parser.add_argument("--dry-run", action="store_true", help="print the commands")
    args = parser.parse_args(argv)
    names = args.models.split(",")
    for name in names:
        if name not in MODELS:
            parser.error(f"--models {name}: the known ones are {', '.join(MODELS)}")
    if not args.dry_run:
        try:
            bench.require_gpu()
        except MobilenetTvmError as error:
            raise SystemExit(str(error)) from None
    preset = targets.resolve("cuda").name
    for name in names:
        tune = tune_command(name, args)
        if args.dry_run:
            folder = args.work / "tuning_logs" / preset
            print(shlex.join(tune))
            for searcher in ("autotvm", "ansor"):
                log = folder / f"{name}.{searcher}.jsonl"
                print(shlex.join(best_command(log, args.logs / preset)))
            continue
        one_model(name, tune, preset, args, run or captured)


def tune_command(name: str, args: argparse.Namespace) -> list[str]:
    verb = ["mobilenet_tvm.tune", *MODELS[name], "--target", "cuda", "--tuner", "all"]
    limits = ["--time-budget", args.time_budget, "--rounds", args.rounds]
    return [sys.executable, "-m", *verb, *limits, "--json", "-o", str(args.work)]


def best_command(log: Path, folder: Path) -> list[str]:
    verb = ["mobilenet_tvm.logs", "best", str(log), "-o", str(folder / log.name)]
    return [sys.executable, "-m", *verb]


def captured(command: Sequence[str]) -> str:
    print("$", shlex.join(command), flush=True)
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def one_model(
    name: str, tune: Sequence[str], preset: str, args: argparse.Namespace, run: Run
) -> None:
    """Tune a model unless that is done, keep the best of its logs, write its section."""
    done = args.work / f"{name}.{preset}.json"
    if done.exists():
        print(f"{name}: finished before ({done}; remove it to go on searching)")
        payload = json.loads(done.read_text())
    else:
        payload = json.loads(run(tune))
        if payload["timing"] != "measured" or payload["bench"] is None:
            raise SystemExit(f"{name}: its times are {payload['timing']}, which are no results")
        temporary = done.with_suffix(".tmp")
        temporary.write_text(json.dumps(payload))
        temporary.replace(done)
    logs = [Path(log) for log in payload["logs"]]
    for log in logs:
        (args.logs / preset).mkdir(parents=True, exist_ok=True)
        run(best_command(log, args.logs / preset))
    info = json.loads(logs[0].with_name(logs[0].name.replace(".jsonl", ".run.json")).read_text())
    gpu = payload["bench"]["gpu"]["name"]
    write(f"{name} on {gpu}, fp32, batch 1", section(payload, info, tune), args.results)


def section(payload: dict[str, Any], run: dict[str, Any], command: Sequence[str]) -> str:
    """One model's results as Markdown."""
    result, search = payload["bench"], payload["search"]
    gpu, state = result["gpu"], result["state"]
    shown = shlex.join(["python", *command[1:]])
    baseline = result["timings"][-1]["label"]
    ratios = {(r["of"], r["to"]): r for r in result["ratios"]}
    lines = [
        f"`{shown}`, {datetime.date.today()}. {result['machine']}; CUDA {gpu['cuda_version']} by "
        f"its driver; TVM {run['tvm']}, LLVM {run['llvm']}; preset {payload['preset']}. "
        f"{search['trials']} trials in {search['spent_s']:.0f} s, {payload['tuned']} of "
        f"{payload['tasks']} tasks tuned, {result['timings'][0]['rounds']} alternating rounds.",
        "",
        f"| contender | median ms | p5-p95 ms | end to end ms | GFLOP/s | speed, {baseline} = 1 |",
        "|---" * 6 + "|",
    ]
    for t in result["timings"]:
        r = ratios.get((t["label"], baseline))
        speed = f"{r['median']:.3f} ({r['p5']:.3f}-{r['p95']:.3f})" if r else "1"
        gflops = "-" if t["gflops"] is None else f"{t['gflops']:.0f}"
        lines.append(
            f"| {t['label']} | {t['median_ms']:.3f} | {t['p5_ms']:.3f}-{t['p95_ms']:.3f} | "
            f"{t['end_to_end_ms']:.3f} | {gflops} | {speed} |"
        )
    lines += ["", f"- {CONDITIONS}", f"- {clocks(state)}"]
    if result["agreements"]:
        lines.append(f"- {difference([Agreement(**one) for one in result['agreements']])}")
    lines += [
        f"- {one['name']}: absent, {one['reason']} (`{one['command']}`)" for one in result["absent"]
    ]
    return "\n".join([*lines, *(f"- {text}" for text in (*result["warnings"], *result["hints"]))])


def clocks(state: dict[str, Any] | None) -> str:
    if state is None:
        return "clocks: not told by the driver"
    why = ", ".join(causes(state["reasons"]))
    held = f"held back ({why})" if state["throttled"] else "not throttled"
    return (
        f"SM clock {state['min_sm_clock_mhz']}-{state['max_sm_clock_mhz']} MHz, memory clock "
        f"{state['min_memory_clock_mhz']}-{state['max_memory_clock_mhz']} MHz, at most "
        f"{state['max_temperature_c']} °C and {state['max_power_w']} W, {held}"
    )


if __name__ == "__main__":
    main()
