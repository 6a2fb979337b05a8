"""What each kernel of several builds of one model takes where it stands in the model.

The builds differ in their schedules only, so that the kernels at one place of them compute the
same. Each is in a process of its own, and they take turns: what is compared are times of the same
round.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mobilenet_tvm.bench import protocol
from mobilenet_tvm.bench.alternate import LOAD_TIMEOUT_S, Contender, Lane, check_threads, prepare
from mobilenet_tvm.bench.process import WorkerProcess
from mobilenet_tvm.bench.results import PRECISIONS, relative_error
from mobilenet_tvm.build.manifest import LayerInfo, Manifest
from mobilenet_tvm.errors import DeviceError
from mobilenet_tvm.runtime.module import open_library
from mobilenet_tvm.runtime.walk import walked_kernels

ROUNDS = 8
_ROUND_MS = 150.0  # of timed inferences each way
_WARMUP_MS = 20.0


@dataclass(frozen=True)
class InModel:
    """Times of several builds of one model.

    Attributes:
        layers: what the kernels compute, in the order in which they run.
        kernels_us: ``[builds, kernels]``, medians; infinite for a build that computes
            something else than the first one.
    """

    layers: tuple[LayerInfo, ...]
    kernels_us: npt.NDArray[np.float64]


def time_in_model(
    paths: Sequence[Path], *, threads: int, rounds: int = ROUNDS, seed: int = 0
) -> InModel:
    """Time the kernels of each build, by turns. Takes about 0.5 s a build and round.

    Raises:
        UsageError: as ``runtime.load``, or too many threads.
        DeviceError: the builds have different kernels, or a worker died, hung or failed.
    """
    check_threads([threads])
    opened = [open_library(path) for path in paths]
    layers = [_layers_of(library, manifest) for library, manifest in opened]
    if any(len(one) != len(layers[0]) for one in layers):
        raise DeviceError("the builds have different kernels: they cannot be timed one by one")
    order = random.Random(seed)
    medians_us: list[list[npt.NDArray[np.float64]]] = [[] for _ in paths]
    with ExitStack() as stack:
        lanes = []
        for path, (_, manifest) in zip(paths, opened, strict=True):
            worker = stack.enter_context(WorkerProcess(path.parent.name, threads))
            lanes.append(_loaded(path, manifest, worker, threads, seed))
        for number in range(rounds):
            for index in order.sample(range(len(lanes)), len(lanes)):
                times_us = _walk(lanes[index], kernels_first=number % 2 == 0)
                medians_us[index].append(np.median(times_us, axis=0))
        wrong = [relative_error(lane.outputs, lanes[0].outputs) for lane in lanes]
    kernels_us = _paired(np.array(medians_us))
    kernels_us[np.array(wrong) > PRECISIONS["f32"]] = math.inf
    return InModel(layers[0], kernels_us)


def _layers_of(library: Any, manifest: Manifest) -> tuple[LayerInfo, ...]:
    """What the timed kernels of a build compute."""
    infos = {info.kernel: info for info in manifest.layers}
    kernels = walked_kernels(library, manifest)
    return tuple(infos.get(kernel.name, LayerInfo(kernel.name)) for kernel in kernels)


def _loaded(path: Path, manifest: Manifest, worker: WorkerProcess, threads: int, seed: int) -> Lane:
    lane = Lane(Contender(path.parent.name, "layers", str(path)), worker)
    worker.ask(protocol.Load("layers", str(path), threads), protocol.Loaded, LOAD_TIMEOUT_S)
    worker.pause()
    prepare(lane, tuple(spec.shape for spec in manifest.inputs), seed)
    return lane


def _walk(lane: Lane, *, kernels_first: bool) -> npt.NDArray[np.float64]:
    """``[inferences, kernels]``: microseconds of one turn."""
    inferences = max(5, math.ceil(_ROUND_MS / lane.inference_ms))
    warmup = math.ceil(_WARMUP_MS / lane.inference_ms)
    timeout_s = 60 + 60 * (inferences + warmup) * lane.inference_ms / 1e3
    lane.worker.resume()
    walk = protocol.Walk(inferences, warmup, kernels_first=kernels_first)
    walked = lane.worker.ask(walk, protocol.Walked, timeout_s).kernels_us
    lane.worker.pause()
    return np.frombuffer(walked.data, walked.dtype).reshape(walked.shape).astype(np.float64)


def _paired(medians_us: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """``[builds, rounds, kernels]`` -> ``[builds, kernels]``: a round in which the machine was
    slow was slow for all builds, so they are compared within it."""
    in_round = medians_us.mean(axis=0, keepdims=True)
    share: npt.NDArray[np.float64] = np.median(medians_us / in_round, axis=1)
    return share * np.median(in_round[0], axis=0)
