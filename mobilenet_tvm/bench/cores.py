"""Which cores a comparison runs on: every contender on the same ones.

TVM's own pool, which builds without one of their own run on, binds its threads to the first
cores; an artifact's pool binds none, and ONNX Runtime lets its own roam. With anything else
running, the one is stuck beside it while the others move away, and at one thread they may not
even be timed on the same core.
"""

from __future__ import annotations

import os
from pathlib import Path

_FREQUENCY = "/sys/devices/system/cpu/cpu{}/cpufreq/scaling_max_freq"


def fastest_cores(count: int) -> tuple[int, ...]:
    """The ``count`` fastest cores that this process may use, lowest numbers first among equals.

    That is the order in which TVM's own pool binds its threads
    (src/runtime/threading_backend.cc). Empty where the system does not say.
    """
    if not hasattr(os, "sched_getaffinity"):
        return ()
    return tuple(sorted(os.sched_getaffinity(0), key=lambda core: (-_max_khz(core), core))[:count])


def confine(cores: tuple[int, ...]) -> None:
    """Keep the calling thread, and the threads it starts from now on, on ``cores`` if any."""
    if cores:
        os.sched_setaffinity(0, cores)


def _max_khz(core: int) -> int:
    try:
        return int(Path(_FREQUENCY.format(core)).read_text())
    except (OSError, ValueError):
        return 0  # virtual machines do not tell
