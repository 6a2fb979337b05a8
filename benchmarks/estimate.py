"""Estimates against the truth, where it can be had: this x86 machine, MobileNet V1's layers.

    .venv/bin/python benchmarks/estimate.py [--configs 30] [--rounds 40] [--seed 0] [--json]

For each of fourteen layers, `--configs` configurations drawn from our templates' space (all of
them where there are fewer) are compiled for the preset x86-avx2, timed here as tuning does, and
estimated by `devices/estimate`, which knows nothing of the times. All configurations of a layer
take turns in every round, in another order each time, so that what else this machine does hits
all of them alike; the figure of one is the lower quartile over the rounds. Takes about six
minutes. Writes its section of RESULTS.md; `--json` prints all figures and writes nothing.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import os
import random
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from results import write
from scipy.stats import spearmanr

from mobilenet_tvm import frontend, targets, toolchain, zoo
from mobilenet_tvm.devices import estimate
from mobilenet_tvm.devices.estimate import cost as cost_module
from mobilenet_tvm.records import Task, extract_tasks
from mobilenet_tvm.search.candidates import build, describe

# In cache and not, much arithmetic for a byte and little.
LAYERS = (
    "pointwise 1x1 32->64 @ 112x112",
    "pointwise 1x1 512->512 @ 14x14",
    "pointwise 1x1 1024->1024 @ 7x7",
    "depthwise 3x3 32 @ 112x112",
    "depthwise 3x3/2 128 @ 56x56",
    "depthwise 3x3 512 @ 14x14",
    # Looked at for the first time when the estimate was finished.
    "pointwise 1x1 64->128 @ 56x56",
    "pointwise 1x1 256->256 @ 28x28",
    "pointwise 1x1 256->512 @ 14x14",
    "pointwise 1x1 512->1024 @ 7x7",
    "depthwise 3x3 128 @ 56x56",
    "depthwise 3x3 256 @ 28x28",
    "depthwise 3x3/2 64 @ 112x112",
    "conv 3x3/2 3->32 @ 224x224",
)
MODEL_BYTES = 4 << 20
CALLS = 3  # of one configuration in one round, of which the fastest counts
SHARES = (0.0, 0.1, 0.25, 0.5, 1.0)


@dataclass(frozen=True)
class Measured:
    """One configuration: its estimate, and its time in every round."""

    config: int
    cost: estimate.Cost
    estimating_s: float
    rounds_s: tuple[float, ...]

    @property
    def seconds(self) -> float:
        return float(np.percentile(self.rounds_s, 25))


def main() -> None:
    # One thread from the start: a pool of more takes some microseconds to launch even one task.
    os.environ["TVM_NUM_THREADS"] = "1"
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--configs", type=int, default=30)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--layers", nargs="*", default=LAYERS, help="labels of tasks of V1 1.0-224")
    parser.add_argument("--json", action="store_true", help="print all figures, write nothing")
    args = parser.parse_args()
    toolchain.activate()
    from tvm.target.codegen import llvm_get_system_cpu

    core = estimate.CORES.get(llvm_get_system_cpu())
    if core is None:
        parser.error(f"no figures of this machine's core, {llvm_get_system_cpu()}")
    preset = this_machine(targets.resolve("x86-avx2"))
    if (reason := estimate.why_not(preset, core)) is not None:
        parser.error(reason)
    proto = zoo.build("mobilenet_v1", alpha=1.0, resolution=224)
    relay = frontend.to_relay(frontend.clean(frontend.from_proto(proto, "mobilenet_v1")))
    tasks = {task.label: task for task in extract_tasks(relay.module, preset)}
    layers = {}
    measurer = estimate.EstimateMeasurer(preset, core=core, model_bytes=MODEL_BYTES)
    try:
        for label in args.layers:
            print(label, file=sys.stderr, flush=True)
            layers[label] = measure(tasks[label], measurer, args)
    finally:
        measurer.close()
    rows = {label: figures(found, core) for label, found in layers.items()}
    shares = {share: overall(layers, share) for share in SHARES}
    if args.json:
        print(json.dumps({"layers": rows, "shares": shares, "raw": raw(layers)}, indent=1))
        return
    text = section(rows, shares, core, args)
    print(text)
    write("Estimates with no board, against measured times", text)


def this_machine(preset: targets.Preset) -> targets.Preset:
    """The preset with the sizes of this machine's caches, as Linux knows them."""
    sizes = {}
    for index in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*"):
        level, kind, size = (Path(index, n).read_text().strip() for n in ("level", "type", "size"))
        if kind != "Instruction":
            field = "l1d_bytes" if level == "1" else f"l{level}_bytes"
            sizes[field] = int(size.removesuffix("K")) << 10
    return dataclasses.replace(preset, **sizes)


def measure(
    task: Task, measurer: estimate.EstimateMeasurer, args: argparse.Namespace
) -> list[Measured]:
    """Estimate a sample of a task's configurations, then time them."""
    configs = list(task.candidates)
    random.Random(args.seed).shuffle(configs)
    configs = configs[: args.configs]
    costs, spent = {}, {}
    for config in configs:
        start = time.monotonic()
        found = measurer.cost(task, config)
        if not isinstance(found, estimate.Cost):
            raise SystemExit(f"{task.label}, configuration {config}: {found.message}")
        costs[config], spent[config] = found, time.monotonic() - start
    times = time_in_turns(task, configs, args.rounds)
    return [Measured(c, costs[c], spent[c], tuple(times[c])) for c in configs]


def time_in_turns(task: Task, configs: list[int], rounds: int) -> dict[int, list[float]]:
    """Seconds of each configuration in each round, caches as in the model (search/measure.py)."""
    toolchain.activate()
    import tvm

    device = tvm.cpu(0)
    kernels = {config: build(describe(task, config)) for config in configs}
    some = next(iter(kernels.values()))
    shapes = [tuple(map(int, tensor.shape)) for tensor in some.arguments]
    draw = np.random.default_rng(0).uniform
    arrays = [tvm.nd.array(draw(-1, 1, shape).astype("float32"), device) for shape in shapes]
    views = [np.from_dlpack(array) for array in arrays]
    weights = next(
        i
        for i in reversed(range(len(views)))
        if i != some.result and views[i].nbytes == task.weight_bytes
    )
    inputs = [view for i, view in enumerate(views) if i not in (some.result, weights)]
    others = np.ones(MODEL_BYTES // 4, np.float32)
    timers = {
        config: kernel.function.time_evaluator(kernel.function.entry_name, device, number=1)
        for config, kernel in kernels.items()
    }
    times: dict[int, list[float]] = {config: [] for config in configs}
    for turn in range(rounds):
        order = configs.copy()
        random.Random(turn).shuffle(order)
        for config in order:
            calls = []
            for _ in range(CALLS):
                for data in (others, *inputs):
                    data.sum()
                calls.append(timers[config](*arrays).mean)
            times[config].append(min(calls))
    return times


def regret(rank_by: np.ndarray, seconds: np.ndarray, best_of: int) -> float:
    """The fastest of the ``best_of`` first ones, over the fastest of all, minus 1."""
    first = np.argsort(rank_by, kind="stable")[:best_of]
    return float(seconds[first].min() / seconds.min() - 1)


def correlation(a: Any, b: Any) -> float:
    return float(spearmanr(a, b).statistic)


def with_share(cost: estimate.Cost, share: float) -> float:
    """The estimate, were another share of what is not the slowest seen."""
    parts = (cost.computing, *cost.transfers)
    return max(parts) + share * (sum(parts) - max(parts))


def figures(found: list[Measured], core: estimate.Core) -> dict[str, float]:
    """One layer's row."""
    seconds = np.array([one.seconds for one in found])
    cycles = np.array([one.cost.cycles for one in found])
    rounds = np.array([one.rounds_s for one in found])
    halves = [np.percentile(rounds[:, half::2], 25, axis=1) for half in (0, 1)]
    return {
        "configs": len(found),
        "fastest_us": float(seconds.min() * 1e6),
        "median_us": float(np.median(seconds) * 1e6),
        "slowest_us": float(seconds.max() * 1e6),
        "spearman": correlation(cycles, seconds),
        "spearman_computing_alone": correlation([one.cost.computing for one in found], seconds),
        "spearman_instructions": correlation([one.cost.instructions for one in found], seconds),
        "spearman_halves_of_the_truth": correlation(*halves),
        "top1_regret": regret(cycles, seconds, 1),
        "top5_regret": regret(cycles, seconds, 5),
        "instructions_top1_regret": regret(
            np.array([one.cost.instructions for one in found]), seconds, 1
        ),
        "drawn_regret": float(seconds.mean() / seconds.min() - 1),
        "estimated_by_measured": float(np.median(cycles / core.clock_hz / seconds)),
        "estimating_s": float(np.mean([one.estimating_s for one in found])),
    }


def overall(layers: dict[str, list[Measured]], share: float) -> dict[str, float]:
    """What another ``cost.SEEN`` would have given, over all layers."""
    ranks, regrets = [], []
    for found in layers.values():
        seconds = np.array([one.seconds for one in found])
        cycles = np.array([with_share(one.cost, share) for one in found])
        ranks.append(correlation(cycles, seconds))
        regrets.append(regret(cycles, seconds, 1))
    return {"mean_spearman": float(np.mean(ranks)), "worst_top1_regret": max(regrets)}


def raw(layers: dict[str, list[Measured]]) -> dict[str, list[dict[str, Any]]]:
    return {
        label: [{**dataclasses.asdict(one), "seconds": one.seconds} for one in found]
        for label, found in layers.items()
    }


def section(
    rows: dict[str, dict[str, float]],
    shares: dict[float, dict[str, float]],
    core: estimate.Core,
    args: argparse.Namespace,
) -> str:
    """The figures as Markdown."""
    command = f"python benchmarks/estimate.py --configs {args.configs} --rounds {args.rounds}"
    lines = [
        f"`{command} --seed {args.seed}`, {datetime.date.today()}. {targets.cpu_name()}, one "
        f"thread; code for x86-avx2, estimated for {core.mcpu} at {core.clock_hz / 1e9:.1f} GHz. "
        "Regret: the measured time of the configuration that the estimate likes best (the best of "
        "its five) over the fastest measured, minus 1; beside it what a configuration drawn by "
        "lot, and the one of fewest instructions, would cost. The first six layers were looked at "
        "while the estimate was made, the others were not.",
        "",
        "| layer | configs | measured us, fastest-median-slowest | Spearman | computing alone | "
        "instructions | truth against itself | top-1 regret | top-5 | by lot | fewest "
        "instructions | estimate / time | s each |",
        "|---" * 13 + "|",
    ]
    for label, row in rows.items():
        lines.append(
            f"| {label} | {row['configs']} | {row['fastest_us']:.0f}-{row['median_us']:.0f}-"
            f"{row['slowest_us']:.0f} | {row['spearman']:.2f} | "
            f"{row['spearman_computing_alone']:.2f} | {row['spearman_instructions']:.2f} | "
            f"{row['spearman_halves_of_the_truth']:.2f} | {row['top1_regret']:.1%} | "
            f"{row['top5_regret']:.1%} | {row['drawn_regret']:.0%} | "
            f"{row['instructions_top1_regret']:.0%} | {row['estimated_by_measured']:.2f} | "
            f"{row['estimating_s']:.1f} |"
        )
    mean = np.mean([row["spearman"] for row in rows.values()])
    worst = max(row["top1_regret"] for row in rows.values())
    lines += ["", f"- mean Spearman {mean:.2f}, worst top-1 regret {worst:.1%}"]
    lines.append(
        f"- the share of hidden work that is seen (`cost.SEEN`, {cost_module.SEEN}), were it "
        + "; ".join(
            f"{share:g}: mean Spearman {row['mean_spearman']:.2f}, worst top-1 "
            f"{row['worst_top1_regret']:.1%}"
            for share, row in shares.items()
        )
    )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
