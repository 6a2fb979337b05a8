"""What each kernel of several builds of one model takes where it stands in the model.

The builds differ in their schedules only, so that the kernels at one place of them compute the
same. Each is in a process of its own, and they take turns: what is compared are times of the same
round.
"""

from __future__ import annotations

import math
import random
from collections import defaultdict
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import numpy as np
import numpy.typing as npt

from mobilenet_tvm.bench import protocol
from mobilenet_tvm.bench.alternate import (
    Contender,
    Lane,
    check_threads,
    load,
    prepare,
    unwired,
)
from mobilenet_tvm.bench.process import WorkerProcess
from mobilenet_tvm.bench.results import relative_error
from mobilenet_tvm.build.manifest import LayerInfo, Manifest
from mobilenet_tvm.errors import DeviceError
from mobilenet_tvm.parity.tolerances import TOLERANCES
from mobilenet_tvm.runtime.module import open_library
from mobilenet_tvm.runtime.walk import describe, walked_kernels

ROUNDS = 12
_ROUND_MS = 150.0  # of timed inferences
_WARMUP_MS = 20.0

_Times = npt.NDArray[np.float64]


@dataclass(frozen=True)
class InModel:
    """What was seen.

    Attributes:
        seconds: of one call, by the record line that a kernel is scheduled by: the mean over all
            the places where it stands.
        wrong: the builds, by index, that compute something else than the first: their times are
            not counted.
    """

    seconds: dict[str, float]
    wrong: tuple[int, ...] = ()


@dataclass(frozen=True)
class _Build:
    """One build: its manifest, and what its timed kernels compute."""

    path: Path
    manifest: Manifest
    layers: tuple[LayerInfo, ...]

    def line(self, place: int) -> str | None:
        """The one record line that the kernel at a place has its schedule from."""
        indices = self.layers[place].records
        return self.manifest.tuning.records[indices[0]] if len(indices) == 1 else None


def time_in_model(
    paths: Sequence[Path], *, threads: int, rounds: int = ROUNDS, seed: int = 0
) -> InModel:
    """Time the kernels of each build, by turns. Takes about 0.25 s a build and round.

    Args:
        paths: artifacts of one model.
        threads: that they run on.
        rounds: how often each has its turn.
        seed: of the input and of the order of turns.

    Raises:
        UsageError: as ``runtime.load``; too many threads; a kernel with several outputs.
        DeviceError: the builds have different kernels, or a worker died, hung or failed.
    """
    check_threads([threads])
    builds = [_open(path) for path in paths]
    tasks = [[layer.task for layer in build.layers] for build in builds]
    if any(one != tasks[0] for one in tasks):
        raise DeviceError("the builds have different kernels, which cannot be compared one by one")
    order = random.Random(seed)
    medians_us: list[list[_Times]] = [[] for _ in builds]
    with ExitStack() as stack:
        lanes = []
        for build in builds:
            worker = stack.enter_context(WorkerProcess(build.path.parent.name, threads))
            lanes.append(_loaded(build, worker, threads, seed))
        for _ in range(rounds):
            for index in order.sample(range(len(lanes)), len(lanes)):
                medians_us[index].append(np.median(_walk(lanes[index]), axis=0))
    errors = [relative_error(lane.outputs, lanes[0].outputs) for lane in lanes]
    wrong = tuple(i for i, error in enumerate(errors) if error > TOLERANCES["float32"])
    return InModel(_by_line(builds, _paired(np.array(medians_us)), wrong), wrong)


def _open(path: Path) -> _Build:
    library, manifest = open_library(path)
    return _Build(path, manifest, describe(walked_kernels(library, manifest), manifest))


def _loaded(build: _Build, worker: WorkerProcess, threads: int, seed: int) -> Lane:
    lane = Lane(Contender(worker.label, "layers", str(build.path)), worker)
    load(lane, threads)
    prepare(lane, tuple(spec.shape for spec in build.manifest.inputs), seed)
    return lane


def _walk(lane: Lane) -> _Times:
    """``[inferences, kernels]``: microseconds of one turn."""
    inferences = max(5, math.ceil(_ROUND_MS / lane.inference_ms))
    warmup = math.ceil(_WARMUP_MS / lane.inference_ms)
    timeout_s = 60 + 60 * (inferences + warmup) * lane.inference_ms / 1e3
    lane.worker.resume()
    walk = protocol.Walk(inferences, warmup, kernels_only=True)
    walked = lane.worker.ask(walk, protocol.Walked, timeout_s)
    lane.worker.pause()
    return unwired(walked.kernels_us)


def _paired(medians_us: _Times) -> _Times:
    """``[builds, rounds, kernels]`` -> ``[builds, kernels]``: a round in which the machine was
    slow was slow for all builds, so they are compared within it."""
    in_round = medians_us.mean(axis=0, keepdims=True)
    share: _Times = np.median(medians_us / in_round, axis=1)
    typical_us: _Times = np.median(in_round[0], axis=0)
    return share * typical_us


def _by_line(
    builds: Sequence[_Build], kernels_us: _Times, wrong: Sequence[int]
) -> dict[str, float]:
    samples_s: dict[str, list[float]] = defaultdict(list)
    for index, build in enumerate(builds):
        if index in wrong:
            continue
        for place, taken_us in enumerate(kernels_us[index]):
            line = build.line(place)
            if line is not None:
                samples_s[line].append(float(taken_us) * 1e-6)
    return {line: fmean(samples) for line, samples in samples_s.items()}
