"""What serves a layer: its own record, the nearest shape's, or the untuned default."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping

import pytest

from mobilenet_tvm import frontend, targets, zoo
from mobilenet_tvm.records import Record, Task, extract_tasks, parse_line
from mobilenet_tvm.records.nearest import (
    _candidate_knobs,
    fits,
    is_default,
    knob_distance,
    nearest_config,
)
from mobilenet_tvm.records.serving import FAR_KNOBS, GAIN, serve
from mobilenet_tvm.records.tasks import Schedules, knob_values
from mobilenet_tvm.search import AutoTvmSearcher, Failure, Trial

Make = Callable[..., Record]
LENDER, TAKER = "pointwise 1x1 64->64 @ 16x16", "pointwise 1x1 64->64 @ 12x12"


def of_model(alpha: float, resolution: int, schedules: Schedules = "ours") -> Mapping[str, Task]:
    proto = zoo.build("mobilenet_v1", alpha=alpha, resolution=resolution, classes=10)
    relay = frontend.to_relay(frontend.clean(frontend.from_proto(proto, "m")))
    tasks = extract_tasks(relay.module, targets.resolve("x86-avx512"), schedules=schedules)
    return {task.label: task for task in tasks}


@pytest.fixture(scope="module")
def measured() -> Mapping[str, Task]:
    """Tasks that there are records of."""
    return of_model(0.25, 128)


@pytest.fixture(scope="module")
def wanted() -> Mapping[str, Task]:
    """Tasks of another model."""
    return of_model(0.25, 96)


def recorded(task: Task, config: int, cost_s: float) -> Record:
    failure = None if cost_s else Failure.WRONG_OUTPUT
    trial = Trial(config, (cost_s,) if cost_s else (), failure)
    return parse_line(AutoTvmSearcher(task, trials=1, seed=0).record_line(trial))


def knobs(task: Task, config: int) -> Mapping[str, object]:
    space = task.handle.config_space
    return knob_values(space.get(config), space)


def candidate(task: Task, **wanted: int) -> int:
    """The candidate with these knobs."""
    return next(c for c in task.candidates if wanted.items() <= knobs(task, c).items())


def lent(task: Task, default_s: float | None = 2e-6, **tile: int) -> list[Record]:
    """A shape's records: one of a tile at 1 us, and the default's."""
    assert task.default is not None
    found = [recorded(task, candidate(task, **tile), 1e-6)]
    assert not is_default(found[0])
    return found + ([recorded(task, task.default, default_s)] if default_s else [])


def test_a_record_of_its_own_serves_a_layer(measured: Mapping[str, Task]) -> None:
    task = measured[LENDER]
    records = lent(task, chunks=2, rows=2, columns=4)
    served = serve([task], [records])
    assert served.best == served.exact == {task.key: records[0]}
    assert not served.transferred
    assert served.groups == {task.key: 0}


def test_the_nearest_shape_lends_its_tile_and_an_estimate(
    measured: Mapping[str, Task], wanted: Mapping[str, Task]
) -> None:
    lender, taker = measured[LENDER], wanted[TAKER]
    served = serve([taker], [lent(lender, chunks=2, rows=2, columns=4)])
    record = served.best[taker.key]
    assert served.transferred == {taker.key}
    assert served.exact == {}
    tile = knobs(taker, record.config)  # type: ignore[arg-type]
    assert (tile["chunks"], tile["rows"], tile["columns"]) == (2, 2, 4)
    assert record.cost_s == pytest.approx(1e-6 * taker.flops / lender.flops)
    assert (record.key, record.target) == (taker.key, taker.target)
    line = json.loads(record.line)
    assert line["result"][2:] == [0.0, 0.0]  # no trial took any time
    assert parse_line(record.line) == record


def test_a_shape_whose_default_is_as_good_lends_nothing(
    measured: Mapping[str, Task], wanted: Mapping[str, Task]
) -> None:
    lender, taker = measured[LENDER], wanted[TAKER]
    for default_s in (1e-6 * (GAIN - 0.01), 0.5e-6):
        assert serve([taker], [lent(lender, default_s, chunks=2, rows=2, columns=4)]).best == {}
    gains = lent(lender, 1e-6 * (GAIN + 0.01), chunks=2, rows=2, columns=4)
    assert serve([taker], [gains]).transferred


def test_a_shape_whose_default_nobody_measured_lends_nothing(
    measured: Mapping[str, Task], wanted: Mapping[str, Task]
) -> None:
    taker = wanted[TAKER]
    assert serve([taker], [lent(measured[LENDER], None, chunks=2, rows=2, columns=4)]).best == {}


def test_the_nearer_of_two_shapes_lends(
    measured: Mapping[str, Task], wanted: Mapping[str, Task]
) -> None:
    near, far, taker = measured[LENDER], measured["pointwise 1x1 32->32 @ 32x32"], wanted[TAKER]
    records = lent(far, chunks=1, rows=2, columns=4) + lent(near, chunks=4, rows=1, columns=4)
    for order in (records, records[::-1]):
        (record,) = serve([taker], [order]).best.values()
        assert knobs(taker, record.config)["chunks"] == 4  # type: ignore[arg-type]


def test_what_is_far_away_lends_nothing(
    measured: Mapping[str, Task], wanted: Mapping[str, Task]
) -> None:
    records = lent(measured["pointwise 1x1 8->16 @ 64x64"], chunks=1, rows=2, columns=4)
    assert serve([wanted["pointwise 1x1 64->128 @ 6x6"]], [records]).best == {}
    depthwise = wanted["depthwise 3x3 64 @ 12x12"]
    assert serve([depthwise], [lent(measured[LENDER], chunks=2, rows=2, columns=4)]).best == {}


def test_a_tile_with_no_like_is_not_lent(
    measured: Mapping[str, Task], wanted: Mapping[str, Task]
) -> None:
    """16 columns of 16, where 12 have divisors up to 12 only: half the tile or another shape."""
    lender, taker = measured["pointwise 1x1 32->64 @ 16x16"], wanted["pointwise 1x1 64->128 @ 6x6"]
    records = lent(lender, chunks=1, rows=1, columns=16)
    near = nearest_config(taker, records[0])
    assert near is not None
    assert near[0] > FAR_KNOBS
    assert serve([taker], [records]).best == {}


def test_what_once_computed_something_else_is_not_lent(
    measured: Mapping[str, Task], wanted: Mapping[str, Task]
) -> None:
    lender, taker = measured[LENDER], wanted[TAKER]
    records = lent(lender, chunks=2, rows=2, columns=4)
    (record,) = serve([taker], [records]).best.values()
    wrong = recorded(taker, record.config, 0)  # type: ignore[arg-type]
    assert serve([taker], [[*records, wrong]]).best == {}
    assert serve([taker], [records, [wrong]]).best == {}  # whoever found out


def test_other_threads_serve_only_as_they_are(
    measured: Mapping[str, Task], wanted: Mapping[str, Task]
) -> None:
    """How the work is shared out among threads is part of a schedule."""
    lender, taker = measured[LENDER], wanted[TAKER]
    records = lent(lender, chunks=2, rows=2, columns=4)
    served = serve([lender, taker], [[], records])
    assert served.best == {lender.key: records[0]}
    assert served.groups == {lender.key: 1}
    own = recorded(lender, lender.candidates[0], 9.0)  # however slow it is
    served = serve([lender], [[own], records])
    assert served.best == {lender.key: own}
    assert served.groups == {lender.key: 0}


def test_without_transfer_only_own_records_serve(
    measured: Mapping[str, Task], wanted: Mapping[str, Task]
) -> None:
    records = lent(measured[LENDER], chunks=2, rows=2, columns=4)
    assert serve([wanted[TAKER]], [records], transfer=False).best == {}


def test_records_of_an_older_template_are_left_out_and_counted(
    measured: Mapping[str, Task], wanted: Mapping[str, Task]
) -> None:
    lender, taker = measured[LENDER], wanted[TAKER]
    old = []
    for record in lent(lender, chunks=2, rows=2, columns=4):
        line = json.loads(record.line)
        line["config"]["entity"][0][0] = "blocks"
        old.append(parse_line(json.dumps(line)))
    served = serve([lender, taker], [old])
    assert (served.best, served.stale) == ({}, 2)


def at_another_index(record: Record, task: Task) -> Record:
    """What a record of the same knobs looks like whose template had them in another place."""
    line = json.loads(record.line)
    other = next(c for c in task.candidates if c not in (record.config, task.default))
    line["config"]["index"] = other
    return parse_line(json.dumps(line))


def test_an_index_that_stands_for_other_knobs_by_now_serves_and_bars_nothing(
    measured: Mapping[str, Task],
) -> None:
    task = measured[LENDER]
    assert task.default is not None
    good = lent(task, chunks=2, rows=2, columns=4)
    assert all(fits(task, record) for record in good)
    old = at_another_index(recorded(task, task.default, 1e-9), task)
    wrong = at_another_index(recorded(task, task.default, 0), task)
    assert not fits(task, old)
    served = serve([task], [[old, wrong]])
    assert (served.best, served.stale) == ({}, 2)
    assert isinstance(wrong.config, int)
    barred_before = recorded(task, wrong.config, 1e-7)
    assert serve([task], [[*good, old, wrong, barred_before]]).best == {task.key: barred_before}


def test_an_index_beyond_the_space_does_not_fit(measured: Mapping[str, Task]) -> None:
    task = measured[LENDER]
    line = json.loads(recorded(task, task.candidates[0], 1e-6).line)
    line["config"]["index"] = task.handle.config_space.range_length
    assert not fits(task, parse_line(json.dumps(line)))


def test_records_of_tvms_own_templates_fit() -> None:
    """They have orders and annotations, which are lists in a record and none in a space."""
    for task in of_model(0.25, 32, "stock").values():
        for config in (task.candidates[0], task.candidates[-1]):
            assert fits(task, recorded(task, config, 1e-6))


def test_all_lenders_are_compared_with_one_look_at_the_candidates(
    measured: Mapping[str, Task], wanted: Mapping[str, Task], monkeypatch: pytest.MonkeyPatch
) -> None:
    taker = wanted[TAKER]
    looks = []
    space = type(taker.handle.config_space)
    get = space.get

    def counted(self: object, index: int) -> object:
        if self is taker.handle.config_space:
            looks.append(index)
        return get(self, index)

    lenders = [measured[LENDER], measured["pointwise 1x1 32->64 @ 16x16"]]
    records = [one for task in lenders for one in lent(task, chunks=1, rows=2, columns=4)]
    unknown = [one for task in lenders for one in lent(task, None, chunks=1, rows=2, columns=4)]
    monkeypatch.setattr(space, "get", counted)
    _candidate_knobs.cache_clear()
    assert serve([taker], [unknown]).best == {}
    assert looks == []  # nobody knows what these gained
    assert serve([taker], [records]).transferred
    assert len(looks) <= len(taker.candidates) + 1  # and the one that was chosen


def test_a_tile_s_area_counts_beside_its_sides() -> None:
    tile = {"chunks": 1, "rows": 2, "columns": 7}
    assert knob_distance(tile, tile) == 0
    same_area = knob_distance({"chunks": 2, "rows": 1, "columns": 7}, tile)
    half = knob_distance({"chunks": 1, "rows": 1, "columns": 7}, tile)
    assert half == pytest.approx(same_area)  # one side less, but half the area
    assert knob_distance({"band": 4}, {"band": 2}) == pytest.approx(
        knob_distance({"band": 1}, {"band": 2})
    )
