"""What a comparison on a GPU says: two latencies each, the card's state, who was absent."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.markup import escape
from rich.table import Table

from mobilenet_tvm.bench.gpu_peers import is_tf32
from mobilenet_tvm.bench.peers import Absent
from mobilenet_tvm.bench.results import DISAGREEMENT, Agreement
from mobilenet_tvm.cuda.gpu import GpuInfo, GpuSummary, causes

# How many times as fast a CUDA graph must be before launching is said to be what takes the time.
LAUNCH_BOUND = 1.1

CONDITIONS = (
    "float32 throughout, TF32 off but where a row says so; time: the host's clock around one "
    "inference, until the GPU has finished; end to end: with copies from and to pageable memory"
)


@dataclass(frozen=True)
class GpuTiming:
    """Latency of one contender over all ``samples`` inferences, milliseconds.

    ``median_ms``, ``p5_ms`` and ``p95_ms`` are of an inference with its input and output on the
    GPU; ``end_to_end_*`` with the copies. ``gflops`` is of the former, 2 per multiply-add, None
    where the network's Mult-Adds are not known.
    """

    label: str
    median_ms: float
    p5_ms: float
    p95_ms: float
    end_to_end_ms: float
    end_to_end_p5_ms: float
    end_to_end_p95_ms: float
    gflops: float | None
    rounds: int
    samples: int

    @property
    def threads(self) -> int:
        """Of the host, which launches: for whoever takes a ``Timing`` as well."""
        return 1


@dataclass(frozen=True)
class GpuRatio:
    """How many times as fast ``of`` is as ``to``, from the medians of each round's pair; without
    copies, and ``end_to_end`` with them."""

    of: str
    to: str
    median: float
    p5: float
    p95: float
    end_to_end: float

    def __str__(self) -> str:
        return (
            f"{self.of} is {self.median:.2f}x ({self.p5:.2f}-{self.p95:.2f}) as fast as {self.to}"
            f", {self.end_to_end:.2f}x end to end"
        )


@dataclass(frozen=True)
class GpuBenchResult:
    """All of one run of ``compare_on_gpu``, in the order the contenders were given.

    ``machine`` is the GPU with its driver, and the host's CPU. ``state`` is None where the driver
    tells nothing. ``graphs`` pairs a contender with the same one launched as a CUDA graph.
    """

    machine: str
    gpu: GpuInfo
    state: GpuSummary | None
    timings: tuple[GpuTiming, ...]
    ratios: tuple[GpuRatio, ...]
    agreements: tuple[Agreement, ...]
    absent: tuple[Absent, ...]
    graphs: tuple[tuple[str, str], ...] = ()

    @property
    def warnings(self) -> tuple[str, ...]:
        """What makes these figures doubtful, a line each."""
        found = []
        if self.state is not None and self.state.throttled:
            found.append(
                f"the GPU was held back ({', '.join(causes(self.state.reasons))}): cool it or "
                "raise its power limit, or trust the ratios more than the times"
            )
        if self.state is not None and self.state.others:
            found.append(
                f"{self.state.others} other processes use the GPU: stop them, or trust the ratios "
                "more than the times"
            )
        return (
            *found,
            *(
                f"{one.label} and {one.reference} disagree by {one.max_error:.1e} of max "
                f"|reference| (limit {DISAGREEMENT:.0e}): they do not compute the same, so do not "
                "compare their times"
                for one in self.agreements
                if not is_tf32(one.label) and not one.max_error <= DISAGREEMENT
            ),
        )

    @property
    def hints(self) -> tuple[str, ...]:
        """Where launching kernels, not running them, takes the time."""
        found = []
        for plain, graph in self.graphs:
            ratio = self.ratio(graph, plain)
            if ratio.median >= LAUNCH_BOUND:
                found.append(
                    f"{plain} is launch-bound: as one CUDA graph it is {ratio.median:.2f}x as "
                    "fast, so run it with --cuda-graph"
                )
        return tuple(found)

    def timing(self, label: str) -> GpuTiming:
        """The one timing of ``label``; KeyError if it was not measured."""
        return next(one for one in self.timings if one.label == label)

    def ratio(self, of: str, to: str) -> GpuRatio:
        """How many times as fast ``of`` is; KeyError if they were not both measured."""
        for one in self.ratios:
            if (one.of, one.to) == (of, to):
                return one
        for one in self.ratios:
            if (one.of, one.to) == (to, of):
                return GpuRatio(of, to, 1 / one.median, 1 / one.p95, 1 / one.p5, 1 / one.end_to_end)
        raise KeyError((of, to))

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON; the dataclasses' own field names."""
        more = {"warnings": list(self.warnings), "hints": list(self.hints)}
        return {**dataclasses.asdict(self), "conditions": CONDITIONS, **more}


def gpu_table(result: GpuBenchResult) -> Table:
    """The comparison for a person: a row for each contender, then one for each absent peer.

    ``speed`` is relative to the last contender, without copies.
    """
    baseline = result.timings[-1].label
    view = Table(box=box.SIMPLE, caption=_caption(result), caption_justify="left", caption_style="")
    view.add_column("contender", overflow="fold")
    for heading in ("median\nms", "p5-p95\nms", "end to end\nms", "GFLOP/s", "speed"):
        view.add_column(heading, justify="right", no_wrap=True)
    for timing in result.timings:
        speed = 1.0 if timing.label == baseline else result.ratio(timing.label, baseline).median
        cells = (
            timing.label,
            f"{timing.median_ms:.3f}",
            f"{timing.p5_ms:.3f}-{timing.p95_ms:.3f}",
            f"{timing.end_to_end_ms:.3f}",
            "-" if timing.gflops is None else f"{timing.gflops:.0f}",
            f"{speed:.2f}x",
        )
        view.add_row(*map(escape, cells))
    for peer in result.absent:
        view.add_row(escape(f"{peer.name} (absent)"), *["-"] * 5)
    return view


def difference(agreements: Sequence[Agreement]) -> str:
    """How far the outputs are from the reference's at most, those in TF32 apart; one line."""
    exact = [one.max_error for one in agreements if not is_tf32(one.label)]
    rough = [one.max_error for one in agreements if is_tf32(one.label)]
    parts = [f"by {max(exact):.1e}"] if exact else []
    parts += [f"in TF32 by {max(rough):.1e}"] if rough else []
    reference = agreements[0].reference
    return f"outputs differ from {reference}'s {', '.join(parts)} of its max |output|"


def _caption(result: GpuBenchResult) -> str:
    """The conditions, which a latency means nothing without."""
    first = result.timings[0]
    lines = [str(ratio) for ratio in result.ratios if ratio.of == first.label]
    lines.append(result.machine)
    lines.append("clocks not told" if result.state is None else str(result.state))
    lines.append(f"{first.rounds} alternating rounds; {CONDITIONS}")
    if result.agreements:
        lines.append(difference(result.agreements))
    return escape("\n".join([*lines, *map(str, result.absent), *result.hints]))
