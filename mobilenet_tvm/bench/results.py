"""What a comparison says: latencies, ratios, agreement, and how quiet the machine was."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from rich import box
from rich.markup import escape
from rich.table import Table

from mobilenet_tvm.bench.noise import NOISY
from mobilenet_tvm.bench.peers import Absent

DISAGREEMENT = 1e-3  # of max |reference|: beyond it the contenders are hardly the same network
# The same for a runtime that computes in 16 bits by itself. bfloat16 keeps 8 bits of a value: over
# a MobileNet's layers its outputs differ by 5-8 % of the largest.
LOW_PRECISION_DISAGREEMENT = 0.2
# Limits by precision, named as OpenVINO does.
PRECISIONS = {
    "f32": DISAGREEMENT,
    "bf16": LOW_PRECISION_DISAGREEMENT,
    "f16": LOW_PRECISION_DISAGREEMENT,
}


@dataclass(frozen=True)
class Timing:
    """Latency of one contender at one number of threads, over all ``samples`` inferences.

    ``gflops`` (2 per multiply-add, at the median) and ``peak_fraction`` (of ``threads`` cores'
    measured FMA peak) are None when the network's Mult-Adds are not known.
    """

    label: str
    threads: int
    median_ms: float
    p5_ms: float
    p95_ms: float
    gflops: float | None
    peak_fraction: float | None
    rounds: int
    samples: int


@dataclass(frozen=True)
class Ratio:
    """How many times as fast ``of`` is as ``to``, from the medians of each round's pair."""

    of: str
    to: str
    threads: int
    median: float
    p5: float
    p95: float

    def __str__(self) -> str:
        plural = "" if self.threads == 1 else "s"
        return (
            f"{self.of} is {self.median:.2f}x ({self.p5:.2f}-{self.p95:.2f}) as fast as "
            f"{self.to} at {self.threads} thread{plural}"
        )


@dataclass(frozen=True)
class Agreement:
    """Largest |difference| of ``label``'s outputs from ``reference``'s on the timed input,
    relative to max |reference| of each output; infinite when either is not finite. ``limit`` is
    what its precision allows (``PRECISIONS``)."""

    label: str
    reference: str
    threads: int
    max_error: float
    limit: float = DISAGREEMENT

    def __bool__(self) -> bool:
        return self.max_error <= self.limit


@dataclass(frozen=True)
class Noise:
    """p95 / p5 of equal bursts of work between the rounds, on the worst of ``threads`` cores."""

    threads: int
    spread: float


@dataclass(frozen=True)
class BenchResult:
    """All of one run of ``compare``, in the order the contenders were given.

    ``peak_gflops`` of a core is None, and ``noise`` empty, where they were not measured: on a
    board. ``peers`` are the labels of other runtimes, ``f32_peers`` those of them that compute in
    float32; ``absent`` are those that were asked for and do not run.
    """

    machine: str
    peak_gflops: float | None
    timings: tuple[Timing, ...]
    ratios: tuple[Ratio, ...]
    agreements: tuple[Agreement, ...]
    noise: tuple[Noise, ...]
    peers: tuple[str, ...] = ()
    f32_peers: tuple[str, ...] = ()
    absent: tuple[Absent, ...] = ()

    @property
    def best_f32_peers(self) -> tuple[Ratio, ...]:
        """At each number of threads the first contender's ratio to the fastest peer that computes
        the same network in float32, if any does."""
        wrong = {(a.label, a.threads) for a in self.agreements if not a}
        found = []
        for threads in dict.fromkeys(timing.threads for timing in self.timings):
            peers = [
                timing
                for timing in self.timings
                if timing.threads == threads
                and timing.label in self.f32_peers
                and (timing.label, threads) not in wrong
            ]
            if peers:
                best = min(peers, key=lambda timing: timing.median_ms)
                if best.label != self.timings[0].label:
                    found.append(self.ratio(self.timings[0].label, best.label, threads))
        return tuple(found)

    @property
    def warnings(self) -> tuple[str, ...]:
        """What makes these figures doubtful, a line each."""
        noisy = [
            f"the machine was not quiet ({_cores(noise.threads)}): equal bursts of work "
            f"differed by {noise.spread:.2f}x (p95/p5, {NOISY:.2f} is the limit), so trust the "
            "ratios more than the times, or stop what else is running"
            for noise in self.noise
            if noise.spread > NOISY
        ]
        differing = [
            f"{agreement.label} and {agreement.reference} disagree by {agreement.max_error:.1e} of "
            f"max |reference| (limit {agreement.limit:.0e}, {_cores(agreement.threads)}): they do "
            "not compute the same, so do not compare their times"
            for agreement in self.agreements
            if not agreement
        ]
        return (*noisy, *differing)

    def timing(self, label: str, threads: int) -> Timing:
        """The one timing of ``label`` at ``threads``; KeyError if it was not measured."""
        for timing in self.timings:
            if (timing.label, timing.threads) == (label, threads):
                return timing
        raise KeyError((label, threads))

    def ratio(self, of: str, to: str, threads: int) -> Ratio:
        """The one ratio of ``of`` to ``to``; KeyError if it was not measured that way round."""
        for ratio in self.ratios:
            if (ratio.of, ratio.to, ratio.threads) == (of, to, threads):
                return ratio
        raise KeyError((of, to, threads))

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON; the dataclasses' own field names."""
        return {
            **dataclasses.asdict(self),
            "best_f32_peers": [dataclasses.asdict(ratio) for ratio in self.best_f32_peers],
            "warnings": list(self.warnings),
        }


def summarize(
    label: str,
    threads: int,
    rounds_ms: Sequence[Sequence[float]],
    mult_adds: int | None,
    peak_gflops: float | None,
) -> Timing:
    """Latency over all inferences of all rounds (each a sequence of milliseconds)."""
    samples_ms = np.concatenate([np.asarray(times_ms) for times_ms in rounds_ms])
    low, median, high = (float(x) for x in np.percentile(samples_ms, (5, 50, 95)))
    gflops = None if mult_adds is None else 2 * mult_adds / median / 1e6
    return Timing(
        label=label,
        threads=threads,
        median_ms=median,
        p5_ms=low,
        p95_ms=high,
        gflops=gflops,
        peak_fraction=(
            None if gflops is None or peak_gflops is None else gflops / (threads * peak_gflops)
        ),
        rounds=len(rounds_ms),
        samples=samples_ms.size,
    )


def ratio_by_round(
    of: str,
    to: str,
    threads: int,
    of_rounds_ms: Sequence[Sequence[float]],
    to_rounds_ms: Sequence[Sequence[float]],
) -> Ratio:
    """Pair the two contenders' medians round by round, so that what disturbs a whole round
    (another program, the clock) touches both and cancels."""
    pairs = zip(of_rounds_ms, to_rounds_ms, strict=True)
    ratios = [float(np.median(to_ms) / np.median(of_ms)) for of_ms, to_ms in pairs]
    low, median, high = (float(x) for x in np.percentile(ratios, (5, 50, 95)))
    return Ratio(of, to, threads, median, low, high)


def relative_error(
    outputs: Sequence[npt.NDArray[Any]], references: Sequence[npt.NDArray[Any]]
) -> float:
    """max |output - reference| / max |reference|, the worst output; shapes must be equal."""
    worst = 0.0
    for output, reference in zip(outputs, references, strict=True):
        got, wanted = output.astype(np.float64), reference.astype(np.float64)
        if not (np.isfinite(got).all() and np.isfinite(wanted).all()):
            return float("inf")
        scale = float(np.abs(wanted).max(initial=0.0)) or 1.0
        worst = max(worst, float(np.abs(got - wanted).max(initial=0.0)) / scale)
    return worst


def best_peer_text(ratio: Ratio) -> str:
    """One of ``BenchResult.best_f32_peers`` as a sentence."""
    plural = "" if ratio.threads == 1 else "s"
    return (
        f"{ratio.of} is {ratio.median:.2f}x ({ratio.p5:.2f}-{ratio.p95:.2f}) as fast as the best "
        f"f32 peer, {ratio.to}, at {ratio.threads} thread{plural}"
    )


def table(result: BenchResult) -> Table:
    """The comparison for a person: a row for each contender and number of threads.

    Fits 80 columns, where only long labels are folded. The column ``speed`` is relative to the
    last contender; the caption has the first one's ratios with spread, and the conditions.
    """
    baseline = result.timings[-1].label
    several = any(timing.label != baseline for timing in result.timings)
    view = Table(box=box.SIMPLE, caption=_caption(result), caption_justify="left", caption_style="")
    view.add_column("threads", justify="right", no_wrap=True)
    view.add_column("contender", overflow="fold")
    for heading in ("median\nms", "p5-p95\nms", "GFLOP/s", "of\npeak"):
        view.add_column(heading, justify="right", no_wrap=True)
    if several:
        view.add_column("speed", justify="right", no_wrap=True)
    previous = None
    for timing in result.timings:
        if previous not in (None, timing.threads):
            view.add_section()
        previous = timing.threads
        cells = [
            str(timing.threads),
            timing.label,
            _milliseconds(timing.median_ms),
            f"{_milliseconds(timing.p5_ms)}-{_milliseconds(timing.p95_ms)}",
            "-" if timing.gflops is None else f"{timing.gflops:.1f}",
            "-" if timing.peak_fraction is None else f"{timing.peak_fraction:.0%}",
        ]
        if several:
            cells.append(_speed(result, timing, baseline))
        view.add_row(*(escape(cell) for cell in cells))
    return view


def _milliseconds(value_ms: float) -> str:
    return f"{value_ms:.2f}" if value_ms >= 10 else f"{value_ms:.3f}"


def _speed(result: BenchResult, timing: Timing, baseline: str) -> str:
    if timing.label == baseline:
        return "1.00x"
    try:
        ratio = result.ratio(timing.label, baseline, timing.threads)
    except KeyError:  # the baseline failed at this number of threads
        return "-"
    return f"{ratio.median:.2f}x"


def _cores(count: int) -> str:
    return "1 core" if count == 1 else f"{count} cores"


def _caption(result: BenchResult) -> str:
    """The conditions, which a latency means nothing without."""
    first = result.timings[0]
    best = {ratio.threads: ratio for ratio in result.best_f32_peers}
    lines = [
        str(ratio)
        for ratio in result.ratios
        if ratio.of == first.label and (not best or ratio.to not in result.peers)
    ]
    lines += map(best_peer_text, result.best_f32_peers)
    if result.peak_gflops is None:
        lines.append(result.machine)
    else:
        peak = f"measured FMA peak {result.peak_gflops:.1f} GFLOP/s a core"
        lines.append(f"{result.machine}; {peak}")
    if result.noise:
        noise = ", ".join(f"{n.spread:.2f} on {_cores(n.threads)}" for n in result.noise)
        lines.append(f"quiet-machine check, p95/p5 of equal work: {noise} (quiet: <= {NOISY:.2f})")
    lines.append(
        f"{first.rounds} alternating rounds; percentiles over all inferences, ratios over rounds"
    )
    for limit in sorted({agreement.limit for agreement in result.agreements}):
        held = [agreement for agreement in result.agreements if agreement.limit == limit]
        worst = max(agreement.max_error for agreement in held)
        whose = "outputs" if limit == DISAGREEMENT else "outputs in lower precision"
        lines.append(
            f"{whose} differ from {held[0].reference}'s by {worst:.1e} of its max |output|"
        )
    lines += [str(absent) for absent in result.absent]
    return escape("\n".join(lines))
