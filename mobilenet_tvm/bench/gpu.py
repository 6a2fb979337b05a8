"""The comparison on this machine's GPU: contenders take turns there, each in its own process.

As in ``alternate``, a worker is stopped while it is not its turn: its context keeps its memory
on the GPU, and launches nothing.
"""

from __future__ import annotations

import contextlib
import math
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path

import numpy as np

from mobilenet_tvm import cuda, targets
from mobilenet_tvm.bench import alternate, protocol
from mobilenet_tvm.bench.alternate import DEFAULT_ROUNDS, Contender
from mobilenet_tvm.bench.gpu_peers import PEERS, find_peers
from mobilenet_tvm.bench.gpu_results import GpuBenchResult, GpuRatio, GpuTiming
from mobilenet_tvm.bench.peak import machine_name
from mobilenet_tvm.bench.peers import Absent, PeerRow
from mobilenet_tvm.bench.process import WorkerProcess
from mobilenet_tvm.bench.results import Agreement, ratio_by_round, relative_error, summarize
from mobilenet_tvm.cuda.errors import CudaError
from mobilenet_tvm.cuda.gpu import GpuInfo, find_gpu, watch, why_none
from mobilenet_tvm.errors import DeviceError, UsageError

# TensorRT tries kernels for each layer before it answers, and PyTorch compiles its own.
_PREPARE_TIMEOUT_S = 900.0
_REFERENCE = "ONNX Runtime on the CPU"


@dataclass
class _Lane(alternate.Lane):
    """One contender on the GPU while it is being timed."""

    round_trip_ms: float = 0.0
    round_trips_ms: list[tuple[float, ...]] = field(default_factory=list)


def require_gpu() -> GpuInfo:
    """The GPU that latencies would be of.

    Raises:
        UsageError: the emulator stands for it, which has no latency.
        CudaError: this machine has none.
    """
    if cuda.emulated():
        raise UsageError(
            f"no latency under emulation: unset {cuda.DEVICE_VARIABLE} on a machine with an NVIDIA "
            "GPU; the emulator checks results (python -m mobilenet_tvm.check --device emulated)"
        )
    found = find_gpu()
    if found is None:
        raise CudaError(
            f"{why_none()}: latencies are measured on one; without it python -m "
            "mobilenet_tvm.check --device emulated checks the results"
        )
    return found


def compare_on_gpu(
    artifacts: Sequence[tuple[str, Path]],
    *,
    onnx: Path | None = None,
    peers: Sequence[str] = tuple(PEERS),
    graphs: bool = True,
    rounds: int = DEFAULT_ROUNDS,
    mult_adds: int | None = None,
    seed: int = 0,
    on_round: Callable[[int], None] | None = None,
) -> GpuBenchResult:
    """Time artifacts of one model, and the same model in other runtimes, on this machine's GPU.

    Args:
        artifacts: labels and ``.so`` files, their manifests beside them.
        onnx: the model's file, for the peers and for the reference on the CPU; None runs neither.
        peers: keys of ``PEERS``; those that do not run are named in the result.
        graphs: time each contender that can as one CUDA graph, too.
        rounds: counted ones; one more, which brings the GPU's clock up, goes before.
        mult_adds: of the network, for GFLOP/s.
        seed: of the input and of the order.
        on_round: called with the number of rounds done.

    Raises:
        UsageError: nothing to time, or contenders that are not builds of one model; the emulator
            stands for the GPU.
        CudaError: there is no GPU.
        DeviceError: an artifact's worker died, hung or failed.
    """
    info = require_gpu()
    if rounds < 1:
        raise UsageError(f"--rounds must be at least 1, got {rounds}")
    contenders, pairs = _artifact_contenders(artifacts, graphs=graphs)
    rows, absent = find_peers(peers, graphs=graphs) if onnx is not None else ([], [])
    order = random.Random(seed)
    with ExitStack() as stack:
        lanes = [_load(stack, contender) for contender in contenders]
        others: list[tuple[PeerRow, _Lane]] = []
        for row in rows:
            with _absent_if_it_fails(row, absent):
                others.append((row, _load(stack, Contender(row.label, row.kind, str(onnx)))))
        shapes = alternate.common_shapes([*lanes, *(lane for _, lane in others)])
        for lane in lanes:
            _prepare(lane, shapes, seed)
        for row, lane in others:
            with _absent_if_it_fails(row, absent):
                _prepare(lane, shapes, seed)
                lanes.append(lane)
        reference = lanes[0]
        if onnx is not None:
            reference = _load(stack, Contender(_REFERENCE, "onnxruntime", str(onnx)))
            _prepare(reference, shapes, seed)
        agreements = _agreements(lanes, reference)
        with watch() as seen:
            for done in range(rounds + 1):
                for lane in order.sample(lanes, len(lanes)):
                    _round(lane, counted=done > 0)
                if on_round is not None:
                    on_round(done)
            seen.sample()
    return GpuBenchResult(
        machine=f"{info}; host {machine_name()}",
        gpu=info,
        state=seen.summary(),
        timings=tuple(_timing(lane, mult_adds) for lane in lanes),
        ratios=tuple(_ratio(of, to) for of, to in combinations(lanes, 2)),
        agreements=agreements,
        absent=tuple(absent),
        graphs=pairs,
    )


def _artifact_contenders(
    artifacts: Sequence[tuple[str, Path]], *, graphs: bool
) -> tuple[list[Contender], tuple[tuple[str, str], ...]]:
    """Contenders, and which is which one's CUDA graph."""
    if not artifacts:
        raise UsageError("nothing to time: name at least one artifact")
    contenders, pairs = [], []
    for label, path in artifacts:
        contenders.append(Contender(label, "cuda-artifact", str(path)))
        if graphs:
            pairs.append((label, f"{label}, graph"))
            contenders.append(Contender(pairs[-1][1], "cuda-artifact-graph", str(path)))
    return contenders, tuple(pairs)


def _load(stack: ExitStack, contender: Contender) -> _Lane:
    threads = targets.physical_cores()
    worker = stack.enter_context(WorkerProcess(contender.label, threads))
    lane = _Lane(contender, worker)
    request = protocol.Load(contender.kind, contender.path, threads)
    with _closed_if_it_fails(worker):
        lane.inputs = worker.ask(request, protocol.Loaded, _PREPARE_TIMEOUT_S).inputs
        worker.pause()
    return lane


def _prepare(lane: _Lane, shapes: tuple[tuple[int, ...], ...], seed: int) -> None:
    with _closed_if_it_fails(lane.worker):
        prepared = alternate.prepare(lane, shapes, seed, timeout_s=_PREPARE_TIMEOUT_S)
    lane.round_trip_ms = max(prepared.round_trip_ms or 0.0, 1e-3)


@contextlib.contextmanager
def _closed_if_it_fails(worker: WorkerProcess) -> Iterator[None]:
    """It would keep its memory on the GPU."""
    try:
        yield
    except BaseException:
        worker.close()
        raise


@contextlib.contextmanager
def _absent_if_it_fails(row: PeerRow, absent: list[Absent]) -> Iterator[None]:
    """A peer that does not get through the block is named, and does not end the rest."""
    try:
        yield
    except (UsageError, DeviceError) as error:
        reason = str(error).removeprefix(f"{row.label}: ")
        absent.append(Absent(row.label, f"it fails here: {reason}", PEERS[row.peer].command))


def _round(lane: _Lane, *, counted: bool) -> None:
    """One turn of one contender: half of it without copies, half with them."""
    lane.worker.resume()
    for times_ms, one_ms, copies in (
        (lane.rounds_ms, lane.inference_ms, False),
        (lane.round_trips_ms, lane.round_trip_ms, True),
    ):
        inferences = math.ceil(alternate.ROUND_MS / 2 / one_ms)
        warmup = math.ceil(alternate.WARMUP_MS / one_ms)
        timeout_s = 60 + 20 * (inferences + warmup) * one_ms / 1e3
        request = protocol.Measure(inferences, warmup, copies)
        measured = lane.worker.ask(request, protocol.Measured, timeout_s).times_ms
        if counted:
            times_ms.append(measured)
    lane.worker.pause()


def _timing(lane: _Lane, mult_adds: int | None) -> GpuTiming:
    inference = summarize(lane.contender.label, 1, lane.rounds_ms, mult_adds, None)
    whole = summarize(lane.contender.label, 1, lane.round_trips_ms, None, None)
    return GpuTiming(
        label=inference.label,
        median_ms=inference.median_ms,
        p5_ms=inference.p5_ms,
        p95_ms=inference.p95_ms,
        end_to_end_ms=whole.median_ms,
        end_to_end_p5_ms=whole.p5_ms,
        end_to_end_p95_ms=whole.p95_ms,
        gflops=inference.gflops,
        rounds=inference.rounds,
        samples=inference.samples,
    )


def _ratio(of: _Lane, to: _Lane) -> GpuRatio:
    labels = of.contender.label, to.contender.label
    plain = ratio_by_round(*labels, 1, of.rounds_ms, to.rounds_ms)
    whole = ratio_by_round(*labels, 1, of.round_trips_ms, to.round_trips_ms)
    return GpuRatio(*labels, plain.median, plain.p5, plain.p95, whole.median)


def _agreements(lanes: Sequence[_Lane], reference: _Lane) -> tuple[Agreement, ...]:
    found = []
    for lane in lanes:
        if lane is reference:
            continue
        labels = lane.contender.label, reference.contender.label
        if [np.shape(one) for one in lane.outputs] != [np.shape(one) for one in reference.outputs]:
            raise UsageError(
                f"{labels[0]} and {labels[1]} have outputs of different shapes: they are not "
                "builds of one model"
            )
        error = relative_error(lane.outputs, reference.outputs)
        found.append(Agreement(*labels, 1, error))
    return tuple(found)
