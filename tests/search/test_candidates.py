"""From a configuration to a kernel, whose numbers are right."""

from __future__ import annotations

import pickle
from collections.abc import Mapping, Sequence
from typing import Any

import cloudpickle
import numpy as np
import pytest

from mobilenet_tvm import frontend, targets, zoo
from mobilenet_tvm.records import Config, Task, extract_tasks
from mobilenet_tvm.search import AnsorSearcher, CostModel
from mobilenet_tvm.search.candidates import (
    Kernel,
    build,
    build_reference,
    build_to_check,
    describe,
)

LABELS = ("pointwise 1x1 32->32 @ 8x8", "depthwise 3x3/2 32 @ 8x8", "conv 3x3/2 3->8 @ 32x32")


@pytest.fixture(scope="module")
def ours() -> Mapping[str, Task]:
    """AutoTVM's tasks for this machine, by label."""
    proto = zoo.build("mobilenet_v1", alpha=0.25, resolution=32, classes=10)
    relay = frontend.to_relay(frontend.clean(frontend.from_proto(proto, "tiny")))
    tasks = extract_tasks(relay.module, targets.resolve("x86"))
    return {task.label: task for task in tasks}


def configs_of(task: Task, count: int = 2) -> Sequence[Config]:
    if task.searcher == "autotvm":
        return task.candidates[:: len(task.candidates) // count][:count]
    searcher = AnsorSearcher(task, trials=count, seed=0, model=CostModel(seed=0, cores=1))
    found = [searcher.next() for _ in range(count)]
    return [config for config in found if config is not None]


def inputs_of(kernel: Kernel) -> list[Any]:
    """Random inputs, and NaN where the result goes."""
    random = np.random.default_rng(1)
    data = [
        random.uniform(-1, 1, [int(size) for size in tensor.shape]).astype(tensor.dtype)
        for tensor in kernel.arguments
    ]
    data[kernel.result][:] = np.nan
    return data


def call(kernel: Kernel, data: Sequence[Any]) -> Any:
    import tvm

    arrays = [tvm.nd.array(one) for one in data]
    kernel.function(*arrays)
    return arrays[kernel.result].numpy()


@pytest.mark.parametrize("searcher", ["autotvm", "ansor"])
@pytest.mark.parametrize("label", LABELS)
def test_candidates_compute_what_the_reference_does(
    ours: Mapping[str, Task], tiny_ansor: Mapping[str, Task], searcher: str, label: str
) -> None:
    task = (ours if searcher == "autotvm" else tiny_ansor)[label]
    for config in configs_of(task):
        candidate = describe(task, config)
        assert candidate.searcher == searcher
        kernel, reference = build_to_check(candidate), build_reference(candidate)
        data = inputs_of(kernel)
        want = call(reference, data)
        assert np.isfinite(want).all()
        assert np.ptp(want) > 0
        np.testing.assert_allclose(call(kernel, data), want, atol=1e-5 * np.abs(want).max())


@pytest.mark.parametrize("searcher", ["autotvm", "ansor"])
def test_what_is_built_has_one_result_and_runs(
    ours: Mapping[str, Task], tiny_ansor: Mapping[str, Task], searcher: str
) -> None:
    task = (ours if searcher == "autotvm" else tiny_ansor)[LABELS[0]]
    (config,) = configs_of(task, 1)
    kernel = build(describe(task, config))
    # Templates here: result, data, weights. Ansor: data, weights, bias, result.
    expected = (0, 3) if searcher == "autotvm" else (3, 4)
    assert (kernel.result, len(kernel.arguments)) == expected
    result = call(kernel, inputs_of(kernel))
    assert result.size == 8 * 8 * 32
    assert np.isfinite(result).all()


def test_result_is_wherever_the_arguments_have_it() -> None:
    from tvm import te

    a = te.placeholder((4,))
    out = te.compute((4,), lambda i: a[i] + 1)
    assert Kernel(None, (a, out)).result == 1
    assert Kernel(None, (out, a)).result == 0
    with pytest.raises(ValueError, match="unpack"):
        _ = Kernel(None, (a,)).result


def test_pointwise_of_ansor_is_a_matrix_product(tiny_ansor: Mapping[str, Task]) -> None:
    """NHWC data times HWIO weights, plus bias, cut at 0 and 6 where the model does."""
    task = tiny_ansor[LABELS[0]]
    (config,) = configs_of(task, 1)
    kernel, reference = (
        build_to_check(describe(task, config)),
        build_reference(describe(task, config)),
    )
    shapes = [tuple(int(size) for size in tensor.shape) for tensor in kernel.arguments]
    assert shapes == [(1, 8, 8, 32), (1, 1, 32, 32), (1, 1, 1, 32), (1, 8, 8, 32)]
    data = inputs_of(kernel)
    x, weights, bias, _ = data
    want = np.clip(x.reshape(64, 32) @ weights[0, 0] + bias.reshape(32), 0, 6).reshape(1, 8, 8, 32)
    for one in (kernel, reference):
        np.testing.assert_allclose(call(one, data), want, atol=1e-5)


def test_weights_in_the_model_have_the_layout_that_the_candidate_wants(
    tiny_ansor: Mapping[str, Task],
) -> None:
    """``build`` times the kernel as in the model, where the weights were laid out beforehand."""
    task = tiny_ansor[LABELS[0]]
    shapes = set()
    for config in configs_of(task, 4):
        candidate = describe(task, config)
        as_in_model = build(candidate).arguments
        plain = build_to_check(candidate).arguments
        assert [t.shape[-1] for t in plain] == [32, 32, 32, 32]
        sizes = [np.prod([int(n) for n in t.shape]) for t in as_in_model]
        assert sizes == [np.prod([int(n) for n in t.shape]) for t in plain]
        shapes.add(tuple(int(n) for n in as_in_model[1].shape))
    assert (1, 1, 32, 32) not in shapes


@pytest.mark.parametrize("searcher", ["autotvm", "ansor"])
def test_candidates_can_be_sent(
    ours: Mapping[str, Task], tiny_ansor: Mapping[str, Task], searcher: str
) -> None:
    task = (ours if searcher == "autotvm" else tiny_ansor)[LABELS[1]]
    (config,) = configs_of(task, 1)
    candidate = describe(task, config)
    again = pickle.loads(cloudpickle.dumps(candidate))
    assert again.searcher == searcher
    assert again.config == candidate.config
    kernel, reference = build_to_check(again), build_reference(again)
    data = inputs_of(kernel)
    np.testing.assert_allclose(call(kernel, data), call(reference, data), atol=1e-5)
