"""Ansor's tasks of a model are its layers, named as AutoTVM's for the same layer."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import pytest

from mobilenet_tvm import frontend, targets
from mobilenet_tvm.frontend import RelayModel
from mobilenet_tvm.records import Task, extract_tasks
from mobilenet_tvm.records.ansor_tasks import extract_ansor_tasks

PRESET = "x86-avx512"


@pytest.fixture(scope="module")
def ansor(tiny_relay: RelayModel) -> tuple[Task, ...]:
    return extract_ansor_tasks(tiny_relay.module, targets.resolve(PRESET), threads=3)


@pytest.fixture(scope="module")
def by_label(ansor: tuple[Task, ...]) -> Mapping[str, Task]:
    return {task.label: task for task in ansor}


def calls(tasks: tuple[Task, ...]) -> Counter[str]:
    """How often each layer is called in one inference."""
    counts: Counter[str] = Counter()
    for task in tasks:
        counts[task.label] += task.weight
    return counts


def test_labels_and_weights_are_those_of_autotvm(
    ansor: tuple[Task, ...], tiny_tasks: tuple[Task, ...]
) -> None:
    found = calls(ansor)
    assert found.pop("nn_global_avg_pool2d") == 1  # which no template is for
    assert found == calls(tiny_tasks)


def test_layers_are_as_large_as_autotvm_has_them(
    by_label: Mapping[str, Task], tiny_tasks: tuple[Task, ...]
) -> None:
    for ours in tiny_tasks:
        task = by_label[ours.label]
        assert task.weight_bytes == ours.weight_bytes
        # Bias and activation come on top.
        assert ours.flops <= task.flops <= 1.25 * ours.flops


def test_stride_is_in_the_label(by_label: Mapping[str, Task]) -> None:
    assert {"conv 3x3/2 3->8 @ 32x32", "depthwise 3x3/2 16 @ 16x16"} <= set(by_label)
    for label, task in by_label.items():
        if not label.startswith(("conv", "depthwise", "pointwise")):
            continue
        shapes = json.loads(task.key)[1:]
        height_in, height_out = shapes[0][1], shapes[-1][1]
        stride = 2 if "/2 " in label else 1
        assert height_out == -(-height_in // stride)


def test_tasks_are_ansor_s(ansor: tuple[Task, ...]) -> None:
    assert len({task.key for task in ansor}) == len(ansor)
    for task in ansor:
        assert (task.searcher, task.candidates, task.default) == ("ansor", (), None)
        assert task.key == task.handle.workload_key
        assert task.flops > 0


def test_target_and_threads_are_the_tasks_own(ansor: tuple[Task, ...]) -> None:
    import tvm

    preset = targets.resolve(PRESET)
    for task in ansor:
        hardware = task.handle.hardware_params
        assert (hardware.num_cores, hardware.vector_unit_bytes) == (3, 64)
        assert str(task.handle.target) == str(tvm.target.Target(preset.target))


def test_module_is_left_as_it_was(tiny_relay: RelayModel, ansor: tuple[Task, ...]) -> None:
    assert "NHWC" not in str(tiny_relay.module["main"])
    assert ansor


@pytest.mark.slow
def test_labels_of_a_real_v2_are_those_of_autotvm(shared_models: Path) -> None:
    """With residual additions, linear bottlenecks, and padding that is not symmetric."""
    clean = frontend.clean(frontend.read(shared_models / "mobilenet_v2_1.0_160_dogs19.onnx"))
    module = frontend.to_relay(clean).module
    preset = targets.resolve(PRESET)
    ours, ansor = extract_tasks(module, preset), extract_ansor_tasks(module, preset)
    convolutions = tuple(t for t in ansor if t.label.startswith(("conv", "depth", "point")))
    wanted = calls(tuple(t for t in ours if not t.label.startswith("dense")))
    assert calls(convolutions) == wanted
    assert sum(wanted.values()) == 53  # the classifier is a convolution too
    assert {task.label for task in ansor} >= {"depthwise 3x3/2 96 @ 80x80"}
