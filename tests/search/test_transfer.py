"""Where records of other models and machines tell a run to begin."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from mobilenet_tvm import frontend, targets, zoo
from mobilenet_tvm.records import Config, Record, Task, extract_tasks, parse_line, read_log
from mobilenet_tvm.records.tasks import knob_values
from mobilenet_tvm.search import AutoTvmSearcher, Failure, Trial, first_configs

POINTWISE = "pointwise 1x1 64->64 @ 4x4"


def recorded(task: Task, config: Config, cost_s: float = 1e-6, target: str = "") -> Record:
    """A record of a configuration; of no cost, a failed one."""
    trial = Trial(config, (cost_s,)) if cost_s else Trial(config, (), Failure.RUN_ERROR)
    line = AutoTvmSearcher(task, trials=1, seed=0).record_line(trial)
    if target:
        fields = json.loads(line)
        fields["input"][0] = target
        line = json.dumps(fields)
    return parse_line(line)


@pytest.fixture(scope="module")
def by_label(tiny_tasks: tuple[Task, ...]) -> Mapping[str, Task]:
    return {task.label: task for task in tiny_tasks}


@pytest.fixture
def task(by_label: Mapping[str, Task]) -> Task:
    return by_label[POINTWISE]


@pytest.fixture(scope="module")
def half() -> Mapping[str, Task]:
    """The tasks of MobileNet V1 0.5-64, twice as wide and as high."""
    proto = zoo.build("mobilenet_v1", alpha=0.5, resolution=64, classes=10)
    relay = frontend.to_relay(frontend.clean(frontend.from_proto(proto, "half")))
    tasks = extract_tasks(relay.module, targets.resolve("x86-avx512"))
    return {task.label: task for task in tasks}


def knobs(task: Task, config: Config) -> Mapping[str, object]:
    space = task.handle.config_space
    return knob_values(space.get(config), space)


def test_without_records_nothing_is_known(tiny_tasks: tuple[Task, ...]) -> None:
    assert first_configs(tiny_tasks, []) == {}
    assert first_configs([], []) == {}


def test_fastest_record_of_the_same_task_comes_first(task: Task) -> None:
    slow, fast, failed = task.candidates[1:4]
    records = [recorded(task, slow, 3e-6), recorded(task, fast, 2e-6), recorded(task, failed, 0)]
    assert first_configs([task], records) == {task.key: [fast]}
    assert first_configs([task], records[::-1]) == {task.key: [fast]}


def test_task_whose_records_all_failed_has_nothing_to_begin_with(task: Task) -> None:
    assert first_configs([task], [recorded(task, task.candidates[0], 0)]) == {}


def test_same_task_comes_before_other_shapes(task: Task, by_label: Mapping[str, Task]) -> None:
    near = by_label["pointwise 1x1 32->64 @ 4x4"]
    own = task.candidates[-1]
    records = [recorded(near, near.candidates[0], 1e-9), recorded(task, own, 1e-3)]
    found = first_configs([task], records)[task.key]
    assert found[0] == own
    assert len(found) == 2


def test_knobs_are_carried_to_the_candidate_that_has_them(
    by_label: Mapping[str, Task], half: Mapping[str, Task]
) -> None:
    """Of the same space the very same knobs."""
    task, other = by_label["pointwise 1x1 32->32 @ 8x8"], half["pointwise 1x1 32->64 @ 16x16"]
    for config in other.candidates[::5]:
        (found,) = first_configs([task], [recorded(other, config)])[task.key]
        assert found in task.candidates
        wanted = knobs(other, config)
        if any(knobs(task, candidate) == wanted for candidate in task.candidates):
            assert knobs(task, found) == wanted


def test_nearest_candidate_where_none_has_the_knobs(
    by_label: Mapping[str, Task], half: Mapping[str, Task]
) -> None:
    small, large = by_label["depthwise 3x3 128 @ 2x2"], half["depthwise 3x3 64 @ 16x16"]
    largest = max(large.candidates, key=lambda config: str(knobs(large, config)))
    (found,) = first_configs([small], [recorded(large, largest)])[small.key]
    assert found in small.candidates


def test_nearest_shapes_of_the_template_come_first_and_are_few(
    by_label: Mapping[str, Task],
) -> None:
    task = by_label["pointwise 1x1 64->64 @ 4x4"]
    others = [
        by_label[f"pointwise 1x1 {shape}"]
        for shape in ("256->256 @ 1x1", "8->16 @ 16x16", "32->64 @ 4x4", "128->128 @ 2x2")
    ]
    records, carried = [], {}
    for number, other in enumerate(others):
        config = other.candidates[number]
        records.append(recorded(other, config))
        carried[other.label] = first_configs([task], records[-1:])[task.key][0]
    found = first_configs([task], records)[task.key]
    assert found[0] == carried["pointwise 1x1 32->64 @ 4x4"]
    assert len(found) == len(set(found)) <= 3
    farthest = [carried[other.label] for other in others[:2]]
    assert not set(farthest) <= set(found) or len(set(carried.values())) < 4


def test_templates_do_not_mix(by_label: Mapping[str, Task]) -> None:
    depthwise, pointwise = by_label["depthwise 3x3 64 @ 4x4"], by_label[POINTWISE]
    assert first_configs([pointwise], [recorded(depthwise, depthwise.candidates[0])]) == {}


def test_records_of_other_targets_rank_behind(task: Task) -> None:
    here, there = task.candidates[1], task.candidates[2]
    elsewhere = recorded(task, there, 1e-9, target="llvm -mcpu=core-avx2")
    assert elsewhere.target != str(task.handle.target)
    found = first_configs([task], [elsewhere, recorded(task, here, 1e-3)])
    assert found == {task.key: [here, there]}
    assert first_configs([task], [elsewhere]) == {task.key: [there]}


def test_ansor_takes_the_same_task_alone(task: Task, steps: Callable[[int], str]) -> None:
    target = str(task.handle.target)

    def record(key: str, number: int, cost_s: float, where: str = target) -> Record:
        return Record(key, steps(number), cost_s, 0, "", where, "ansor")

    key = '["abc", [1, 2]]'
    ansor = Task(key, POINTWISE, 1e5, 1, (), None, task.handle, "ansor")
    records = [
        record(key, 0, 2e-6),
        record(key, 1, 1e-6),
        record(key, 2, 1e-9, "llvm -keys=cpu"),
        record('["abc", [2, 4]]', 3, 1e-9),
        recorded(task, task.candidates[0]),
    ]
    assert first_configs([ansor], records) == {key: [steps(1), steps(2)]}
    # And its records say nothing to AutoTVM's task of the same layer.
    assert first_configs([task], records[:4]) == {}


@pytest.mark.parametrize("entity", [[], [["tile_q", "ot", 3]]])
def test_other_knobs_are_left_out(
    task: Task, by_label: Mapping[str, Task], entity: list[object]
) -> None:
    near = by_label["pointwise 1x1 32->64 @ 4x4"]
    fields = json.loads(recorded(near, near.candidates[0]).line)
    fields["config"]["entity"] = entity
    assert first_configs([task], [parse_line(json.dumps(fields))]) == {}


@pytest.mark.parametrize(
    "value", [5, None, {"a": 1}, [-1, 2, 3], ["x", "y"], [[1], [2]], "", 1e300], ids=str
)
@pytest.mark.parametrize("kind", ["sp", "ot"])
def test_knobs_with_senseless_values_break_nothing(
    task: Task, by_label: Mapping[str, Task], kind: str, value: object
) -> None:
    near = by_label["pointwise 1x1 32->64 @ 4x4"]
    line = recorded(near, near.candidates[0]).line
    for number, _ in enumerate(json.loads(line)["config"]["entity"]):
        fields = json.loads(line)
        knob = fields["config"]["entity"][number]
        knob[1:] = [kind, value]
        found = first_configs([task], [parse_line(json.dumps(fields))])
        if isinstance(value, list):  # where the template has one number
            assert found == {}
        for config in found.get(task.key, []):
            assert config in task.candidates


def test_template_that_no_one_knows_is_left_out(task: Task) -> None:
    fields = json.loads(recorded(task, task.candidates[0]).line)
    fields["input"][1] = "conv2d_of_someone_else"
    assert first_configs([task], [parse_line(json.dumps(fields))]) == {}


def test_damaged_lines_of_a_log_are_left_out(task: Task, tmp_path: Path) -> None:
    line = recorded(task, task.candidates[3]).line
    log = tmp_path / "damaged.autotvm.jsonl"
    log.write_text(f"{line[:200]}\n{{}}\n[]\n{line}\n\x00\x00\n")
    warnings: list[str] = []
    assert first_configs([task], read_log(log, warnings.append)) == {task.key: [task.candidates[3]]}
    assert len(warnings) == 1
