"""Whole networks on the emulated GPU compute what ONNX Runtime computes, in both thread orders.

Untuned and with random configurations, of our templates and of TVM's: a barrier that is missing in
one of them, an index beyond a buffer or a race shows here. ``check_artifact`` runs each input with
the threads of a block in one order and in the other, and wants the same bits.
"""

from __future__ import annotations

import random
import tempfile
from pathlib import Path
from typing import Any

import pytest

from mobilenet_tvm import frontend, targets, zoo

TOLERANCE = 1e-4
NETWORKS: dict[str, tuple[str, dict[str, Any]]] = {
    "V1 0.25-128": ("mobilenet_v1", {"alpha": 0.25, "resolution": 128}),
    "V1 0.25-32": ("mobilenet_v1", {"alpha": 0.25, "resolution": 32}),
    "V1 1.0-224": ("mobilenet_v1", {}),
    "V3 small": ("mobilenet_v3_small", {}),
}
ATTEMPTS = 40
# NVRTC takes some seconds for a kernel that TVM's templates unroll.
STOCK_TASKS = 6


def _random_records(tasks: Any, schedules: str, chance: random.Random) -> dict[str, Any]:
    """A record of a random configuration that the GPU can launch, for each task."""
    from mobilenet_tvm.records import parse_line
    from mobilenet_tvm.search import AutoTvmSearcher, Trial
    from mobilenet_tvm.search.candidates import build, describe

    best = {}
    ours = [task for task in tasks if "mobilenet_cuda" in task.handle.name]
    for task in ours if schedules == "ours" else chance.sample(tasks, STOCK_TASKS):
        for config in chance.sample(task.candidates, min(ATTEMPTS, len(task.candidates))):
            try:
                build(describe(task, config))
            except Exception:
                if schedules == "ours":  # of our own spaces any is to be launched as it is
                    raise
                continue
            trial = Trial(config, (1e-3,))
            searcher = AutoTvmSearcher(task, trials=1, seed=0)
            best[task.key] = parse_line(searcher.record_line(trial))
            break
    return best


def _check(name: str, schedules: str, seed: int | None) -> dict[str, Any]:
    """In the emulated process: compile, check, and say what was found."""
    from mobilenet_tvm.build import compile_model
    from mobilenet_tvm.build.manifest import ModelInfo, read_manifest
    from mobilenet_tvm.parity import check_artifact
    from mobilenet_tvm.records import extract_tasks

    network, arguments = NETWORKS[name]
    preset = targets.resolve("cuda-sm80")
    with tempfile.TemporaryDirectory() as folder:
        onnx = Path(folder, "net.onnx")
        onnx.write_bytes(zoo.build(network, **arguments).SerializeToString())
        clean = frontend.clean(frontend.read(onnx))
        relay = frontend.to_relay(clean)
        best: dict[str, Any] = {}
        tasks: Any = ()
        if seed is not None:
            tasks = extract_tasks(relay.module, preset, schedules=schedules)
            best = _random_records(tasks, schedules, random.Random(seed))
        path = Path(folder, "net.so")
        info = ModelInfo("net", clean.original.digest, path=str(onnx))
        compile_model(relay, preset, path, info=info, tasks=tasks, best=best, schedules=schedules)
        result = check_artifact(path, kinds=["uniform", "normal"], tolerance=TOLERANCE)
        manifest = read_manifest(path)
    assert manifest.cuda is not None
    assert manifest.parity is not None
    assert manifest.parity.device is not None
    return {
        "passed": bool(result),
        "summary": result.summary(),
        "ours": sum("mobilenet_cuda" in task.handle.name for task in tasks),
        "tuned": manifest.tuning.tuned,
        "spills": [kernel.name for kernel in manifest.cuda.kernels if kernel.spill_bytes],
        "emulated": manifest.parity.device.emulated,
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", ["V1 0.25-128", "V1 1.0-224", "V3 small"])
def test_untuned(emulated: Any, name: str) -> None:
    found = emulated.call(_check, name, "ours", None, timeout_s=400)
    assert found["passed"], found["summary"]
    assert found["emulated"]
    assert not found["spills"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "schedules", "seed"),
    [
        ("V1 0.25-128", "ours", 1),
        ("V3 small", "ours", 3),
        ("V1 0.25-32", "stock", 4),
    ],
)
def test_random_schedules(emulated: Any, name: str, schedules: str, seed: int) -> None:
    found = emulated.call(_check, name, schedules, seed, timeout_s=500)
    assert found["passed"], found["summary"]
    assert found["tuned"] == (STOCK_TASKS if schedules == "stock" else found["ours"]) > 5
