"""The comparison itself: contenders take turns, each in a process that is stopped meanwhile.

The thread pools of two runtimes that are both awake spin against each other and make both
several times slower; and a run of one after a run of the other meets another machine (clock,
neighbours). So rounds alternate, in a new order each time, and only one worker is ever awake.
"""

from __future__ import annotations

import contextlib
import math
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import numpy as np
import numpy.typing as npt

from mobilenet_tvm import targets
from mobilenet_tvm.bench import elsewhere, peak, protocol
from mobilenet_tvm.bench.noise import NoiseMeter
from mobilenet_tvm.bench.peers import Absent
from mobilenet_tvm.bench.process import WorkerProcess
from mobilenet_tvm.bench.results import (
    PRECISIONS,
    Agreement,
    BenchResult,
    Noise,
    Ratio,
    Timing,
    ratio_by_round,
    relative_error,
    summarize,
)
from mobilenet_tvm.errors import DeviceError, UsageError

DEFAULT_ROUNDS = 20
ROUND_MS = 200.0  # of timed inferences for each contender
WARMUP_MS = 30.0  # enough to bring the weights back into the caches and the threads awake
LOAD_TIMEOUT_S = 300.0


@dataclass(frozen=True)
class Contender:
    """Something to time: a compiled artifact, or a model in another runtime.

    Attributes:
        label: names it in the result.
        kind: what runs it.
        path: the artifact's ``.so`` (its manifest beside it), the ``.onnx``, or what a peer's
            runner takes (``cpu_runners``).
        peer: the peer that it is a row of, None for one of ours. A peer that fails is named in
            the result, and does not end the comparison.
        precision: a key of ``PRECISIONS``.
        python: that runs it, and has not this package; None is this one.
    """

    label: str
    kind: protocol.ContenderKind
    path: str
    peer: str | None = None
    precision: str = "f32"
    python: str | None = None


@dataclass
class Lane:
    """One contender while it is being timed."""

    contender: Contender
    worker: WorkerProcess
    inputs: tuple[protocol.InputSpec, ...] = ()
    outputs: list[npt.NDArray[Any]] = field(default_factory=list)
    inference_ms: float = 0.0
    rounds_ms: list[tuple[float, ...]] = field(default_factory=list)


def compare(
    contenders: Sequence[Contender],
    *,
    threads: Sequence[int] = (1,),
    rounds: int = DEFAULT_ROUNDS,
    mult_adds: int | None = None,
    seed: int = 0,
    on_round: Callable[[int, int], None] | None = None,
    absent: Sequence[Absent] = (),
) -> BenchResult:
    """Time every contender at every number of threads, in alternating rounds.

    Ratios are given for every pair, the earlier contender over the later; outputs are held
    against the first ONNX Runtime contender, or the first contender if there is none.
    A contender takes about 0.25 s a round, plus its loading time. ``on_round(threads, done)``
    is called after every round. ``absent`` peers go into the result, and so do those that fail.

    Raises:
        UsageError: nothing to time, too many threads, or contenders that are not builds of one
            model.
        DeviceError: a worker died, hung or failed.
    """
    _check(contenders, threads, rounds)
    peak_gflops = peak.measure_peak_gflops(peak.host_target())
    timings: list[Timing] = []
    ratios: list[Ratio] = []
    agreements: list[Agreement] = []
    noise: list[Noise] = []
    missing = list(absent)
    for count in threads:
        meter = NoiseMeter(count)
        lanes = _run(contenders, count, rounds, seed, meter, on_round, missing)
        noise.append(Noise(count, meter.spread))
        for lane in lanes:
            label = lane.contender.label
            # The peak is float32's.
            known = peak_gflops if lane.contender.precision == "f32" else None
            timings.append(summarize(label, count, lane.rounds_ms, mult_adds, known))
        for of, to in combinations(lanes, 2):
            labels = of.contender.label, to.contender.label
            ratios.append(ratio_by_round(*labels, count, of.rounds_ms, to.rounds_ms))
        agreements += _agreements(lanes, count)
    timed = {timing.label for timing in timings}
    peers = [one for one in contenders if one.peer is not None and one.label in timed]
    return BenchResult(
        machine=peak.machine_name(),
        peak_gflops=peak_gflops,
        timings=tuple(timings),
        ratios=tuple(ratios),
        agreements=tuple(agreements),
        noise=tuple(noise),
        peers=tuple(one.label for one in peers),
        f32_peers=tuple(one.label for one in peers if one.precision == "f32"),
        absent=tuple(dict.fromkeys(missing)),
    )


def _check(contenders: Sequence[Contender], threads: Sequence[int], rounds: int) -> None:
    if not contenders:
        raise UsageError("nothing to time: name at least one artifact")
    labels = [contender.label for contender in contenders]
    if len(set(labels)) < len(labels):
        raise UsageError(f"contenders need different labels, got {', '.join(labels)}")
    if rounds < 1:
        raise UsageError(f"--rounds must be at least 1, got {rounds}")
    check_threads(threads)


def check_threads(threads: Sequence[int]) -> None:
    """Refuse thread counts that this machine cannot run at once.

    Raises:
        UsageError: none, below 1, twice the same, or more than the cores this process may use.
    """
    cores = targets.physical_cores()
    if not threads or len(set(threads)) < len(threads):
        raise UsageError("--threads wants different numbers, e.g. --threads 1,2")
    for count in threads:
        if not 1 <= count <= cores:
            raise UsageError(f"--threads {count}: give 1 to {cores}, the cores of this machine")


def _run(
    contenders: Sequence[Contender],
    threads: int,
    rounds: int,
    seed: int,
    meter: NoiseMeter,
    on_round: Callable[[int, int], None] | None,
    missing: list[Absent],
) -> list[Lane]:
    """All rounds at one number of threads. Every worker is dead when this returns or raises.

    A peer that fails is left out, and goes to ``missing``.
    """
    order = random.Random(seed)
    with ExitStack() as stack:
        lanes: list[Lane] = []
        for contender in contenders:
            lane = Lane(contender, stack.enter_context(_start(contender, threads)))
            with _missing_if_it_fails(lane, threads, missing):
                load(lane, threads)
                if contender.peer is not None:
                    _check_alike([*lanes, lane])
                lanes.append(lane)
        shapes = common_shapes(lanes)
        reference: Lane | None = None
        prepared = []
        for lane in sorted(lanes, key=lambda lane: lane.contender.kind != "onnxruntime"):
            with _missing_if_it_fails(lane, threads, missing):
                prepare(lane, shapes, seed)
                reference = reference or lane
                if lane.contender.peer is not None:
                    _check_outputs(lane, reference)
                prepared.append(lane)
        lanes = [lane for lane in lanes if lane in prepared]
        for done in range(1, rounds + 1):
            meter.sample(math.ceil(peak.BURSTS / rounds))
            for lane in order.sample(lanes, len(lanes)):
                with _missing_if_it_fails(lane, threads, missing):
                    _round(lane)
            lanes = [lane for lane in lanes if len(lane.rounds_ms) == done]
            if on_round is not None:
                on_round(threads, done)
    return lanes


def _start(contender: Contender, threads: int) -> WorkerProcess:
    if contender.python is None:
        return WorkerProcess(contender.label, threads)
    command = elsewhere.command(contender.python, "worker")
    return WorkerProcess(contender.label, threads, command)


def load(lane: Lane, threads: int) -> None:
    """Have a contender's worker load its model, and stop it."""
    request = protocol.Load(lane.contender.kind, lane.contender.path, threads)
    lane.inputs = lane.worker.ask(request, protocol.Loaded, LOAD_TIMEOUT_S).inputs
    lane.worker.pause()


@contextlib.contextmanager
def _missing_if_it_fails(lane: Lane, threads: int, missing: list[Absent]) -> Iterator[None]:
    """A peer that does not get through the block is named, and does not end the rest."""
    try:
        yield
    except (UsageError, DeviceError) as error:
        label = lane.contender.label
        if lane.contender.peer is None:
            raise
        lane.worker.close()  # it may be awake still
        plural = "" if threads == 1 else "s"
        reason = str(error).removeprefix(f"{label}: ")
        missing.append(Absent(label, f"it fails here at {threads} thread{plural}: {reason}"))


def prepare(
    lane: Lane,
    shapes: tuple[tuple[int, ...], ...],
    seed: int,
    timeout_s: float = LOAD_TIMEOUT_S,
) -> protocol.Prepared:
    """Have a contender run once on the input that ``seed`` makes, and keep its outputs."""
    lane.worker.resume()
    request = protocol.Prepare(shapes, seed)
    prepared = lane.worker.ask(request, protocol.Prepared, timeout_s)
    lane.worker.pause()
    lane.inference_ms = max(prepared.inference_ms, 1e-3)
    lane.outputs = [unwired(array) for array in prepared.outputs]
    return prepared


def unwired(array: protocol.Array) -> npt.NDArray[Any]:
    """An array that a worker sent."""
    return np.frombuffer(array.data, array.dtype).reshape(array.shape)


def _round(lane: Lane) -> None:
    """One turn of one contender."""
    inferences = math.ceil(ROUND_MS / lane.inference_ms)
    warmup = math.ceil(WARMUP_MS / lane.inference_ms)
    timeout_s = 60 + 20 * (inferences + warmup) * lane.inference_ms / 1e3
    lane.worker.resume()
    request = protocol.Measure(inferences, warmup)
    lane.rounds_ms.append(lane.worker.ask(request, protocol.Measured, timeout_s).times_ms)
    lane.worker.pause()


def common_shapes(lanes: Sequence[Lane]) -> tuple[tuple[int, ...], ...]:
    """The input shapes that all contenders take; one may leave open what another fixes."""
    first = lanes[0]
    shapes: list[tuple[int, ...]] = []
    for lane in lanes[1:]:
        if len(lane.inputs) != len(first.inputs):
            raise _different(first, lane)
    for specs in zip(*(lane.inputs for lane in lanes), strict=True):
        for lane, spec in zip(lanes, specs, strict=True):
            if (len(spec.shape), spec.dtype) != (len(specs[0].shape), specs[0].dtype):
                raise _different(first, lane)
        shape: list[int] = []
        for sizes in zip(*(spec.shape for spec in specs), strict=True):
            fixed = {size for size in sizes if size is not None}
            if len(fixed) > 1:
                raise _different(first, *lanes[1:])
            if not fixed:
                raise UsageError(
                    f"no contender fixes the shape of input {specs[0].name} "
                    f"({_shape_text(specs[0])}): compile it with --shape first"
                )
            shape.append(fixed.pop())
        shapes.append(tuple(shape))
    return tuple(shapes)


def _different(*lanes: Lane) -> UsageError:
    takes = "; ".join(
        f"{lane.contender.label} takes {', '.join(map(_shape_text, lane.inputs))}" for lane in lanes
    )
    return UsageError(f"the contenders are not builds of one model: {takes}")


def _shape_text(spec: protocol.InputSpec) -> str:
    return f"[{', '.join('?' if size is None else str(size) for size in spec.shape)}] {spec.dtype}"


def _check_alike(lanes: Sequence[Lane]) -> None:
    """UsageError unless the last one takes what the first one takes, as far as both say."""
    first, lane = lanes[0], lanes[-1]
    takes = [[(len(spec.shape), spec.dtype) for spec in one.inputs] for one in (first, lane)]
    sizes = [
        (here, there)
        for mine, theirs in zip(first.inputs, lane.inputs, strict=False)
        for here, there in zip(mine.shape, theirs.shape, strict=False)
    ]
    if takes[0] != takes[1] or any(None not in (a, b) and a != b for a, b in sizes):
        raise _different(first, lane)


def _check_outputs(lane: Lane, reference: Lane) -> None:
    if [output.shape for output in lane.outputs] != [o.shape for o in reference.outputs]:
        raise UsageError(
            f"{lane.contender.label} and {reference.contender.label} have outputs of "
            "different shapes: they are not builds of one model"
        )


def _agreements(lanes: Sequence[Lane], threads: int) -> list[Agreement]:
    kinds = [lane.contender.kind for lane in lanes]
    reference = lanes[kinds.index("onnxruntime") if "onnxruntime" in kinds else 0]
    found = []
    for lane in lanes:
        if lane is reference:
            continue
        _check_outputs(lane, reference)
        error = relative_error(lane.outputs, reference.outputs)
        labels = lane.contender.label, reference.contender.label
        found.append(Agreement(*labels, threads, error, PRECISIONS[lane.contender.precision]))
    return found
