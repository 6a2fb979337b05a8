"""Kernels timed where they stand: the same inference, and times that add up to it."""

from __future__ import annotations

import ctypes
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from mobilenet_tvm import frontend, runtime, zoo
from mobilenet_tvm.build.compile import compile_model
from mobilenet_tvm.build.manifest import ModelInfo
from mobilenet_tvm.build.pool import LAUNCH, MAX_THREADS
from mobilenet_tvm.errors import DeviceError, UsageError
from mobilenet_tvm.runtime import walk
from mobilenet_tvm.targets import resolve


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    source = frontend.from_proto(zoo.build("mobilenet_v1", alpha=0.25, resolution=32), "v1")
    path = tmp_path_factory.mktemp("walk") / "v1.so"
    model = frontend.to_relay(frontend.clean(source))
    compile_model(model, resolve("x86"), path, info=ModelInfo("v1", source.digest))
    return path


def some_input(seed: int) -> dict[str, Any]:
    values = np.random.default_rng(seed).uniform(-1, 1, (1, 3, 32, 32))
    return {"input": values.astype(np.float32)}


def test_kernel_by_kernel_is_the_same_inference(artifact: Path) -> None:
    walked, module = walk.open_walk(artifact), runtime.load(artifact)
    for seed in (0, 1):  # the second on memory that the first has left
        walked.set_inputs(some_input(seed))
        walked.times_us(1)
        np.testing.assert_array_equal(
            walked.outputs()["logits"], module.run(some_input(seed))["logits"]
        )


def test_times_are_of_each_kernel_and_add_up(artifact: Path) -> None:
    walked = walk.open_walk(artifact)
    runtime.load(artifact, threads=1)  # at two, kernels as small as these take what a launch takes
    walked.set_inputs(some_input(0))
    walked.times_us(20)
    # By turns and the best of each, for other programs run as well.
    pairs = [(walked.times_us(20), walked.inference_us(20)) for _ in range(10)]
    kernels_us = np.concatenate([kernels for kernels, _ in pairs])
    whole_us = np.concatenate([whole for _, whole in pairs])
    assert kernels_us.shape == (200, len(walked.kernels))
    assert whole_us.shape == (200,)
    # A pointwise layer is no cheaper than the flattening of ten numbers.
    names = [kernel.name for kernel in walked.kernels]
    best_us = dict(zip(names, kernels_us.min(0), strict=True))
    assert "flatten" in names[-1]
    assert best_us[names[2]] > best_us[names[-1]]
    assert kernels_us.sum(1).min() == pytest.approx(whole_us.min(), rel=0.3)


def test_a_launch_takes_a_while(artifact: Path) -> None:
    walked = walk.open_walk(artifact)
    runtime.load(artifact, threads=2)  # at one it is a call, too short to tell from the clock's own
    launch_us = walked.launch_us()
    assert launch_us is not None
    assert 0 < launch_us < 1e4


def test_the_threads_of_an_artifact_are_set_by_load_and_by_a_function_in_it(artifact: Path) -> None:
    import tvm

    native = ctypes.CDLL(str(artifact))  # the one that TVM has open, then

    def tasks() -> int:
        ran: list[int] = []

        def run(index: int, _group: object, _data: object) -> int:
            ran.append(index)
            return 0

        task = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)(run)
        assert native[LAUNCH](task, None, 0) == 0
        return len(ran)

    runtime.load(artifact, threads=3)
    assert tasks() == 3
    library = tvm.runtime.load_module(str(artifact))
    library.get_function("mobilenet_tvm_set_threads", query_imports=True)(2)
    assert tasks() == 2
    with pytest.raises(UsageError, match="64 at most"):
        runtime.load(artifact, threads=MAX_THREADS + 1)
    runtime.load(artifact, threads=MAX_THREADS)
    assert tasks() == MAX_THREADS
    runtime.load(artifact, threads=1)


def test_every_activation_has_a_maker(artifact: Path) -> None:
    kernels = walk.open_walk(artifact).kernels
    for index, kernel in enumerate(kernels):
        assert kernel.output.maker == index
        read = [one for one in kernel.operands if not one.weight]
        # The model is a chain.
        assert [one.maker for one in read] == [index - 1 if index else None]
    first = kernels[0].operands
    assert first[0].shape == (1, 3, 32, 32)
    assert first[0].size_bytes == 4 * 3 * 32 * 32
    assert all(one.maker is None for one in first)


def test_the_kernel_that_fails_is_named(artifact: Path) -> None:
    walked = walk.open_walk(artifact)
    walked.set_inputs(some_input(0))
    walked.times_us(1)
    walked._calls[3].count = 0  # a kernel counts its arguments
    with pytest.raises(DeviceError, match=f"kernel {walked.kernels[3].name} fails"):
        walked.times_us(1)


def graph_of(nodes: list[dict[str, Any]], first: list[int]) -> Any:
    count = len(nodes)
    shapes, dtypes = [[1, 4]] * count, ["float32"] * count
    return {
        "nodes": nodes,
        "node_row_ptr": first,
        "attrs": {
            "shape": ["list_shape", shapes],
            "dltype": ["list_str", dtypes],
            "storage_id": ["list_int", list(range(count))],
        },
    }


def node(name: str, function: str, *sources: int) -> dict[str, Any]:
    inputs = [[source, 0, 0] for source in sources]
    return {"op": "tvm_op", "name": name, "attrs": {"func_name": function}, "inputs": inputs}


def null(name: str) -> dict[str, Any]:
    return {"op": "null", "name": name, "inputs": []}


def manifest_of_x() -> Any:
    return SimpleNamespace(name="net", inputs=[SimpleNamespace(name="x")])


def library_of(graph: Any) -> Any:
    return {"get_graph_json": lambda: json.dumps(graph)}


def test_a_reshape_is_no_kernel_and_hides_no_maker() -> None:
    nodes = [null("x"), null("p0"), node("a", "a", 0, 1), node("r", "__nop", 2), node("b", "b", 3)]
    first, second = walk.walked_kernels(library_of(graph_of(nodes, [*range(6)])), manifest_of_x())
    assert [(one.weight, one.maker) for one in first.operands] == [(False, None), (True, None)]
    assert second.name == "b"
    assert [(one.weight, one.maker) for one in second.operands] == [(False, 0)]


def test_a_kernel_with_two_outputs_is_refused() -> None:
    graph = graph_of([null("x"), node("split", "split", 0)], [0, 1, 3])
    with pytest.raises(UsageError, match="net has a kernel with several outputs"):
        walk.walked_kernels(library_of(graph), manifest_of_x())
