"""Which schedule Ansor tries next, on real tasks with costs that the test makes up."""

from __future__ import annotations

import json
import subprocess
import sys
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from mobilenet_tvm.records import Config, Record, Task, parse_line, write_workloads
from mobilenet_tvm.search import AnsorSearcher, CostModel, Failure, Trial, ansor
from mobilenet_tvm.search.candidates import ansor_state, ansor_steps

POINTWISE = "pointwise 1x1 128->128 @ 2x2"
DEPTHWISE = "depthwise 3x3/2 128 @ 2x2"
POOL = "nn_global_avg_pool2d"

Cost = Callable[[Config], float]


def cost_of(config: Config) -> float:
    """Seconds that follow from the configuration alone."""
    return 1e-6 * (1 + zlib.crc32(str(config).encode()) % 100)


@pytest.fixture(autouse=True)
def _quick_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ansor, "_POPULATION_PER_CORE", 32)


@pytest.fixture
def pointwise(tiny_ansor: Mapping[str, Task]) -> Task:
    return tiny_ansor[POINTWISE]


@pytest.fixture
def model() -> CostModel:
    return CostModel(seed=0, cores=1)


def run(searcher: AnsorSearcher, cost: Cost = cost_of, at_most: int = 10**6) -> list[str]:
    """What a searcher proposes, told the costs as it goes; infinite ones as failures."""
    asked: list[str] = []
    while len(asked) < at_most and (config := searcher.next()) is not None:
        asked.append(str(config))
        cost_s = cost(config)
        failed = cost_s == float("inf")
        outcome = Trial(config, (), Failure.BUILD_ERROR) if failed else Trial(config, (cost_s,))
        searcher.tell(outcome)
    return asked


def record(searcher: AnsorSearcher, config: str) -> Record:
    return parse_line(searcher.record_line(Trial(config, (cost_of(config),))))


def test_proposals_are_valid_and_never_repeat(pointwise: Task, model: CostModel) -> None:
    searcher = AnsorSearcher(pointwise, trials=56, seed=0, model=model)
    asked = run(searcher)
    assert model.trained  # the last ones came from the evolution
    assert len(asked) == len(set(asked)) == searcher.tried == searcher.limit == 56
    assert searcher.next() is None
    names = set()
    for config in asked:
        steps = json.loads(config)
        assert config == json.dumps(steps, separators=(",", ":"))  # as ``Record.config`` is
        names |= {step[0] for step in steps}
        schedule, arguments = pointwise.handle.compute_dag.apply_steps_from_state(
            ansor_state(pointwise, config)
        )
        assert len(arguments) == 4
        assert schedule.stages
    assert {"SP", "RE", "AN"} <= names  # splits, reorders, vectorized and parallel loops


@pytest.mark.parametrize("trials", [1, 5, 16, 17])
def test_limit_is_kept(pointwise: Task, model: CostModel, trials: int) -> None:
    searcher = AnsorSearcher(pointwise, trials=trials, seed=0, model=model)
    assert searcher.limit == trials
    assert len(run(searcher)) == trials


def test_order_follows_from_the_seed(pointwise: Task) -> None:
    def search(seed: int) -> list[str]:
        return run(
            AnsorSearcher(pointwise, trials=20, seed=seed, model=CostModel(seed=seed, cores=1))
        )

    assert search(1) == search(1)
    assert search(1) != search(2)


def test_first_comes_first_and_once(pointwise: Task, model: CostModel) -> None:
    first = run(AnsorSearcher(pointwise, trials=3, seed=5, model=model))
    searcher = AnsorSearcher(pointwise, trials=20, seed=5, model=model, first=first)
    asked = run(searcher)
    # The same seed would have proposed these three by itself.
    assert asked[:3] == first
    assert len(asked) == len(set(asked)) == 20


def test_what_is_done_counts_and_is_not_repeated(pointwise: Task, model: CostModel) -> None:
    whole = run(AnsorSearcher(pointwise, trials=20, seed=3, model=model))
    done: dict[Config, float] = {config: cost_of(config) for config in whole[:18]}
    searcher = AnsorSearcher(
        pointwise, trials=24, seed=3, model=model, done=done, first=whole[16:20]
    )
    assert (searcher.tried, searcher.limit) == (18, 24)
    later = run(searcher)
    assert later[:2] == whole[18:20]  # the two of ``first`` that were not done
    assert len(later) == 6
    assert not set(later) & set(done)


def test_resumed_with_all_trials_done_has_nothing_left(pointwise: Task, model: CostModel) -> None:
    done: dict[Config, float] = dict.fromkeys(
        run(AnsorSearcher(pointwise, trials=4, seed=0, model=model)), float("inf")
    )
    for trials in (3, 4):
        searcher = AnsorSearcher(pointwise, trials=trials, seed=1, model=model, done=done)
        assert (searcher.tried, searcher.next()) == (trials, None)


def test_record_lines_are_read_by_us_and_by_tvm(
    pointwise: Task, model: CostModel, tmp_path: Path
) -> None:
    from tvm import auto_scheduler

    searcher = AnsorSearcher(pointwise, trials=4, seed=0, model=model)
    trials = []
    while (config := searcher.next()) is not None:
        failure = Failure.WRONG_OUTPUT if len(trials) == 1 else None
        costs_s = () if failure else (3e-6, 1e-6, 2e-6)
        trials.append(Trial(config, costs_s, failure, elapsed_s=0.5))
        searcher.tell(trials[-1])
    log = tmp_path / "tiny.ansor.jsonl"
    log.write_text("".join(searcher.record_line(trial) + "\n" for trial in trials))

    for trial, line in zip(trials, log.read_text().splitlines(), strict=True):
        read = parse_line(line)
        assert (read.searcher, read.key, read.config) == ("ansor", pointwise.key, trial.config)
        assert read.target == str(pointwise.handle.target)
        assert read.cost_s == (None if trial.failure else 2e-6)
        assert read.error == (5 if trial.failure else 0)
    for trial, (given, result) in zip(trials, auto_scheduler.load_records(str(log)), strict=True):
        assert given.task.workload_key == pointwise.key
        assert given.task.hardware_params.num_cores == 1
        assert ansor_steps(pointwise, given.state) == trial.config
        assert (result.error_no, result.all_cost) == (5 if trial.failure else 0, 0.5)
        assert [c.value for c in result.costs] == list(trial.costs_s or (1e10,))


def test_states_are_rebuilt_from_their_steps(tiny_ansor: Mapping[str, Task]) -> None:
    from tvm import auto_scheduler

    for label in (POINTWISE, DEPTHWISE, POOL):
        task = tiny_ansor[label]
        few = {"evolutionary_search_population": 32}
        policy = auto_scheduler.SketchPolicy(task.handle, params=few, verbose=0, seed=1)
        for state in list(policy.sample_initial_population())[:8]:
            steps = ansor_steps(task, state)
            again = ansor_state(task, steps)
            assert ansor_steps(task, again) == steps
            dag = task.handle.compute_dag
            assert str(dag.infer_bound_from_state(again)) == str(dag.infer_bound_from_state(state))


def test_small_space_ends(tiny_ansor: Mapping[str, Task], model: CostModel) -> None:
    searcher = AnsorSearcher(tiny_ansor[POOL], trials=10**6, seed=0, model=model)
    asked = run(searcher, at_most=2000)
    assert 1 < len(asked) == len(set(asked)) < 2000
    assert searcher.next() is None
    # What it will have tried at the end is what it has.
    assert searcher.limit == searcher.tried == len(asked)
    done: dict[Config, float] = {config: cost_of(config) for config in asked}
    again = AnsorSearcher(tiny_ansor[POOL], trials=10**6, seed=0, model=model, done=done)
    assert not set(run(again, at_most=100)) & set(asked)


def test_one_model_learns_from_all_tasks(tiny_ansor: Mapping[str, Task], model: CostModel) -> None:
    first = AnsorSearcher(tiny_ansor[POINTWISE], trials=32, seed=0, model=model)
    second = AnsorSearcher(tiny_ansor[DEPTHWISE], trials=20, seed=0, model=model)
    run(first)
    assert not model.trained
    asked = run(second, at_most=16)
    assert model.trained  # 48 trials of two tasks
    assert len(set(asked) | set(run(second))) == 20


def test_learning_beats_chance(pointwise: Task, model: CostModel) -> None:
    def cost(config: Config) -> float:
        """Ten times as slow without a vectorized loop of eight or more."""
        lengths = [step[4][-1] for step in json.loads(str(config)) if step[0] == "SP" and step[4]]
        return 1e-6 * (1 + 20 / (1 + max(lengths)))

    searcher = AnsorSearcher(pointwise, trials=80, seed=0, model=model)
    costs = [cost(config) for config in run(searcher, cost)]
    drawn, learnt = costs[:48], costs[48:]
    assert sum(learnt) / len(learnt) < sum(drawn) / len(drawn)


@pytest.mark.parametrize("failing", ["all", "most"])
def test_failed_trials_do_not_break_it(pointwise: Task, model: CostModel, failing: str) -> None:
    def cost(config: Config) -> float:
        lucky = failing == "most" and zlib.crc32(str(config).encode()) % 4 == 0
        return cost_of(config) if lucky else float("inf")

    asked = run(AnsorSearcher(pointwise, trials=50, seed=0, model=model), cost)
    assert len(set(asked)) == 50


def test_records_of_unknown_workloads_and_of_autotvm_teach_nothing(
    pointwise: Task, model: CostModel
) -> None:
    searcher = AnsorSearcher(pointwise, trials=3, seed=0, model=model)
    known, unknown, other = (record(searcher, config) for config in run(searcher))
    unknown = parse_line(unknown.line.replace(json.loads(pointwise.key)[0], "0" * 32))
    autotvm = Record(pointwise.key, 3, 1e-6, 0, "not even a line")
    assert model.learn_records([known, unknown, autotvm, other], [pointwise.key]) == 2
    assert model.learn_records([], [pointwise.key]) == 0


def test_model_learns_from_a_log_and_its_workloads_alone(
    tiny_ansor: Mapping[str, Task], model: CostModel, tmp_path: Path
) -> None:
    """In a process that never saw the model."""
    task = tiny_ansor[DEPTHWISE]
    log = tmp_path / "other.ansor.jsonl"
    searcher = AnsorSearcher(task, trials=40, seed=0, model=model)
    log.write_text("".join(record(searcher, config).line + "\n" for config in run(searcher)))
    write_workloads(log, [task.handle])
    script = """
import sys
from pathlib import Path
from mobilenet_tvm.records import read_log, register_workloads
from mobilenet_tvm.search import CostModel
log = Path(sys.argv[1])
model = CostModel(seed=0, cores=1)
known = register_workloads(log)
print(model.learn_records(read_log(log, print), known), model.trained)
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(log)], capture_output=True, text=True, check=False
    )
    assert done.stdout.split() == ["40", "True"], done.stderr


@pytest.mark.parametrize(
    "steps",
    [
        [["SP", 0]],
        [["SP", 0, 0, 4, [0], 1]],
        [["CA", 0, 77, 3]],
    ],
)
def test_damaged_record_breaks_nothing(
    pointwise: Task, model: CostModel, steps: list[list[object]]
) -> None:
    """Steps that are JSON, and no steps of this computation."""
    searcher = AnsorSearcher(pointwise, trials=33, seed=0, model=model)
    good = [record(searcher, config) for config in run(searcher)]
    fields = json.loads(good[0].line)
    fields["i"][1][1] = steps
    bad = parse_line(json.dumps(fields))
    assert model.learn_records([bad, *good], [pointwise.key]) == len(good)
    assert model.trained
    # It counts as the best, too.
    done: dict[Config, float] = {r.config: r.cost_s or 0.0 for r in good} | {bad.config: 1e-9}
    searcher = AnsorSearcher(
        pointwise, trials=38, seed=1, model=model, done=done, first=[bad.config]
    )
    assert len(run(searcher)) == 4

    # And as another run's best it is tried and told.
    searcher = AnsorSearcher(pointwise, trials=18, seed=2, model=model, first=[bad.config])
    asked = run(searcher)
    assert asked[0] == bad.config
    assert len(asked) == 18
