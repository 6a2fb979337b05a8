"""A depthwise and a pointwise convolution in one kernel, against the pair of kernels that we build.

    .venv/bin/python benchmarks/fused.py [--threads 1,2] [--configs 32] [--rounds 100] [--seed 0]
                                         [--layers "V1 128@56->128,..."] [--no-write]

For the large layers of V1 and V2: a sample of our templates' configurations, and ``--configs`` of a
kernel that computes a band of rows of the depthwise convolution into a buffer that stays in its
core's cache, and from there the pointwise one. All run on the thread pool that artifacts have.
A call is timed after other data of a model's size was read and the input was written anew, by all
threads in bands of rows, as the layers before leave the caches. The best pair and the best fused
kernel of the samples then take turns. Takes about four minutes; leave the machine alone meanwhile:
the quiet-machine figure in the result says whether it was.
"""

from __future__ import annotations

import argparse
import datetime
import itertools
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from fused_kernels import OTHER_BYTES, PAIR_CONFIGS, Layer, build, tensors_of
from results import write

from mobilenet_tvm import bench, targets, toolchain
from mobilenet_tvm.bench.cores import confine, fastest_cores
from mobilenet_tvm.bench.noise import NoiseMeter
from mobilenet_tvm.build.pool import SET_THREADS
from mobilenet_tvm.errors import CheckFailedError
from mobilenet_tvm.parity.tolerances import TOLERANCES

TITLE = "A fused depthwise + pointwise kernel"
LAYERS = (
    *(Layer("V1", 32, 112, 64), Layer("V1", 64, 112, 128, 2)),
    *(Layer("V1", 128, 56, 128), Layer("V1", 128, 56, 256, 2)),
    *(Layer("V2", 32, 112, 16), Layer("V2", 96, 112, 24, 2)),
    *(Layer("V2", 144, 56, 24), Layer("V2", 144, 56, 32, 2)),
)
# Kernels that a model calls one after the other.
Call = tuple[str, ...]
# Calls of every kernel, of which the fastest counts; kernels of a kind that are left then; and
# calls of each of those, of which the median counts.
SCREENED, FINALISTS, QUALIFIED = 6, 4, 15
NOISE_BURSTS = 20  # before each layer


@dataclass(frozen=True)
class Row:
    """One layer: seconds of each round, and the largest difference of a fused kernel's result, as
    a share of the pair's largest value."""

    layer: Layer
    threads: int
    pair_s: npt.NDArray[np.float64]
    fused_s: npt.NDArray[np.float64]
    error: float

    @property
    def ratios(self) -> npt.NDArray[np.float64]:
        return self.pair_s / self.fused_s


class Bed:
    """A layer's kernels with their arrays, twice, for where an array lies may matter."""

    def __init__(self, layer: Layer, path: Path, threads: int) -> None:
        toolchain.activate()
        import tvm

        from mobilenet_tvm.schedules.layout import shape_of

        self._layer, self._threads = layer, threads
        self._library = tvm.runtime.load_module(str(path))
        self._library.get_function(SET_THREADS, query_imports=True)(threads)
        draw = np.random.default_rng(0).uniform

        def array(shape: Sequence[int], inputs: int = 1) -> Any:
            # Sums of so many inputs with such weights are about 1: ReLU6 lets many through.
            bound = 2 / inputs**0.5
            return tvm.nd.array(draw(-bound, bound, shape).astype("float32"))

        with targets.resolve("x86").tvm_target():
            shapes = [shape_of(tensor) for tensor in tensors_of(layer)]
        data, window, window_bias, weights, bias, between = shapes
        result = (*bias[:2], layer.out_size, layer.out_size, bias[-1])
        first = array(window, 9), array(window_bias)
        last = array(weights, layer.channels), array(bias)
        self._source, self._one = array(data), [array((1,)) for _ in range(4)]
        self._others = tvm.nd.array(np.ones((64, OTHER_BYTES // 4096, 16), "float32"))
        self._read = array((64, 16))
        self._sets = []
        for _ in range(2):
            image, middle, out = array(data), array(between), array(result)
            arguments = {
                "depthwise": (image, *first, middle),
                "pointwise": (middle, *last, out),
                "fused": (image, *first, *last, out),
            }
            self._sets.append((image, out, arguments))
        self._empty_s = 0.0
        self._empty_s = float(np.median([self._seconds(("nothing",), 0) for _ in range(1000)]))

    def time(self, call: Call, turn: int = 0) -> float:
        """Seconds of some kernels in a row, with the caches as the layers before leave them."""
        self._library["others"](self._others, self._read)
        self._library["before"](self._source, self._sets[turn % 2][0])
        return self._seconds(call, turn)

    def _seconds(self, call: Call, turn: int) -> float:
        """Seconds of some kernels in a row, less what Python takes to call them."""
        arguments = self._sets[turn % 2][2]
        ready = [
            (self._library[name], arguments.get(name.partition("_")[0], self._one)) for name in call
        ]
        start = time.perf_counter()
        for function, its in ready:
            function(*its)
        return time.perf_counter() - start - len(ready) * self._empty_s

    def result(self, call: Call) -> npt.NDArray[np.float32]:
        """What some kernels in a row compute."""
        out = self._sets[0][1]
        out.copyfrom(np.full(out.shape, np.nan, "float32"))
        self.time(call)
        return np.asarray(out.numpy())

    def fastest(self, calls: Iterable[Call]) -> list[Call]:
        """The few of least time."""
        best = {call: min(self.time(call, turn) for turn in range(SCREENED)) for call in calls}
        return sorted(best, key=lambda call: best[call])[:FINALISTS]

    def in_turns(self, calls: Sequence[Call], rounds: int) -> dict[Call, list[float]]:
        """Seconds of each in each round; the order changes every two, the arrays every round."""
        times: dict[Call, list[float]] = {call: [] for call in calls}
        for turn in range(rounds):
            for call in calls if turn & 2 else reversed(calls):
                times[call].append(self.time(call, turn))
        return times

    def measure(self, names: dict[str, list[str]], rounds: int) -> Row:
        """Choose the best pair and the best fused kernel, and time those two by turns.

        Raises:
            CheckFailedError: a fused kernel computes something else.
        """
        windows = [name for (name,) in self.fastest((name,) for name in names["depthwise"])]
        after_best = self.fastest((windows[0], name) for name in names["pointwise"])
        pairs = list(itertools.product(windows, [name for _, name in after_best]))
        fused = self.fastest((name,) for name in names["fused"])
        times = self.in_turns([*pairs, *fused], QUALIFIED)
        pair, one = (
            min(calls, key=lambda call: float(np.median(times[call]))) for calls in (pairs, fused)
        )
        expected = self.result(pair)
        largest = np.abs(expected).max()
        errors = [np.abs(self.result((name,)) - expected).max() for name in names["fused"]]
        error = float(np.max(errors) / largest)  # NaN if one has left a value unwritten
        if not error <= TOLERANCES["float32"]:
            raise CheckFailedError(f"{self._layer.label}: a fused kernel differs by {error:.1e}")
        times = self.in_turns([pair, one], rounds)
        seconds = np.array(times[pair]), np.array(times[one])
        return Row(self._layer, self._threads, *seconds, error)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--configs", type=int, default=32, help="of the fused kernel, a layer")
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--layers", default=",".join(layer.label for layer in LAYERS))
    parser.add_argument("--no-write", action="store_true", help="print the section only")
    args = parser.parse_args(argv)
    layers = [layer for layer in LAYERS if layer.label in args.layers.split(",")]
    rows: list[Row] = []
    noise: dict[int, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder, f"{index}.so") for index in range(len(layers))]
        processes = multiprocessing.get_context("spawn")  # TVM's threads do not survive a fork
        with ProcessPoolExecutor(targets.physical_cores(), processes) as workers:
            options = itertools.repeat(args.configs), itertools.repeat(args.seed)
            names = list(workers.map(build, layers, paths, *options))
        peak = bench.measure_peak_gflops(bench.host_target())
        cores = fastest_cores(targets.physical_cores())
        for threads in map(int, args.threads.split(",")):
            confine(cores)
            meter = NoiseMeter(threads)
            confine(cores[:threads])
            for layer, path, its in zip(layers, paths, names, strict=True):
                print(f"{layer.label}, threads: {threads}", file=sys.stderr, flush=True)
                meter.sample(NOISE_BURSTS)
                rows.append(Bed(layer, path, threads).measure(its, args.rounds))
            noise[threads] = meter.spread
    command = f"python benchmarks/fused.py {' '.join(sys.argv[1:] if argv is None else argv)}"
    text = section(rows, args, command.strip(), peak, noise)
    print(text)
    if not args.no_write:
        write(TITLE, text)


def section(
    rows: Sequence[Row],
    args: argparse.Namespace,
    command: str,
    peak: float,
    noise: dict[int, float],
) -> str:
    """The layers' times as Markdown; ``noise`` is the machine's, by the number of threads."""
    lines = [
        f"`{command}`, {datetime.date.today()}. {bench.machine_name()}; TVM "
        f"{toolchain.TVM_VERSION}; measured FMA peak {peak:.1f} GFLOP/s a core. Microseconds: "
        f"median (p5-p95) of {args.rounds} alternating rounds, other data of "
        f"{OTHER_BYTES >> 20} MiB read before each. The best of {args.configs} configurations of "
        f"a fused kernel against the best pair of {PAIR_CONFIGS['depthwise'] + 1} and "
        f"{PAIR_CONFIGS['pointwise'] + 1} of our templates'. `128/2@56->256`: a depthwise "
        "convolution of 128 channels, stride 2, on 56x56, then 256 filters.",
        "",
        "| threads | layer | pair, us | of peak | fused, us | of peak | pair / fused |",
        "|---" * 7 + "|",
    ]
    for row in rows:
        shares = (
            row.layer.flops / float(np.median(times)) / (peak * 1e9 * row.threads)
            for times in (row.pair_s, row.fused_s)
        )
        pair, fused = shares
        lines.append(
            f"| {row.threads} | {row.layer.label} | {shown(row.pair_s * 1e6, '.0f')} | {pair:.0%} "
            f"| {shown(row.fused_s * 1e6, '.0f')} | {fused:.0%} | {shown(row.ratios, '.3f')} |"
        )
    lines.append("")
    for threads, model in dict.fromkeys((row.threads, row.layer.model) for row in rows):
        its = [row for row in rows if (row.threads, row.layer.model) == (threads, model)]
        pair, fused = (
            sum(float(np.median(times)) for times in kind) * 1e6
            for kind in ([row.pair_s for row in its], [row.fused_s for row in its])
        )
        lines.append(
            f"- {model}, these {len(its)} layers at {threads} thread(s): pairs {pair:.0f} us, "
            f"fused {fused:.0f} us: {pair / fused:.3f}"
        )
    worst = max(row.error for row in rows)
    lines.append(f"- fused results differ by at most {worst:.1e} of the pair's largest value")
    spreads = ", ".join(f"{spread:.2f} on {threads} core(s)" for threads, spread in noise.items())
    check = f"- quiet-machine check, p95/p5 of equal bursts of work: {spreads}"
    lines.append(f"{check} (quiet: <= {bench.NOISY:.2f})")
    if max(noise.values()) > bench.NOISY:
        lines.append("- **the machine was not quiet: these times decide nothing, run it again**")
    return "\n".join(lines)


def shown(values: npt.NDArray[np.float64], form: str) -> str:
    """``median (p5-p95)``."""
    median, low, high = (format(x, form) for x in np.percentile(values, (50, 5, 95)))
    return f"{median} ({low}-{high})"


if __name__ == "__main__":
    main()
