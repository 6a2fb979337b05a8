"""A small network with a shortcut, and records of both searchers for it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from mobilenet_tvm import frontend, targets, toolchain
from mobilenet_tvm.records import Record, Task, choose_records, extract_tasks, parse_line
from mobilenet_tvm.records.ansor_tasks import extract_ansor_tasks
from mobilenet_tvm.search import AutoTvmSearcher, Trial


@dataclass(frozen=True)
class Network:
    """A model, its tasks of both searchers, and a record for each of them."""

    onnx: Any
    relay: frontend.RelayModel
    tasks: tuple[Task, ...]
    best: dict[str, Record]


def shortcut_onnx() -> Any:
    """``conv0 -> x; x + conv2(depthwise1(x)) -> conv3``, 16 channels of 8x8."""
    from onnx import TensorProto, helper, numpy_helper

    generator = np.random.default_rng(0)
    nodes, constants = [], []

    def conv(source: str, name: str, shape: tuple[int, ...], group: int = 1) -> str:
        weight = generator.normal(size=shape).astype(np.float32)
        bias = generator.normal(size=shape[0]).astype(np.float32)
        constants.append(numpy_helper.from_array(weight, f"{name}_w"))
        constants.append(numpy_helper.from_array(bias, f"{name}_b"))
        pad = shape[2] // 2
        nodes.append(
            helper.make_node(
                "Conv",
                [source, f"{name}_w", f"{name}_b"],
                [name],
                kernel_shape=shape[2:],
                pads=[pad] * 4,
                group=group,
            )
        )
        return name

    conv("input", "conv0", (16, 16, 1, 1))
    nodes.append(helper.make_node("Relu", ["conv0"], ["x"]))
    conv("x", "depthwise1", (16, 1, 3, 3), group=16)
    conv("depthwise1", "conv2", (16, 16, 1, 1))
    nodes.append(helper.make_node("Add", ["x", "conv2"], ["sum"]))
    conv("sum", "conv3", (32, 16, 1, 1))
    graph = helper.make_graph(
        nodes,
        "shortcut",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, [1, 16, 8, 8])],
        [helper.make_tensor_value_info("conv3", TensorProto.FLOAT, [1, 32, 8, 8])],
        constants,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)])


def random_record(task: Task, seed: int = 1) -> Record:
    """A valid record of a task, with a time that nobody measured."""
    if task.searcher == "autotvm":
        trial = Trial(task.candidates[seed % len(task.candidates)], (1e-5,))
        return parse_line(AutoTvmSearcher(task, trials=1, seed=0).record_line(trial))
    toolchain.activate()
    from tvm.auto_scheduler import SketchPolicy
    from tvm.auto_scheduler.cost_model import RandomModel
    from tvm.auto_scheduler.measure import MeasureInput, MeasureResult
    from tvm.auto_scheduler.measure_record import dump_record_to_string
    from tvm.error import TVMError

    # By default it samples thousands of schedules, until 50 different ones are good.
    params = {"sample_init_min_population": 1, "evolutionary_search_population": 4}
    policy = SketchPolicy(task.handle, RandomModel(), params, seed=seed, verbose=0)
    for _ in range(50):
        try:
            state = policy.sample_initial_population()[0]
        except TVMError:  # of a tiny layer all samples of one round may be invalid
            continue
        result = MeasureResult([1.1e-5], 0, "", 0.1, time.time())
        return parse_line(dump_record_to_string(MeasureInput(task.handle, state), result))
    raise AssertionError(f"no valid schedule of {task.label}")


def network(model: Any, seed: int = 1) -> Network:
    """Import a model and make up records."""
    relay = frontend.to_relay(frontend.clean(frontend.from_proto(model, "net")))
    preset = targets.resolve("x86")
    tasks = (*extract_tasks(relay.module, preset), *extract_ansor_tasks(relay.module, preset))
    # Pooling has hardly any schedules, and TVM's own is good enough.
    layers = [task for task in tasks if " @ " in task.label]
    records: Sequence[Record] = [random_record(task, seed) for task in layers]
    return Network(model, relay, tasks, choose_records(tasks, records))


@pytest.fixture(scope="session")
def shortcut() -> Network:
    """The small network with a shortcut."""
    return network(shortcut_onnx())


@pytest.fixture(scope="session")
def other_shortcuts(shortcut: Network) -> list[Network]:
    """The same network with other random schedules, of two seeds."""
    return [network(shortcut.onnx, seed) for seed in (2, 3)]


@pytest.fixture(scope="session")
def tiny_v1() -> Network:
    """MobileNet V1 0.25-32 with 10 classes."""
    from mobilenet_tvm import zoo

    return network(zoo.build("mobilenet_v1", alpha=0.25, resolution=32, classes=10))
