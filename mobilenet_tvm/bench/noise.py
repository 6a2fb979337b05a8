"""Whether the machine is quiet enough to measure on.

Equal bursts of work take equal time where nothing else runs; how much they differ says how
much else does.
"""

from __future__ import annotations

import threading

import numpy as np

from mobilenet_tvm.bench.cores import confine, fastest_cores
from mobilenet_tvm.bench.peak import BURSTS, burst, host_target, time_bursts

NOISY = 1.10  # p95 / p5 of the bursts above which a figure carries a warning


def machine_noise(threads: int = 1) -> float:
    """How unquiet the machine is now: p95 / p5 of equal bursts of work, 1.0 is silence.

    Runs for about 0.3 s on the ``threads`` cores that a comparison would use. Above ``NOISY``
    a latency is not to be trusted.
    """
    meter = NoiseMeter(threads)
    meter.sample(BURSTS)
    return meter.spread


class NoiseMeter:
    """Bursts on ``threads`` cores at once, to be sampled between the rounds of a comparison: a
    disturbance need not be there before it or after it."""

    def __init__(self, threads: int) -> None:
        nowhere: list[tuple[int, ...]] = [()] * threads  # where threads cannot be bound
        self._cores = [(core,) for core in fastest_cores(threads)] or nowhere
        self._bursts = [burst(host_target())[0] for _ in self._cores]
        self._times_s: list[list[float]] = [[] for _ in self._cores]

    def sample(self, bursts: int) -> None:
        """Run ``bursts`` bursts (3 ms each) on every core."""
        # The kernel runs outside Python's lock, so that threads do load that many cores.
        workers = [
            threading.Thread(target=self._sample_core, args=(index, bursts))
            for index in range(len(self._cores))
        ]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()

    @property
    def spread(self) -> float:
        """p95 / p5 of all bursts so far on the worst core."""
        ends = (np.percentile(times_s, (5, 95)) for times_s in self._times_s)
        return max(float(high) / float(low) for low, high in ends)

    def _sample_core(self, index: int, bursts: int) -> None:
        confine(self._cores[index])
        self._times_s[index] += time_bursts(self._bursts[index], bursts)
