"""Where the time of an artifact goes: each of its kernels, and how far it is from its roofline.

The kernels are timed in the model's order (``runtime.walk``) in a process of their own, in turns
with whole inferences, so that the sum of the kernels can be held against them.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mobilenet_tvm.bench import peak, protocol
from mobilenet_tvm.bench.alternate import (
    Contender,
    Lane,
    check_threads,
    load,
    prepare,
    unwired,
)
from mobilenet_tvm.bench.bandwidth import Bandwidth, measure_bandwidth
from mobilenet_tvm.bench.layer_labels import label_of, schedule_of, short_config
from mobilenet_tvm.bench.noise import NOISY, NoiseMeter
from mobilenet_tvm.bench.process import WorkerProcess
from mobilenet_tvm.bench.results import Noise
from mobilenet_tvm.bench.roofline import Bound, Work, bound_of, model_bytes, work_of
from mobilenet_tvm.build.manifest import LayerInfo, Manifest, TuningInfo
from mobilenet_tvm.errors import UsageError
from mobilenet_tvm.runtime.module import open_library
from mobilenet_tvm.runtime.walk import WalkedKernel, describe, walked_kernels

NEAR_ROOFLINE = 1.15
DISAGREE = 0.05  # of the end-to-end time: beyond it the kernels' sum is no account of it
_ROUND_MS = 200.0  # of timed inferences each way
_WARMUP_MS = 20.0

_Times = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Layer:
    """One kernel, in the model's order.

    ``label`` names what it computes, ``kernel`` it in TVM's graph. Times are of all samples;
    ``roofline_us`` is the least that it can take (by ``bound``, ``FLOPs`` or ``bytes``),
    ``lost_us`` what it takes beyond, and ``lost_fraction`` that of an inference. ``gflops`` and
    ``peak_fraction`` are None where it does nothing that is counted. ``schedule`` says whose
    schedule it has, ``records`` are indices into the manifest's, ``config`` the first one's.
    """

    index: int
    label: str
    kernel: str
    median_us: float
    p5_us: float
    p95_us: float
    flops: int | None
    input_bytes: int
    weight_bytes: int
    output_bytes: int
    gflops: float | None
    gbps: float
    peak_fraction: float | None
    roofline_us: float
    bound: str
    lost_us: float
    lost_fraction: float
    schedule: str
    records: tuple[int, ...]
    config: str | None


@dataclass(frozen=True)
class LayerProfile:
    """All of one artifact at one number of threads.

    ``end_to_end_us`` (p5 and p95 beside it) is of whole inferences, one right after the other;
    ``kernels_us`` of the kernels of one inference together, timed one by one in turns with them;
    ``between_us`` the median difference, round by round: what the executor takes between its
    kernels. ``from_python_us`` is of an inference that Python calls, which has to get its own
    code back into the caches. ``launch_us`` is what of a kernel's time goes to starting and
    joining its threads; None at one thread, and where no kernel starts any.
    ``near_roofline`` is the part of the kernels' time spent in such as take less than
    ``NEAR_ROOFLINE`` times their roofline. ``peak_gflops`` is one core's.
    """

    artifact: str
    machine: str
    threads: int
    peak_gflops: float
    bandwidth: Bandwidth
    layers: tuple[Layer, ...]
    end_to_end_us: float
    p5_us: float
    p95_us: float
    kernels_us: float
    between_us: float
    from_python_us: float
    launch_us: float | None
    near_roofline: float
    rounds: int
    samples: int
    noise: Noise

    @property
    def warnings(self) -> tuple[str, ...]:
        """What makes these figures doubtful, a line each."""
        found = []
        if self.noise.spread > NOISY:
            found.append(
                f"the machine was not quiet: equal bursts of work differed by "
                f"{self.noise.spread:.2f}x (p95/p5, {NOISY:.2f} is the limit)"
            )
        if abs(self.between_us) > DISAGREE * self.end_to_end_us:
            found.append(
                f"the kernels together take {self.kernels_us:.0f} us and an inference "
                f"{self.end_to_end_us:.0f} us: more than {DISAGREE:.0%} apart, so run it again"
            )
        return tuple(found)

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON; the dataclasses' own field names."""
        return {**dataclasses.asdict(self), "warnings": list(self.warnings)}


def profile_layers(
    path: Path,
    *,
    threads: int,
    rounds: int,
    seed: int = 0,
    on_round: Callable[[int], None] | None = None,
) -> LayerProfile:
    """Time every kernel of an artifact for the CPU. Takes about 0.5 s a round.

    Raises:
        UsageError: as ``runtime.load``; it is for a GPU, says nothing of its kernels, or has one
            with several outputs; too many threads.
        DeviceError: the worker died, hung or failed.
    """
    check_threads([threads])
    if rounds < 1:
        raise UsageError(f"--rounds must be at least 1, got {rounds}")
    library, manifest = open_library(path)
    if manifest.target.cuda_arch is not None:
        raise UsageError(f"--layers is for the CPU, and {path} is for a GPU")
    if not manifest.layers:
        raise UsageError(f"{path} does not say what its kernels compute: compile the model again")
    kernels = walked_kernels(library, manifest)
    target = peak.host_target()
    peak_gflops = peak.measure_peak_gflops(target)
    bandwidth = measure_bandwidth(target, threads, model_bytes(kernels))
    meter = NoiseMeter(threads)
    timed = _Timed()
    _run(path, manifest, threads, rounds, seed, meter, timed, on_round)
    return _summarize(
        path.stem, manifest, kernels, timed, threads, peak_gflops, bandwidth, meter.spread
    )


@dataclass
class _Timed:
    """Microseconds of each round: ``[inferences, kernels]``, ``[inferences]``, the same from
    Python, and a launch."""

    kernels_us: list[_Times] = dataclasses.field(default_factory=list)
    inference_us: list[_Times] = dataclasses.field(default_factory=list)
    from_python_us: list[_Times] = dataclasses.field(default_factory=list)
    launch_us: list[float] = dataclasses.field(default_factory=list)


def _run(
    path: Path,
    manifest: Manifest,
    threads: int,
    rounds: int,
    seed: int,
    meter: NoiseMeter,
    timed: _Timed,
    on_round: Callable[[int], None] | None,
) -> None:
    """All rounds, the worker stopped while the machine's noise is sampled."""
    with WorkerProcess(path.stem, threads) as worker:
        lane = Lane(Contender(path.stem, "layers", str(path)), worker)
        load(lane, threads)
        prepare(lane, tuple(spec.shape for spec in manifest.inputs), seed)
        inferences = math.ceil(_ROUND_MS / lane.inference_ms)
        warmup = math.ceil(_WARMUP_MS / lane.inference_ms)
        timeout_s = 60 + 60 * (inferences + warmup) * lane.inference_ms / 1e3
        called = max(5, inferences // 10)
        for done in range(1, rounds + 1):
            meter.sample(math.ceil(peak.BURSTS / rounds))
            worker.resume()
            walk = protocol.Walk(inferences, warmup, kernels_first=done % 2 == 0)
            walked = worker.ask(walk, protocol.Walked, timeout_s)
            measure = protocol.Measure(called, 1)
            measured = worker.ask(measure, protocol.Measured, timeout_s)
            worker.pause()
            timed.kernels_us.append(unwired(walked.kernels_us))
            timed.inference_us.append(unwired(walked.inference_us))
            timed.from_python_us.append(np.array(measured.times_ms) * 1e3)
            if walked.launch_us is not None and threads > 1:
                timed.launch_us.append(walked.launch_us)
            if on_round is not None:
                on_round(done)


def _summarize(
    artifact: str,
    manifest: Manifest,
    kernels: Sequence[WalkedKernel],
    timed: _Timed,
    threads: int,
    peak_gflops: float,
    bandwidth: Bandwidth,
    spread: float,
) -> LayerProfile:
    described = describe(kernels, manifest)
    works = [work_of(kernel, info) for kernel, info in zip(kernels, described, strict=True)]
    kernels_us = np.concatenate(timed.kernels_us)
    low, end_to_end_us, high = np.percentile(np.concatenate(timed.inference_us), (5, 50, 95))
    pairs = zip(timed.inference_us, timed.kernels_us, strict=True)
    between_us = [np.median(whole) - np.median(parts.sum(1)) for whole, parts in pairs]
    layers = tuple(
        _layer(
            index,
            kernel,
            described[index],
            manifest.tuning,
            kernels_us[:, index],
            works[index],
            bound_of(kernels, works, index, bandwidth, threads * peak_gflops),
            threads * peak_gflops,
            float(end_to_end_us),
        )
        for index, kernel in enumerate(kernels)
    )
    near = [one.median_us for one in layers if one.median_us <= NEAR_ROOFLINE * one.roofline_us]
    return LayerProfile(
        artifact=artifact,
        machine=peak.machine_name(),
        threads=threads,
        peak_gflops=peak_gflops,
        bandwidth=bandwidth,
        layers=layers,
        end_to_end_us=float(end_to_end_us),
        p5_us=float(low),
        p95_us=float(high),
        kernels_us=float(np.median(kernels_us.sum(1))),
        between_us=float(np.median(between_us)),
        from_python_us=float(np.median(np.concatenate(timed.from_python_us))),
        launch_us=float(np.median(timed.launch_us)) if timed.launch_us else None,
        near_roofline=sum(near) / sum(one.median_us for one in layers),
        rounds=len(timed.kernels_us),
        samples=len(kernels_us),
        noise=Noise(threads, spread),
    )


def _layer(
    index: int,
    kernel: WalkedKernel,
    info: LayerInfo,
    tuning: TuningInfo,
    samples_us: _Times,
    work: Work,
    bound: Bound,
    peak_gflops: float,
    end_to_end_us: float,
) -> Layer:
    low, median_us, high = (float(x) for x in np.percentile(samples_us, (5, 50, 95)))
    gflops = None if work.flops is None else work.flops / median_us / 1e3
    lost_us = median_us - bound.us
    return Layer(
        index=index,
        label=label_of(kernel, info),
        kernel=kernel.name,
        median_us=median_us,
        p5_us=low,
        p95_us=high,
        flops=work.flops,
        input_bytes=work.input_bytes,
        weight_bytes=work.weight_bytes,
        output_bytes=work.output_bytes,
        gflops=gflops,
        gbps=work.moved_bytes / median_us / 1e3,
        peak_fraction=None if gflops is None else gflops / peak_gflops,
        roofline_us=bound.us,
        bound="FLOPs" if bound.by_flops else "bytes",
        lost_us=lost_us,
        lost_fraction=lost_us / end_to_end_us,
        schedule=schedule_of(info),
        records=info.records,
        config=short_config(tuning.records[info.records[0]]) if info.records else None,
    )
