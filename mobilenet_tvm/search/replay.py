"""A measurer that answers from a table: the tuning run is tested in milliseconds with it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from mobilenet_tvm.records import Config, Task
from mobilenet_tvm.search.trial import Trial


class ReplayMeasurer:
    """Answers recorded trials instead of measuring.

    Args:
        trials: the trial of each configuration, by task key and configuration.
        on_measure: called before each answer; a test may raise, kill or advance a clock in it.

    Attributes:
        asked: ``(task key, configuration)`` of every call, in order.
        best_s: ``best_s`` of every call.
    """

    def __init__(
        self,
        trials: Mapping[tuple[str, Config], Trial],
        on_measure: Callable[[Task, Config], None] | None = None,
    ) -> None:
        self._trials = trials
        self._on_measure = on_measure
        self.asked: list[tuple[str, Config]] = []
        self.best_s: list[float] = []

    def measure(
        self, task: Task, config: Config, deadline_s: float, best_s: float = float("inf")
    ) -> Trial:
        """See ``Measurer``. Nothing is compared with a reference."""
        self.asked.append((task.key, config))
        self.best_s.append(best_s)
        if self._on_measure is not None:
            self._on_measure(task, config)
        trial = self._trials[task.key, config]
        if trial.elapsed_s:
            time.sleep(trial.elapsed_s)
        return trial

    def close(self) -> None:
        """Nothing to release."""
