"""Which of several builds of one model is the fastest here, measured end to end."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mobilenet_tvm.bench.alternate import DEFAULT_ROUNDS, Contender, compare
from mobilenet_tvm.bench.gpu import compare_on_gpu
from mobilenet_tvm.bench.gpu_results import GpuBenchResult
from mobilenet_tvm.bench.results import BenchResult

# How many times as fast one build must be for the difference to be no noise.
CLEARLY = 1.01


@dataclass(frozen=True)
class Candidate:
    """A built artifact; ``layout_transforms`` is its manifest's, and ``tuned`` says whether any
    record of its own layers is in it."""

    name: str
    path: Path
    layout_transforms: int
    tuned: bool = True


@dataclass(frozen=True)
class Choice:
    """The build to keep.

    ``median_ms`` of every candidate, ``ratio``: its time over the chosen one's, from the paired
    rounds; ``why`` the chosen one is; ``warnings`` about the measurement.
    """

    chosen: str
    median_ms: Mapping[str, float]
    ratio: Mapping[str, float]
    why: str
    warnings: tuple[str, ...] = ()


def decide(
    candidates: Sequence[Candidate],
    *,
    threads: int = 1,
    rounds: int = DEFAULT_ROUNDS,
    seed: int = 0,
    on_round: Callable[[int, int], None] | None = None,
) -> Choice:
    """Run the candidates in alternating rounds on ``threads`` cores and choose one.

    Raises:
        UsageError: too many threads, or candidates that are not builds of one model.
        DeviceError: a worker died, hung or failed.
    """
    contenders = [Contender(c.name, "artifact", str(c.path)) for c in candidates]
    result = compare(contenders, threads=(threads,), rounds=rounds, seed=seed, on_round=on_round)
    return choose(result, candidates)


def decide_on_gpu(
    candidates: Sequence[Candidate], *, rounds: int = DEFAULT_ROUNDS, seed: int = 0
) -> Choice:
    """The same on this machine's GPU.

    Raises:
        UsageError: candidates that are not builds of one model.
        DeviceError: a worker died, hung or failed, or there is no GPU.
    """
    artifacts = [(c.name, c.path) for c in candidates]
    result = compare_on_gpu(artifacts, graphs=False, rounds=rounds, seed=seed)
    return choose(result, candidates)


def choose(result: BenchResult | GpuBenchResult, candidates: Sequence[Candidate]) -> Choice:
    """The fastest by the paired ratios; within the noise, the one with fewer layout transforms,
    and of equals one that is tuned.

    Where the model does not tell a tuned build from the untuned one, the kernels' own trials
    do, so an untuned build is kept only if it is clearly the faster one.

    Args:
        result: of one number of threads, or of a GPU.
        candidates: its contenders.
    """
    first = result.timings[0]
    # Times as fast as the first contender, from the rounds that both ran.
    speed = {first.label: 1.0} | {
        ratio.to: 1 / ratio.median for ratio in result.ratios if ratio.of == first.label
    }
    by_name = {candidate.name: candidate for candidate in candidates}
    fastest = by_name[max(speed, key=lambda name: speed[name])]
    close = [by_name[name] for name in speed if _ratio(result, fastest.name, name) < CLEARLY]
    chosen = min(close, key=lambda one: (one.layout_transforms, not one.tuned, -speed[one.name]))
    at = "on the GPU"
    if isinstance(result, BenchResult):
        at = f"at {first.threads} thread" + ("" if first.threads == 1 else "s")
    why = f"fastest of {len(speed)} measured end to end {at}"
    if chosen is not fastest:
        ahead = 100 * (_ratio(result, fastest.name, chosen.name) - 1)
        fewer = chosen.layout_transforms < fastest.layout_transforms
        how = "with fewer layout transforms" if fewer else "and tuned"
        why = f"within the noise of the fastest, {fastest.name} ({ahead:.1f} % {at}), {how}"
    return Choice(
        chosen.name,
        {timing.label: timing.median_ms for timing in result.timings},
        {name: _ratio(result, chosen.name, name) for name in speed},
        why,
        result.warnings,
    )


def _ratio(result: BenchResult | GpuBenchResult, of: str, to: str) -> float:
    """How many times as fast ``of`` is as ``to``, whichever way round it was kept."""
    if of == to:
        return 1.0
    for ratio in result.ratios:
        if (ratio.of, ratio.to) == (of, to):
            return ratio.median
        if (ratio.of, ratio.to) == (to, of):
            return 1 / ratio.median
    raise KeyError((of, to))
