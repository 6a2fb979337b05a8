"""Plans: the arithmetic against brute force, and what records they need."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mobilenet_tvm import frontend, zoo
from mobilenet_tvm.build import plans
from mobilenet_tvm.build.plans import (
    HOPELESS,
    Layer,
    Plan,
    by_estimate,
    cheapest,
    cost_s,
    make_plans,
    plan_layers,
    plan_tasks,
    rivals,
    transform_costs_s,
)
from mobilenet_tvm.frontend.layout import convolutions
from mobilenet_tvm.records import Record, Task
from mobilenet_tvm.records.tasks import convolution_label

BANDWIDTH = {"bytes_per_s": 1e6, "launch_s": 0.5}


def layer(autotvm_s: float, ansor_s: float, moved: int = 0) -> Layer:
    return Layer(autotvm_s, ansor_s, moved, moved)


def named(found: tuple[Plan, ...]) -> dict[str, Plan]:
    return {plan.name: plan for plan in found}


costs = st.one_of(st.integers(1, 50).map(float), st.just(math.inf))
layers_strategy = st.lists(
    st.builds(Layer, costs, costs, st.integers(0, 10**7), st.integers(0, 10**7)),
    min_size=1,
    max_size=7,
)


@given(layers_strategy)
def test_the_mix_is_the_cheapest_of_all_choices(layers: list[Layer]) -> None:
    layers = [x for x in layers if math.isfinite(min(x.autotvm_s, x.ansor_s))]
    borders = transform_costs_s(layers, **BANDWIDTH)
    everything = range(len(layers))
    choices = itertools.chain.from_iterable(
        itertools.combinations(everything, count) for count in range(len(layers) + 1)
    )
    least = min(cost_s(layers, borders, positions) for positions in choices)
    assert cost_s(layers, borders, cheapest(layers, borders)) == pytest.approx(least)


@given(layers_strategy)
def test_plans_are_different_possible_and_honest(layers: list[Layer]) -> None:
    found = plan_layers(layers, **BANDWIDTH)
    assert found
    assert len({plan.positions for plan in found}) == len(found)
    best_s = min(plan.estimate_s for plan in found if not plan.untuned)
    assert any(plan.dropped is None and not plan.untuned for plan in found)
    for plan in found:
        assert math.isfinite(plan.estimate_s)
        hopeless = not plan.untuned and plan.estimate_s > HOPELESS * best_s
        assert (plan.dropped is not None) == hopeless
        untuned = 0
        for index, one in enumerate(layers):
            if index in plan.positions:
                assert math.isfinite(one.ansor_s)
            elif math.isinf(one.autotvm_s):  # the untuned default, be it the only way
                untuned += math.isfinite(one.ansor_s)
        assert plan.untuned == untuned
    assert named(found)["autotvm"].positions == ()


def test_a_cost_counts_every_border_once() -> None:
    layers = [Layer(1, 10, 1_000_000, 0), Layer(2, 20, 2_000_000, 0), Layer(3, 30, 0, 4_000_000)]
    borders = transform_costs_s(layers, **BANDWIDTH)
    assert borders == (2.5, 4.5, 0.5, 8.5)  # read and written, and the launch
    assert cost_s(layers, borders, ()) == 6
    assert cost_s(layers, borders, (1,)) == 1 + 4.5 + 20 + 0.5 + 3
    assert cost_s(layers, borders, (0, 1, 2)) == 2.5 + 60 + 8.5


def test_a_gain_smaller_than_its_transforms_is_left() -> None:
    chain = [layer(5, 9), layer(5, 4.5), layer(5, 9), layer(5, 2)]
    found = named(plan_layers(chain, **BANDWIDTH))
    assert found["mix"].positions == (3,)
    assert found["fastest"].positions == (1, 3)
    assert found["mix"].estimate_s < found["fastest"].estimate_s < found["autotvm"].estimate_s


def test_equal_plans_are_one() -> None:
    assert list(named(plan_layers([layer(1, 9), layer(1, 9)], **BANDWIDTH))) == ["autotvm", "ansor"]


def test_a_hopeless_plan_says_why() -> None:
    found = named(plan_layers([layer(0.010, 0.0205)], bytes_per_s=math.inf, launch_s=0))
    assert found["autotvm"].dropped is None
    assert found["ansor"].dropped == "estimated 2x the time of autotvm"


def test_after_a_cut_short_search_by_ansor_the_untuned_build_is_measured_too() -> None:
    chain = [layer(math.inf, 1.0 if index == 5 else math.inf) for index in range(14)]
    found = plan_layers(chain, **BANDWIDTH)
    assert [(plan.name, plan.positions) for plan in found] == [("autotvm", ()), ("mix", (5,))]
    assert [plan.dropped for plan in found] == [None, None]
    assert [plan.untuned for plan in found] == [1, 0]


def test_what_an_estimate_leaves_out_makes_no_other_hopeless() -> None:
    found = named(plan_layers([layer(1, 100), layer(math.inf, 9)], **BANDWIDTH))
    assert (found["autotvm"].estimate_s, found["autotvm"].untuned) == (1, 1)
    assert found["mix"].dropped is None
    assert found["ansor"].dropped is not None


@pytest.mark.parametrize(
    ("chain", "names"),
    [
        ([layer(1, math.inf), layer(1, math.inf)], ["autotvm"]),
        ([layer(math.inf, 1), layer(math.inf, 1)], ["autotvm", "ansor"]),
        ([layer(math.inf, math.inf)], ["autotvm"]),
        ([layer(1, math.inf), layer(math.inf, 1)], ["autotvm", "mix"]),
        ([layer(math.inf, math.inf), layer(math.inf, 1)], ["autotvm", "mix"]),
        ([], ["autotvm"]),
    ],
)
def test_only_what_has_records_is_planned(chain: list[Layer], names: list[str]) -> None:
    assert list(named(plan_layers(chain, **BANDWIDTH))) == names


@pytest.fixture(scope="module")
def module() -> Any:
    model = zoo.build("mobilenet_v1", alpha=0.25, resolution=32, classes=10)
    return frontend.to_relay(frontend.clean(frontend.from_proto(model, "tiny"))).module


@pytest.fixture(scope="module")
def labels(module: Any) -> list[str]:
    from tvm import relay

    typed = relay.transform.InferType()(module)
    return [convolution_label(call) for call in convolutions(typed)]


def task(searcher: Any, label: str, kind: str = "", weight: int = 1) -> Task:
    key = f"{searcher} {label} {kind}"
    return Task(key, label, 1.0, weight, (), None, SimpleNamespace(), searcher)


def record(of: Task, cost_s: float) -> Record:
    return Record(of.key, 0, cost_s, 0, "", searcher=of.searcher)


def both(labels: list[str]) -> list[Task]:
    return [task(name, label) for name in ("autotvm", "ansor") for label in dict.fromkeys(labels)]


def test_all_layers_with_a_label_get_its_records(module: Any, labels: list[str]) -> None:
    tasks = both(labels)
    best = {t.key: record(t, 1.0 if t.searcher == "autotvm" else 0.9) for t in tasks}
    found = named(make_plans(module, tasks, best, bytes_per_s=math.inf, launch_s=0))
    assert found["autotvm"].estimate_s == pytest.approx(len(labels))
    assert found["ansor"].estimate_s == pytest.approx(0.9 * len(labels))
    assert found["ansor"].positions == tuple(range(len(labels)))


def test_each_epilogue_of_a_layer_needs_a_record(module: Any, labels: list[str]) -> None:
    tasks = both(labels)
    again = task("ansor", labels[0], "with a residual addition", weight=3)
    best = {t.key: record(t, 1.0) for t in tasks}
    assert "ansor" in named(make_plans(module, tasks, best))
    assert "ansor" not in named(make_plans(module, [*tasks, again], best))
    first = plans.layers_of(module, [*tasks, again], {**best, again.key: record(again, 2.0)})[0]
    assert first.ansor_s == pytest.approx((1 * 1.0 + 3 * 2.0) / 4)


def test_a_dense_layer_without_ansors_record_rules_ansor_out(
    module: Any, labels: list[str]
) -> None:
    dense = task("ansor", "nn_dense_add")
    pool = task("ansor", "nn_global_avg_pool2d")
    tasks = [*both(labels), dense, pool]
    best = {t.key: record(t, 1.0) for t in tasks if t not in (dense, pool)}
    assert list(named(make_plans(module, tasks, best))) == ["autotvm"]
    assert "ansor" in named(make_plans(module, tasks, {**best, dense.key: record(dense, 1.0)}))


def test_a_plans_tasks_are_those_of_its_layers(module: Any, labels: list[str]) -> None:
    pool = task("ansor", "nn_global_avg_pool2d")
    tasks = [*both(labels), pool, task("autotvm", "dense_pack 1->2")]
    assert {t.searcher for t in plan_tasks(module, tasks, None)} == {"autotvm"}
    assert len(plan_tasks(module, tasks, None)) == len(set(labels)) + 1
    found = plan_tasks(module, tasks, Plan("mix", (0,), 1.0))
    assert [t.label for t in found if t.searcher == "ansor"] == [labels[0]]
    assert {t.label for t in found if t.searcher == "autotvm"} == set(labels[1:])
    everything = plan_tasks(module, tasks, Plan("ansor", tuple(range(len(labels))), 1.0))
    assert {t.label for t in everything} == set(labels)
    assert {t.searcher for t in everything} == {"ansor"}


def test_the_untuned_build_is_a_rival_where_a_record_says_otherwise(labels: list[str]) -> None:
    first, second = task("autotvm", labels[0]), task("autotvm", labels[1])
    default = replace(first, default=record(first, 1.0).config)
    assert rivals([default, second], {}) == ()
    assert rivals([default, second], {first.key: record(first, 1.0)}) == ()
    other = {first.key: record(first, 1.0), second.key: record(second, 1.0)}
    (untuned,) = rivals([default, replace(second, default=77)], other, schedules="stock")
    assert (untuned.name, untuned.records, untuned.schedules) == ("untuned", False, "stock")
    assert by_estimate(Plan("autotvm", (), 1.0, untuned=3)) < by_estimate(untuned)


def test_tvms_templates_are_a_rival_where_one_of_them_has_a_record(labels: list[str]) -> None:
    ours = replace(task("autotvm", labels[0]), default=0)
    stock = replace(ours, key="of TVM's template")
    best = {ours.key: replace(record(ours, 1.0), config=0)}
    assert rivals([ours], best, stock_tasks=[ours, stock]) == ()  # a layer that both leave to TVM
    best |= {stock.key: record(stock, 1.0)}
    (rival,) = rivals([ours], best, stock_tasks=[ours, stock])
    assert (rival.name, rival.schedules, rival.records) == ("stock", "stock", True)
