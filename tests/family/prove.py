"""Child process: one model of the zoo, built untuned and with random schedules, and compared.

    python prove.py mobilenet_v2 '{"alpha": 0.35, "resolution": 64, "classes": 6}' FOLDER PARENT

Prints one JSON object. The import and the references are shared between the builds.
"""

from __future__ import annotations

import json
import random
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
from onnx import numpy_helper

import mobilenet_tvm
from mobilenet_tvm import frontend, targets, toolchain, zoo
from mobilenet_tvm.build import compile_model
from mobilenet_tvm.build.manifest import Manifest, ModelInfo, sha256_bytes, write_manifest
from mobilenet_tvm.parity import ParityResult, check
from mobilenet_tvm.parity.bisect import bisect
from mobilenet_tvm.parity.inputs import shapes_of
from mobilenet_tvm.parity.kinds import generate
from mobilenet_tvm.parity.references import onnxruntime_runner
from mobilenet_tvm.records import Record, Task, choose_records, extract_tasks, parse_line
from mobilenet_tvm.search import AutoTvmSearcher, Trial
from mobilenet_tvm.search.candidates import build, describe

SEEDS = (0, 1, 2)
TOLERANCE = 1e-4  # of max |reference|, whatever the package thinks is near enough
# Some of TVM's own configurations keep LLVM busy for minutes. Ours never do.
BUILD_TIMEOUT_S = 5.0
FEW_COLUMNS = 8  # of a register tile, that LLVM unrolls


def is_ours(task: Task) -> bool:
    """Whether the task is one of our own templates'."""
    return bool(task.handle.name.endswith(".mobilenet_x86"))


def can_be_built(task: Task, config: int, worker: toolchain.Worker) -> bool:
    """Whether a configuration is fit for a build. Each of our own templates' has to be.

    Of TVM's convolutions those with wide tiles are left out, which take seconds each.
    """
    if is_ours(task):
        return True
    space = task.handle.config_space
    if "tile_ow" in space.space_map and space.get(config)["tile_ow"].size[-1] > FEW_COLUMNS:
        return False
    if task.handle.name in ("conv2d_NCHWc.x86", "group_conv2d_nchw.x86"):
        return True
    try:
        worker.call(compiles, describe(task, config), timeout_s=BUILD_TIMEOUT_S)
    except Exception:  # a time-out, a crash, or whatever TVM raised
        return False
    return True


def compiles(candidate: Any) -> None:
    """In the worker: compile, and keep nothing."""
    build(candidate)


def draw(task: Task, worker: toolchain.Worker) -> list[int]:
    """A configuration for each seed, different ones as long as the space has any."""
    if task.handle.name.startswith("group_conv2d"):
        # Of TVM's template for groups some configurations divide by zero and some compute something
        # else. A search finds that out by comparing; here its default has to do.
        return [task.default if task.default is not None else task.candidates[0]] * len(SEEDS)
    order = [config for config in task.candidates if config != task.default]
    random.Random(task.key).shuffle(order)
    drawn: list[int] = []
    for config in order:
        if len(drawn) < len(SEEDS) and can_be_built(task, config, worker):
            drawn.append(config)
    given = drawn or list(task.candidates)
    return [given[seed % len(given)] for seed in SEEDS]


def record_of(task: Task, config: int) -> Record:
    """A record as the search writes it, with a time that nobody measured."""
    searcher = AutoTvmSearcher(task, trials=1, seed=0)
    return parse_line(searcher.record_line(Trial(config, (1e-5,))))


def as_dict(result: ParityResult) -> dict[str, Any]:
    return {
        "passed": bool(result),
        "summary": result.summary(),
        "error": result.would_pass_at,
        "compared": len(result.cases),
        "warnings": list(result.warnings),
    }


def broken(model: onnx.ModelProto) -> Iterator[tuple[str, onnx.ModelProto]]:
    """``model`` with one weight of one layer negated: of the first, a middle and the last layer.

    It is the largest of a middle tap: on a map of 1x1 all others meet padding alone.
    """
    layers = [node for node in model.graph.node if node.op_type in ("Conv", "Gemm")]
    for node in (layers[0], layers[len(layers) // 2], layers[-1]):
        changed = onnx.ModelProto()
        changed.CopyFrom(model)
        (tensor,) = (t for t in changed.graph.initializer if t.name == node.input[1])
        values = numpy_helper.to_array(tensor).copy()
        middle = values[(..., *(size // 2 for size in values.shape[2:]))]
        middle.flat[np.abs(middle).argmax()] *= -1  # a view of the values
        tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
        yield node.name, changed


def bisected(path: Path, manifest: Manifest, model: onnx.ModelProto) -> dict[str, Any]:
    """What a bisection finds, if the artifact says that it was made from ``model``."""
    data = model.SerializeToString()
    file = path.with_suffix(".onnx")
    file.write_bytes(data)
    info = ModelInfo(manifest.name, sha256_bytes(data), path=str(file))
    write_manifest(path, msgspec.structs.replace(manifest, model=info))
    _, _, feed = next(generate(manifest.inputs, ("normal",), 1, seed=0))
    found = bisect(path, feed, tolerance=TOLERANCE)
    file.unlink()
    return {
        "culprit": found.culprit and found.culprit.nodes,
        "summary": found.summary(),
        "compared": found.compared,
        "kernels": len(manifest.layers),
        "largest": max(layer.after for layer in found.layers),
    }


def prove(name: str, options: dict[str, Any], folder: Path) -> dict[str, Any]:
    started_s = time.process_time()
    cpu_s: dict[str, float] = {}

    def lap(what: str) -> None:
        cpu_s[what] = round(time.process_time() - started_s - sum(cpu_s.values()), 2)

    model = zoo.build(name, **options)
    data = model.SerializeToString()
    preset = targets.resolve("x86")
    relay = frontend.to_relay(frontend.clean(frontend.from_proto(model, name)))
    lap("import")
    tasks = extract_tasks(relay.module, preset)
    lap("tasks")
    worker = toolchain.Worker()
    drawn = {task.key: draw(task, worker) for task in tasks}
    worker.close()
    lap("draw")
    reference = onnxruntime_runner(data, {spec.name: spec.shape for spec in relay.inputs})

    def build_and_check(seed: int | None) -> tuple[dict[str, Any], Manifest, Any]:
        records: Sequence[Record] = ()
        if seed is not None:
            records = [record_of(task, drawn[task.key][seed]) for task in tasks]
        path = folder / f"{name}.{seed}.so"
        manifest = compile_model(
            relay,
            preset,
            path,
            info=ModelInfo(name, sha256_bytes(data)),
            tasks=tasks,
            best=choose_records(tasks, records),
        )
        module = mobilenet_tvm.load(path)
        result = check(module.run, manifest, reference, tolerance=TOLERANCE)
        told = {
            **as_dict(result),
            "tuned": manifest.tuning.tuned,
            "log_digest": manifest.tuning.log_digest,
            "so_sha256": manifest.so_sha256,
        }
        if seed is None:
            told["bisected"] = bisected(path, manifest, model)
            layer, other = list(broken(model))[1]
            told["broken"] = {"layer": layer, **bisected(path, manifest, other)}
        path.unlink()  # VGG-16's four are 600 MB
        return told, manifest, module

    untuned, manifest, module = build_and_check(None)
    lap("untuned")
    planted = {
        layer: as_dict(
            check(
                module.run,
                manifest,
                onnxruntime_runner(other.SerializeToString(), shapes_of(manifest)),
                tolerance=TOLERANCE,
            )
        )
        for layer, other in broken(model)
    }
    lap("planted")
    seeds = [build_and_check(seed)[0] for seed in SEEDS]
    lap("seeds")
    return {
        "tasks": len(tasks),
        "untuned": untuned,
        "seeds": seeds,
        "planted": planted,
        # Of our own templates.
        "drawn": [
            (task.label, len(task.candidates), drawn[task.key]) for task in tasks if is_ours(task)
        ],
        "cpu_s": cpu_s,
    }


if __name__ == "__main__":
    toolchain.die_with_parent(int(sys.argv[4]))
    print(json.dumps(prove(sys.argv[1], json.loads(sys.argv[2]), Path(sys.argv[3]))))
