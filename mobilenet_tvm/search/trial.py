"""One trial and how it can fail: failures are types, not strings."""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import median

from mobilenet_tvm.records import Config


class Failure(enum.Enum):
    """Why a trial has no cost. ``value`` is its name in run files and on screen."""

    BUILD_ERROR = "build_error"
    BUILD_TIMEOUT = "build_timeout"
    RUN_ERROR = "run_error"
    RUN_TIMEOUT = "run_timeout"
    WRONG_OUTPUT = "wrong_output"

    @property
    def measure_error(self) -> int:
        """TVM's ``MeasureErrorNo`` for it (tvm/autotvm/measure/measure.py)."""
        return _MEASURE_ERRORS[self]

    @staticmethod
    def of_measure_error(number: int) -> Failure:
        """The failure that a record line's error number stands for."""
        by_number = {error: failure for failure, error in _MEASURE_ERRORS.items()}
        # 1 is TVM's INSTANTIATION_ERROR, 3 its COMPILE_DEVICE: both are build errors here.
        return by_number.get(number, Failure.BUILD_ERROR)


_MEASURE_ERRORS = {
    Failure.BUILD_ERROR: 2,
    Failure.RUN_ERROR: 4,
    Failure.WRONG_OUTPUT: 5,
    Failure.BUILD_TIMEOUT: 6,
    Failure.RUN_TIMEOUT: 7,
}


def count_failures(errors: Iterable[int]) -> dict[str, int]:
    """How often each kind of failure stands behind TVM's error numbers; 0 is a success."""
    counts = Counter(Failure.of_measure_error(error).value for error in errors if error)
    return dict(sorted(counts.items()))


@dataclass(frozen=True)
class Trial:
    """The outcome of one configuration.

    Attributes:
        config: index in the task's space, or the text of Ansor's transform steps.
        costs_s: seconds of one call, one figure a repeat; empty when it failed.
        failure: why it failed, or None.
        message: the first line of the real error, for people.
        elapsed_s: wall-clock seconds the trial took, building included.
    """

    config: Config
    costs_s: tuple[float, ...]
    failure: Failure | None = None
    message: str = ""
    elapsed_s: float = 0.0

    @property
    def cost_s(self) -> float:
        """Median of the repeats; infinite when the trial failed."""
        return median(self.costs_s) if self.costs_s else float("inf")
