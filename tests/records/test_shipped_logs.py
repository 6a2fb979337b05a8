"""The logs that come with the package: whole, and of use to the model that they are of."""

from __future__ import annotations

from pathlib import Path

import pytest

from mobilenet_tvm import frontend, targets, tuning_logs, zoo
from mobilenet_tvm.records import (
    best_records,
    choose_records,
    extract_tasks,
    read_log,
    read_run,
    register_workloads,
)
from mobilenet_tvm.records.choose import gain
from mobilenet_tvm.records.nearest import is_default

LOGS = sorted(Path(tuning_logs.__path__[0]).rglob("*.jsonl"))


# With no board there is nothing but an estimate (docs/estimate.md), and the logs say so.
ESTIMATED = ("neoverse-n1", "rpi4")


def never(warning: str) -> None:
    raise AssertionError(warning)


def test_there_are_some() -> None:
    assert {log.parent.name for log in LOGS} == {"x86-avx512", "x86-avx2", *ESTIMATED}
    assert {log.name.split(".")[-2] for log in LOGS} == {"autotvm", "ansor"}


@pytest.mark.parametrize("log", LOGS, ids=lambda log: log.name)
def test_each_is_the_best_of_the_trials_of_its_preset(log: Path) -> None:
    records, run = read_log(log, never), read_run(log)
    assert run is not None
    timing = "estimated" if log.parent.name in ESTIMATED else "measured"
    assert (run.preset, run.timing) == (log.parent.name, timing)
    assert run.searcher == log.name.split(".")[-2]
    # And the untuned defaults', which say what the best ones gain.
    best = best_records(records)
    rest = [record for record in records if best[record.key] != record]
    assert all(is_default(record) for record in rest)
    assert len(best) > 10
    if run.searcher == "ansor":
        assert register_workloads(log) >= {record.key for record in records}


@pytest.mark.parametrize("name", ["x86-avx512", *ESTIMATED])
def test_v1_begins_with_a_record_for_each_convolution(name: str) -> None:
    preset = targets.resolve(name)
    relay = frontend.to_relay(frontend.clean(frontend.from_proto(zoo.build("mobilenet_v1"), "v1")))
    tasks = extract_tasks(relay.module, preset)
    records = [record for log in LOGS for record in read_log(log, never)]
    missing = {task.label for task in tasks} - {
        task.label for task in tasks if task.key in choose_records(tasks, records)
    }
    # The estimated records are of a model with a class for the background.
    assert missing == ({"pointwise 1x1 1024->1000 @ 1x1"} if name in ESTIMATED else set())


@pytest.mark.parametrize("preset", ["x86-avx512", "x86-avx2"])
def test_untuned_is_near_tuned_on_every_layer_of_v1(preset: str) -> None:
    """What the arithmetic model picks, against the best that a search found: both were measured,
    and timed in the model."""
    folder = Path(tuning_logs.__path__[0]) / preset
    records = list(read_log(folder / "mobilenet_v1_1.0_224.autotvm.jsonl", never))
    best = best_records(records)
    defaults = [record for record in records if is_default(record)]
    assert len(defaults) > 15
    for record in defaults:
        gained = gain(best[record.key], over=record)
        assert gained is not None
        assert gained <= 1.5, record.line[:200]


@pytest.mark.parametrize(
    "log", [log for log in LOGS if log.parent.name.startswith("x86")], ids=lambda log: log.name
)
def test_winners_of_finals_are_handed_on(log: Path) -> None:
    """What AutoTVM found on x86 was timed in the model that the log is of."""
    run = read_run(log)
    assert run is not None
    if run.searcher == "autotvm":
        records = list(read_log(log, never))
        assert {record.in_model_of for record in records} <= {run.model_digest, ""}
        assert all(record.in_model_s for record in best_records(records).values())
