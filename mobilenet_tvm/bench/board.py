"""The comparison on a board: contenders take turns in one session over TVM's RPC.

All of them run in one process there. Each has a thread pool of its own, whose idle threads give the
cores up a fraction of a millisecond after its turn, so that they do not fight for them as two
runtimes would; a round's order is drawn anew, as in ``alternate``.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mobilenet_tvm.bench.alternate import DEFAULT_ROUNDS, ROUND_MS, WARMUP_MS
from mobilenet_tvm.bench.results import (
    Agreement,
    BenchResult,
    Timing,
    ratio_by_round,
    relative_error,
    summarize,
)
from mobilenet_tvm.build.manifest import Manifest, read_manifest
from mobilenet_tvm.errors import DeviceError
from mobilenet_tvm.runtime.module import set_threads

if TYPE_CHECKING:
    from mobilenet_tvm.devices.rpc import BoardSession, RpcDevice

# A board ends a session after this, whatever goes on in it; loading and sending included.
_SESSION_S = 1800.0
_LOAD_S = 120.0
# Of a board that others use, too, or that is being started again.
_WAIT_S = 120.0


@dataclass
class _Lane:
    """One artifact on the board while it is being timed."""

    label: str
    module: Any
    inference_ms: float = 0.0
    outputs: list[Any] = field(default_factory=list)
    rounds_ms: list[tuple[float, ...]] = field(default_factory=list)


def compare_on_board(
    device: RpcDevice,
    artifacts: Sequence[tuple[str, Path]],
    *,
    cpu: str,
    threads: Sequence[int] = (1,),
    rounds: int = DEFAULT_ROUNDS,
    mult_adds: int | None = None,
    seed: int = 0,
    wait_s: float = _WAIT_S,
) -> BenchResult:
    """Time artifacts of one model on a board, in alternating rounds.

    Args:
        device: where boards are.
        artifacts: labels and ``.so`` files, their manifests beside them.
        cpu: what the board's CPU must be.
        threads: to run with, one after the other.
        rounds: at each number of threads.
        mult_adds: of the network, for GFLOP/s.
        seed: of the input and of the order.
        wait_s: how long to wait for a free board of that CPU.

    Raises:
        DeviceError: no board, or it was lost.
    """
    timings: list[Timing] = []
    ratios, agreements = [], []
    with open_board(device, cpu, wait_s) as session:
        order = random.Random(seed)
        for count in threads:
            lanes = [_load(session, label, path, seed, count) for label, path in artifacts]
            for _ in range(rounds):
                for lane in order.sample(lanes, len(lanes)):
                    _round(session, lane)
            for lane in lanes:
                timings.append(summarize(lane.label, count, lane.rounds_ms, mult_adds, None))
            for of, to in combinations(lanes, 2):
                ratios.append(ratio_by_round(of.label, to.label, count, of.rounds_ms, to.rounds_ms))
            first = lanes[0]
            agreements += [
                Agreement(
                    lane.label, first.label, count, relative_error(lane.outputs, first.outputs)
                )
                for lane in lanes[1:]
            ]
    return BenchResult(
        machine=cpu,
        peak_gflops=None,
        timings=tuple(timings),
        ratios=tuple(ratios),
        agreements=tuple(agreements),
        noise=(),
    )


def open_board(device: RpcDevice, cpu: str, wait_s: float = _WAIT_S) -> BoardSession:
    """A session on a board of that CPU; others are passed over.

    Raises:
        DeviceError: none came free in time.
    """
    held: list[BoardSession] = []
    try:
        for _ in range(max(device.boards(), 1)):
            session = device.open(session_timeout_s=_SESSION_S, wait_s=wait_s)
            if session.cpu_name() == cpu:
                return session
            held.append(session)  # or the tracker would offer it again
    finally:
        for odd in held:
            odd.close()
    raise DeviceError(f"no board with key {device.key} is {cpu} any more")


def _load(session: BoardSession, label: str, path: Path, seed: int, threads: int) -> _Lane:
    """Send an artifact, run it once on a random input, and see how long it takes."""
    manifest = read_manifest(path)
    with session.calls(limit_s=_LOAD_S):
        from tvm.contrib import graph_executor

        library = session.upload(path)
        set_threads(library, threads, session.function("runtime.config_threadpool"))
        module = graph_executor.GraphModule(library["default"](session.device()))
        for name, data in _inputs(manifest, seed).items():
            module.set_input(name, data)
        module.run()
        outputs = [module.get_output(i).numpy() for i in range(len(manifest.outputs))]
    lane = _Lane(label, module, outputs=outputs)
    lane.inference_ms = max(min(_time(session, lane, 3)), 1e-3)
    return lane


def _inputs(manifest: Manifest, seed: int) -> dict[str, Any]:
    draw = np.random.default_rng(seed)
    return {
        spec.name: draw.uniform(-1, 1, spec.shape).astype(spec.dtype) for spec in manifest.inputs
    }


def _round(session: BoardSession, lane: _Lane) -> None:
    """One turn of one artifact."""
    warm = math.ceil(WARMUP_MS / lane.inference_ms)
    times_ms = _time(session, lane, warm + math.ceil(ROUND_MS / lane.inference_ms))
    lane.rounds_ms.append(times_ms[warm:])


def _time(session: BoardSession, lane: _Lane, inferences: int) -> tuple[float, ...]:
    """Milliseconds of so many inferences, timed on the board."""
    limit_s = _LOAD_S + 20 * inferences * lane.inference_ms / 1e3
    with session.calls(limit_s=limit_s):
        timer = lane.module.module.time_evaluator(
            "run", session.device(), number=1, repeat=inferences
        )
        return tuple(1e3 * seconds for seconds in timer().results)
