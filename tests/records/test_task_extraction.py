"""The tasks of a model are the ones that TVM itself would find, counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

import mobilenet_tvm.schedules
from mobilenet_tvm import targets
from mobilenet_tvm.frontend import RelayModel
from mobilenet_tvm.records import Task, extract_tasks


@pytest.fixture
def stock_tasks(tiny_relay: RelayModel) -> Iterator[tuple[Task, ...]]:
    tasks = extract_tasks(tiny_relay.module, targets.resolve("x86-avx512"), schedules="stock")
    mobilenet_tvm.schedules.use("stock")  # for TVM's own extraction, to compare with
    yield tasks
    mobilenet_tvm.schedules.use("ours")


def tvm_finds(module: Any) -> list[str]:
    """The workloads that AutoTVM's own extraction finds by lowering the whole model."""
    from tvm import autotvm

    target = targets.resolve("x86-avx512").target
    found = autotvm.task.extract_from_program(module["main"], target=target, params={})
    return sorted(str(task.workload) for task in found)


def layers(module: Any) -> Counter[str]:
    """The layers of a Relay module by kind."""
    from tvm import relay

    found: Counter[str] = Counter()

    def visit(node: Any) -> None:
        if isinstance(node, relay.Call) and getattr(node.op, "name", "") == "nn.conv2d":
            pointwise = tuple(node.attrs.kernel_size) == (1, 1)
            kind = "depthwise" if node.attrs.groups > 1 else "pointwise" if pointwise else "conv"
            found[kind] += 1

    relay.analysis.post_order_visit(module["main"], visit)
    return found


def test_stock_tasks_are_those_that_tvm_extracts(
    tiny_relay: RelayModel, stock_tasks: tuple[Task, ...]
) -> None:
    assert sorted(task.key for task in stock_tasks) == tvm_finds(tiny_relay.module)
    names = {task.handle.name for task in stock_tasks}
    assert names == {"conv2d_NCHWc.x86", "depthwise_conv2d_NCHWc.x86"}


def test_our_tasks_are_those_that_tvm_extracts(
    tiny_relay: RelayModel, tiny_tasks: tuple[Task, ...]
) -> None:
    assert sorted(task.key for task in tiny_tasks) == tvm_finds(tiny_relay.module)
    names = {task.label.split()[0]: task.handle.name for task in tiny_tasks}
    assert names["depthwise"] == "depthwise_conv2d_NCHWc.mobilenet_x86"
    assert names["pointwise"] == "pointwise_conv2d_NCHWc.mobilenet_x86"


@pytest.mark.parametrize("schedules", ["ours", "stock"])
def test_weights_count_every_layer(
    request: pytest.FixtureRequest, tiny_relay: RelayModel, schedules: str
) -> None:
    tasks = request.getfixturevalue("tiny_tasks" if schedules == "ours" else "stock_tasks")
    weights: Counter[str] = Counter()
    for task in tasks:
        weights[task.label.split()[0]] += task.weight
    assert weights == layers(tiny_relay.module)
    assert (weights["conv"], weights["depthwise"]) == (1, 13)


def test_equal_layers_are_one_task(tiny_tasks: tuple[Task, ...]) -> None:
    # The five equal blocks in the middle of the network.
    (depthwise,) = [task for task in tiny_tasks if task.label == "depthwise 3x3 128 @ 2x2"]
    assert (depthwise.weight, depthwise.flops) == (5, 2 * 9 * 128 * 2 * 2)
    (pointwise,) = [task for task in tiny_tasks if task.label == "pointwise 1x1 128->128 @ 2x2"]
    assert (pointwise.weight, pointwise.flops) == (5, 2 * 128 * 128 * 2 * 2)


def test_dense_layer_is_found_in_both_its_templates() -> None:
    import tvm
    from tvm import relay

    data, weight = relay.var("data", shape=(1, 64)), relay.var("weight", shape=(64, 64))
    hidden = relay.nn.dense(relay.nn.relu(relay.nn.dense(data, weight)), weight)
    module = relay.transform.InferType()(tvm.IRModule.from_expr(hidden))
    tasks = extract_tasks(module, targets.resolve("x86-avx512"))
    assert [(task.label, task.weight) for task in tasks] == [
        ("dense_nopack 64->64", 2),
        ("dense_pack 64->64", 2),
    ]
    assert sorted(task.key for task in tasks) == tvm_finds(module)


def test_labels_tell_the_layers_apart(tiny_tasks: tuple[Task, ...]) -> None:
    labels = [task.label for task in tiny_tasks]
    assert labels[:4] == [
        "conv 3x3/2 3->8 @ 32x32",
        "depthwise 3x3 8 @ 16x16",
        "pointwise 1x1 8->16 @ 16x16",
        "depthwise 3x3/2 16 @ 16x16",
    ]
    assert len(set(labels)) == len({task.key for task in tiny_tasks}) == len(labels)


def test_candidates_are_valid_and_the_default_is_one(tiny_tasks: tuple[Task, ...]) -> None:
    for task in tiny_tasks:
        space = task.handle.config_space
        assert task.candidates
        assert all(space.is_index_valid(config) for config in task.candidates)
        assert task.default in task.candidates


def test_default_has_the_knobs_of_the_untuned_schedule(tiny_tasks: tuple[Task, ...]) -> None:
    # schedules/x86/depthwise.py: one row, the widest divisor in half the registers.
    (task,) = [t for t in tiny_tasks if t.label == "depthwise 3x3 8 @ 16x16"]
    assert task.default is not None
    knobs = task.handle.config_space.get(task.default)
    assert (knobs["rows"].val, knobs["taps_outer"].val) == (1, 1)
    assert knobs["columns"].val == 8  # of 16, in half of 28 registers


def test_convolution_that_stays_tvms_keeps_the_layout_of_the_rest() -> None:
    import tvm
    from tvm import relay

    data, weight = relay.var("data", shape=(1, 32, 8, 8)), relay.var("weight", shape=(64, 32, 3, 3))
    module = tvm.IRModule.from_expr(relay.nn.conv2d(data, weight, padding=(1, 1)))
    (task,) = extract_tasks(relay.transform.InferType()(module), targets.resolve("x86-avx512"))
    assert task.handle.name == "conv2d_NCHWc.x86"
    assert task.label == "conv 3x3 32->64 @ 8x8"
    space = task.handle.config_space
    assert 0 < len(task.candidates) < len(space)
    for config in range(space.range_length):
        blocks = [space.get(config)[knob].size[-1] for knob in ("tile_ic", "tile_oc")]
        assert (config in task.candidates) == (blocks == [16, 16])


@pytest.mark.parametrize("schedules", ["ours", "stock"])
def test_blocks_that_tvms_grouped_template_computes_wrongly_are_no_candidates(
    schedules: str,
) -> None:
    """A block has to divide a group's channels, not all of them (AlexNet's second layer)."""
    import tvm
    from tvm import relay

    data, weight = relay.var("data", shape=(1, 32, 8, 8)), relay.var("weight", shape=(48, 16, 3, 3))
    module = tvm.IRModule.from_expr(relay.nn.conv2d(data, weight, padding=(1, 1), groups=2))
    module = relay.transform.InferType()(module)
    (task,) = extract_tasks(module, targets.resolve("x86-avx512"), schedules=schedules)
    space = task.handle.config_space
    assert 0 < len(task.candidates) < len(space)
    assert task.default in task.candidates
    for config in range(space.range_length):
        inner = [space.get(config)[knob].size[-1] for knob in ("tile_ic", "tile_oc")]
        assert (config in task.candidates) == (16 % inner[0] == 0 and 24 % inner[1] == 0)


def test_search_is_silent_only_while_it_extracts(tiny_relay: RelayModel) -> None:
    from tvm import autotvm

    before = autotvm.GLOBAL_SCOPE.silent
    extract_tasks(tiny_relay.module, targets.resolve("x86-avx512"))
    assert autotvm.GLOBAL_SCOPE.silent is before
