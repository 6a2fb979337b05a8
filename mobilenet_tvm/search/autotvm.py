"""The AutoTVM searcher: which configuration of a task to try next.

A space that fits the number of trials is tried whole, in a seeded order. A larger one is
searched by AutoTVM's XGBoost tuner, which learns from the trials, resumed ones included.
Either way the same seed and the same trials propose the same configurations, and a run that was
cut short goes on with the very batch it was in.
"""

from __future__ import annotations

import random
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mobilenet_tvm import toolchain
from mobilenet_tvm.records import Config, Task
from mobilenet_tvm.search.trial import Trial

# Trials before the cost model is worth asking, and between two times it is asked.
_BATCH = 16


class AutoTvmSearcher:
    """Proposes configurations of one task, each at most once.

    Args:
        task: what to search.
        trials: how many may be tried in all, those of earlier runs included.
        seed: of every random choice.
        done: cost in seconds of what earlier runs tried, oldest first; infinite where it failed.
        first: configurations to try before all others but the default, best first.
    """

    def __init__(
        self,
        task: Task,
        *,
        trials: int,
        seed: int,
        done: Mapping[Config, float] | None = None,
        first: Sequence[Config] = (),
    ) -> None:
        self._task = task
        # A log may hold what is no candidate (any more).
        known = set(task.candidates)
        self._done = {
            config: cost
            for config, cost in (done or {}).items()
            if isinstance(config, int) and config in known
        }
        self._order = list(task.candidates)
        random.Random(f"{seed}:{task.key}").shuffle(self._order)
        # The default comes first, so that tuning never ends behind not tuning.
        head = [] if task.default is None else [task.default]
        head += [config for config in first if isinstance(config, int) and config in known]
        self._head = head = list(dict.fromkeys(head))
        self._order = head + [config for config in self._order if config not in head]
        self._limit = min(trials, len(self._order))
        self._seed = seed
        self._queue: list[int] = []
        self._given: set[int] = set()  # by ``next``, no trial yet
        self._features: dict[int, Any] = {}  # of the candidates, for the cost model

    @property
    def limit(self) -> int:
        """How many configurations will have been tried at the end."""
        return self._limit

    @property
    def tried(self) -> int:
        """How many have been, those of earlier runs included."""
        return min(len(self._done), self._limit)

    @property
    def batch(self) -> int:
        """Trials between two times that the cost model is asked."""
        return _BATCH

    def next(self) -> Config | None:
        """See ``Searcher``. A batch is proposed when all trials of the last one are known."""
        if len(self._done) + len(self._given) >= self._limit:
            return None
        if not self._queue and not self._given:
            self._queue = self._propose()
        if not self._queue:
            return None
        self._given.add(self._queue[-1])
        return self._queue.pop()

    def tell(self, trial: Trial) -> None:
        """Learn from a finished trial."""
        assert isinstance(trial.config, int)
        self._given.discard(trial.config)
        self._done[trial.config] = trial.cost_s

    def record_line(self, trial: Trial) -> str:
        """A trial as TVM's own record line."""
        toolchain.activate()
        from tvm.autotvm.measure import MeasureInput, MeasureResult
        from tvm.autotvm.record import encode

        handle = self._task.handle
        given = MeasureInput(handle.target, handle, handle.config_space.get(trial.config))
        error = 0 if trial.failure is None else trial.failure.measure_error
        result = MeasureResult(trial.costs_s, error, trial.elapsed_s, time.time())
        return str(encode(given, result, "json"))

    def _propose(self) -> list[int]:
        """What is left of the batch that the run is in, last one first.

        The batch follows from the trials before its beginning alone, so a resumed run, which
        knows some of the batch's own trials already, proposes what the first run would have.
        """
        fresh = [config for config in self._order if config not in self._done]
        if self._limit == len(self._order):
            return fresh[::-1]
        behind = len(self._done) % _BATCH
        before = dict(list(self._done.items())[: len(self._done) - behind])
        batch = self._ask_model(before) if before else []
        # Where the model has no idea, any.
        first = dict.fromkeys([*self._head, *batch, *fresh])
        chosen = [config for config in first if config not in self._done]
        return chosen[: _BATCH - behind][::-1]

    def _ask_model(self, done: Mapping[int, float]) -> list[int]:
        """The next batch by AutoTVM's XGBTuner, fitted to ``done``; best first.

        Every candidate is asked for: TVM's own optimizer walks the whole space at random, of which
        a GPU's candidates are a small part.
        """
        toolchain.activate()
        import xgboost
        from tvm.autotvm.tuner import XGBTuner

        # A hundred rows are not worth a second thread: OpenMP's wait for one another takes longer
        # than the work, ten times as long on a busy machine. Older releases lack the setting.
        if "nthread" in xgboost.get_config():
            xgboost.set_config(nthread=1)
        # The tuner draws from the global generators.
        random.seed(self._seed + len(done))
        np.random.seed(self._seed + len(done))  # noqa: NPY002
        handle = self._task.handle
        # xgboost >= 2 refuses the "rank" loss. Features of the knobs need no lowering, and
        # filling their cache here spares AutoTVM a pool of processes that would do it.
        tuner = XGBTuner(
            handle,
            plan_size=_BATCH,
            feature_type="knob",
            loss_type="reg",
            log_interval=10**9,
            num_threads=1,
        )
        features = tuner.cost_model.feature_cache.get("knob")
        for config in self._order:
            if config not in self._features:
                self._features[config] = handle.config_space.get(config).get_flatten_feature()
        features.update(self._features)
        gflops = [
            0.0 if cost == float("inf") else self._task.flops / cost / 1e9 for cost in done.values()
        ]
        tuner.cost_model.fit(list(done), gflops, _BATCH)
        # Of equals, of which trees have many, the order says which.
        fresh = [config for config in self._order if config not in done]
        promised = tuner.cost_model.predict(fresh)
        return [fresh[i] for i in np.argsort(-promised, kind="stable")[:_BATCH]]
