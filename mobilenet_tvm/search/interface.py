"""What a tuning run is given and gives back: a searcher, a budget, a summary."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from mobilenet_tvm.records import Config, Task
from mobilenet_tvm.search.trial import Trial


class Searcher(Protocol):
    """Proposes configurations of one task. See ``AutoTvmSearcher``."""

    @property
    def limit(self) -> int:
        """How many configurations will have been tried at the end."""

    @property
    def tried(self) -> int:
        """How many have been, those of earlier runs included."""

    @property
    def batch(self) -> int:
        """Trials between two times that it learns from them."""

    def next(self) -> Config | None:
        """The configuration to try next; may be called again before ``tell``.

        None when there is nothing left to try, or nothing before it is told of those given.
        """

    def tell(self, trial: Trial) -> None:
        """Learn from a finished trial."""

    def record_line(self, trial: Trial) -> str:
        """A trial as TVM's own record line."""


MakeSearcher = Callable[[Task, Mapping[Config, float]], Searcher]


@dataclass(frozen=True)
class Budget:
    """What a run may spend; how many trials a task is a searcher's ``limit``.

    Attributes:
        time_s: at most so many seconds of searching in this run; None is no limit.
    """

    time_s: float | None = None


@dataclass
class Summary:
    """What a run did.

    Attributes:
        trials: finished in this run.
        resumed: taken over from earlier runs.
        failures: of this run, by kind.
        first_error: the first failure's message.
        spent_s: wall-clock seconds.
        out_of_time: whether the time budget ended the run.
        by_searcher: trials of this run.
        stopped: how many tasks ended for which reason (``allocation.Reason``).
        trace: (seconds since the start, seconds of one inference by the best of each layer),
            from when each layer has something that runs, as it improved.
    """

    trials: int = 0
    resumed: int = 0
    failures: dict[str, int] = field(default_factory=dict)
    first_error: str = ""
    spent_s: float = 0.0
    out_of_time: bool = False
    by_searcher: dict[str, int] = field(default_factory=dict)
    stopped: dict[str, int] = field(default_factory=dict)
    trace: list[tuple[float, float]] = field(default_factory=list)
