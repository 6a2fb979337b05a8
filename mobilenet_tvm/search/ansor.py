"""The Ansor searcher: which schedule of a fused subgraph to try next.

TVM's own sketches, evolution and cost model do the search (``auto_scheduler.SketchPolicy``,
``XGBModel``); only its loop is ours: it proposes one configuration at a time and is told the
outcome, like the AutoTVM searcher, so that both share one tuning run. One cost model learns from
all tasks together, records of earlier runs and other models included.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from mobilenet_tvm import toolchain
from mobilenet_tvm.errors import carries_interrupt
from mobilenet_tvm.records import Config, Record, Task
from mobilenet_tvm.search.candidates import ansor_line, ansor_state, ansor_steps
from mobilenet_tvm.search.trial import Trial

BATCH = 16
# Of a batch so many are drawn at random: what the cost model would never choose.
_RANDOM = 2
# Best schedules so far among the parents of the next generation.
_PARENTS = 16
# The evolution's population for each core. TVM's 2048 takes 30-90 s a round on two cores, for
# sixteen trials that take 4 s; this takes 2-4 s and finds V1's pointwise kernels as fast.
_POPULATION_PER_CORE = 128
# Trials of all tasks before the cost model says more than chance.
_WARM_UP = 32
# Rounds in a row without one new schedule after which a small space counts as exhausted.
_EMPTY_ROUNDS = 3


class CostModel:
    """TVM's ``XGBModel``, shared by the searchers of one run.

    It is trained anew when it knows a fifth more than at the last training, so that a round does
    not wait longer for it the longer the run is.

    Args:
        seed: of the model.
        cores: of this machine; the evolution runs on all of them.
    """

    def __init__(self, *, seed: int, cores: int) -> None:
        toolchain.activate()
        from tvm.auto_scheduler.cost_model import XGBModel

        self.cores = cores
        self.tvm = XGBModel(
            seed=seed, num_warmup_sample=_WARM_UP, verbose_eval=0, adaptive_training=True
        )
        # A thousand rows are not worth a second thread: OpenMP's wait for one another takes
        # longer than the work on a busy machine.
        self.tvm.xgb_params["nthread"] = 1

    @property
    def trained(self) -> bool:
        """Whether its word is worth more than a random choice."""
        return self.tvm.bst is not None and len(self.tvm.inputs) > _WARM_UP

    def learn(self, lines: Iterable[str]) -> int:
        """Learn from record lines whose workloads this process knows; how many there were.

        Lines whose steps do not apply are passed over: one that is let in breaks all training.
        """
        from tvm import TVMError
        from tvm.auto_scheduler.measure import recover_measure_input
        from tvm.auto_scheduler.measure_record import load_record_from_string

        pairs = []
        for line in lines:
            with contextlib.suppress(TVMError):  # and nothing else: Ctrl-C may come through it
                given, result = load_record_from_string(line)
                recover_measure_input(given, rebuild_state=True)  # takes a millisecond
                pairs.append((given, result))
        self.tvm.update([given for given, _ in pairs], [result for _, result in pairs])
        return len(pairs)

    def learn_records(self, records: Iterable[Record], known: Iterable[str]) -> int:
        """Learn from what earlier runs measured; how many there were.

        Args:
            records: of any searcher and any task.
            known: keys of the workloads that this process knows.
        """
        keys = set(known)
        return self.learn(r.line for r in records if r.searcher == "ansor" and r.key in keys)


class AnsorSearcher:
    """Proposes schedules of one task, each at most once.

    Args:
        task: what to search.
        trials: how many may be tried in all, those of earlier runs included.
        seed: of every random choice.
        model: the run's cost model; what ``done`` holds it knows already.
        done: cost in seconds of what earlier runs tried; infinite where it failed.
        first: configurations to try before all others, best first.
    """

    def __init__(
        self,
        task: Task,
        *,
        trials: int,
        seed: int,
        model: CostModel,
        done: Mapping[Config, float] | None = None,
        first: Sequence[Config] = (),
    ) -> None:
        self._task = task
        self._model = model
        self._limit = trials
        self._done = {str(config): cost for config, cost in (done or {}).items()}
        self._queue = [str(config) for config in reversed(first) if config not in self._done]
        self._given: set[str] = set()  # by ``next``, no trial yet
        self._unlearnt: list[str] = []
        self._exhausted = False
        # Text, so that every task has a seed of its own and the same one in each run.
        self._random = random.Random(f"{seed}:{task.key}:{len(self._done)}")
        self._policy: Any = None

    @property
    def limit(self) -> int:
        """How many configurations will have been tried at the end."""
        return len(self._done) if self._exhausted else self._limit

    @property
    def tried(self) -> int:
        """How many have been, those of earlier runs included."""
        return min(len(self._done), self._limit)

    @property
    def batch(self) -> int:
        """Trials between two times that it learns from them."""
        return BATCH

    def next(self) -> Config | None:
        """See ``Searcher``. A batch is proposed when all trials of the last one are known."""
        if len(self._done) + len(self._given) >= self._limit or self._exhausted:
            return None
        if self._given and not self._queue:
            return None
        rounds = 0
        while not self._queue and rounds < _EMPTY_ROUNDS:
            self._queue = self._propose()[::-1]
            rounds += 1
        self._exhausted = not self._queue
        if self._exhausted:
            return None
        self._given.add(self._queue[-1])
        return self._queue.pop()

    def tell(self, trial: Trial) -> None:
        """Learn from a finished trial."""
        self._given.discard(str(trial.config))
        self._done[str(trial.config)] = trial.cost_s
        self._unlearnt.append(self.record_line(trial))
        if not (self._queue or self._given) or len(self._unlearnt) >= BATCH:
            self._model.learn(self._unlearnt)
            self._unlearnt = []

    def record_line(self, trial: Trial) -> str:
        """A trial as TVM's own record line."""
        return ansor_line(self._task, str(trial.config), trial)

    def _propose(self) -> list[str]:
        """A batch of new configurations, the most promising first."""
        if self._policy is None:
            self._policy = self._make_policy()
        sampled = self._ask(self._policy.sample_initial_population)
        self._random.shuffle(sampled)
        chosen = []
        if self._model.trained:
            # What was tried is among the best that it yields, its parents to begin with.
            wanted = 2 * BATCH + len(self._done)
            chosen = self._ask(self._policy.evolutionary_search, sampled + self._best(), wanted)
        batch: dict[str, None] = {}  # a set that keeps its order
        for states, count in ((chosen, BATCH - _RANDOM), (sampled, BATCH)):
            for state in states:
                if len(batch) >= count:
                    break
                steps = ansor_steps(self._task, state)
                if steps not in self._done:
                    batch[steps] = None
        return list(batch)

    @staticmethod
    def _ask(search: Callable[..., Any], *arguments: Any) -> list[Any]:
        """What a step of TVM's search yields; nothing where it finds no valid state at all."""
        from tvm import TVMError

        try:
            return list(search(*arguments))
        except TVMError as error:
            if carries_interrupt(error):
                raise
            return []

    def _best(self) -> list[Any]:
        """The fastest states so far."""
        from tvm import TVMError

        ran = [(cost, steps) for steps, cost in self._done.items() if cost < float("inf")]
        states = []
        for _, steps in sorted(ran)[:_PARENTS]:
            with contextlib.suppress(TVMError):  # a log's steps may be none of this task
                states.append(ansor_state(self._task, steps))
        return states

    def _make_policy(self) -> Any:
        from tvm.auto_scheduler import SketchPolicy

        parameters = {"evolutionary_search_population": _POPULATION_PER_CORE * self._model.cores}
        return SketchPolicy(
            self._task.handle,
            self._model.tvm,
            params=parameters,
            seed=self._random.randrange(1, 1 << 30),
            verbose=0,
        )
