"""The quiet-machine check, and the cores that it shares with the contenders."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

import pytest

from mobilenet_tvm import targets
from mobilenet_tvm.bench import noise
from mobilenet_tvm.bench.cores import confine, fastest_cores

needs_affinity = pytest.mark.skipif(
    not hasattr(os, "sched_getaffinity"), reason="threads cannot be bound here"
)


def test_spread_is_of_the_worst_core() -> None:
    meter = noise.NoiseMeter(1)
    meter._times_s = [[1.0] * 100, [1.0] * 50 + [2.0] * 50]
    assert meter.spread == 2.0


def test_samples_add_up_on_every_core() -> None:
    threads = targets.physical_cores()
    meter = noise.NoiseMeter(threads)
    meter.sample(2)
    meter.sample(3)
    assert [len(times_s) for times_s in meter._times_s] == [5] * threads
    assert meter.spread >= 1


@needs_affinity
def test_a_neighbour_on_the_same_core_is_noise() -> None:
    """Two processes share one core: bursts that met the other's turn take far longer."""
    code = "import sys, os; os.sched_setaffinity(0, {int(sys.argv[1])})\nprint(flush=True)\n"
    (core,) = fastest_cores(1)
    with subprocess.Popen(
        [sys.executable, "-c", code + "while True: pass", str(core)], stdout=subprocess.PIPE
    ) as neighbour:
        try:
            assert neighbour.stdout is not None
            neighbour.stdout.readline()
            spread = noise.machine_noise(1)
        finally:
            neighbour.kill()
    assert spread > noise.NOISY


@needs_affinity
def test_cores_are_the_lowest_of_the_fastest(monkeypatch: pytest.MonkeyPatch) -> None:
    big_little = {0: 1800, 1: 1800, 2: 2400, 3: 2400}
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(big_little))
    monkeypatch.setattr("mobilenet_tvm.bench.cores._max_khz", big_little.__getitem__)
    assert fastest_cores(1) == (2,)
    assert fastest_cores(3) == (2, 3, 0)


@needs_affinity
def test_confine_binds_the_calling_thread_alone() -> None:
    allowed = os.sched_getaffinity(0)
    bound: list[set[int]] = []

    def work() -> None:
        confine(fastest_cores(1))
        bound.append(os.sched_getaffinity(0))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert bound == [set(fastest_cores(1))]
    assert os.sched_getaffinity(0) == allowed
