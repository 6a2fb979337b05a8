"""What is compiled for ARM computes what ONNX Runtime computes here, on an emulated board.

The networks are compiled untuned and with random configurations of our templates.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from mobilenet_tvm import frontend, targets, zoo
from mobilenet_tvm.build import compile_model
from mobilenet_tvm.build.manifest import ModelInfo, Preprocessing, read_manifest
from mobilenet_tvm.devices.rpc import RpcDevice
from mobilenet_tvm.errors import UsageError
from mobilenet_tvm.parity import check_artifact
from mobilenet_tvm.records import Record, Task, extract_tasks, parse_line
from mobilenet_tvm.search import AutoTvmSearcher, Trial

TOLERANCE = 1e-4
NETWORKS = {
    "V1 0.25-128": ("mobilenet_v1", {"alpha": 0.25, "resolution": 128}),
    "V2 1.0-96": ("mobilenet_v2", {"alpha": 1.0, "resolution": 96}),
    "V3 small": ("mobilenet_v3_small", {}),
}


def check_on(device: RpcDevice, path: Path, **options: Any) -> Any:
    with device.open(session_timeout_s=300, wait_s=60) as session:
        return check_artifact(path, session=session, tolerance=TOLERANCE, **options)


def built(onnx: Path, path: Path, preset: str = "rpi4", **options: Any) -> Path:
    """An ONNX file compiled for a preset."""
    clean = frontend.clean(frontend.read(onnx), shape=options.pop("shape", None))
    info = ModelInfo(onnx.stem, clean.original.digest, path=str(onnx))
    relay = options.pop("relay", None) or frontend.to_relay(clean)
    compile_model(relay, targets.resolve(preset), path, info=info, **options)
    return path


def of_zoo(folder: Path, name: str, **arguments: Any) -> Path:
    """A network of the zoo as a file."""
    path = folder / f"{name}.onnx"
    path.write_bytes(zoo.build(name, **arguments).SerializeToString())
    return path


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_untuned(tmp_path: Path, rpi4: RpcDevice, name: str) -> None:
    network, arguments = NETWORKS[name]
    path = built(of_zoo(tmp_path, network, **arguments), tmp_path / "net.so")
    # Between two convolutions nothing but the next one.
    assert read_manifest(path).tuning.layout_transforms <= 1
    result = check_on(rpi4, path, kinds=["uniform", "large", "equal"])
    assert result, result.summary()
    marked = read_manifest(path).parity
    assert marked is not None
    assert marked.passed
    assert "emulated" in str(marked)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "seed"), [("V1 0.25-128", 1), ("V1 0.25-128", 2), ("V3 small", 3)]
)
def test_random_schedules(tmp_path: Path, rpi4: RpcDevice, name: str, seed: int) -> None:
    network, arguments = NETWORKS[name]
    onnx = of_zoo(tmp_path, network, **arguments)
    relay = frontend.to_relay(frontend.clean(frontend.read(onnx)))
    tasks = extract_tasks(relay.module, targets.resolve("rpi4"))
    best = random_records(tasks, random.Random(seed))
    path = built(onnx, tmp_path / "net.so", relay=relay, tasks=tasks, best=best)
    assert read_manifest(path).tuning.tuned == len(best) > 5
    result = check_on(rpi4, path, kinds=["uniform", "normal"])
    assert result, result.summary()


def random_records(tasks: Sequence[Task], chance: random.Random) -> dict[str, Record]:
    """A record of any configuration for each task of our templates."""
    best = {}
    for task in tasks:
        if "mobilenet_arm" in task.handle.name:
            searcher = AutoTvmSearcher(task, trials=1, seed=0)
            trial = Trial(chance.choice(task.candidates), (1e-3,))
            best[task.key] = parse_line(searcher.record_line(trial))
    return best


@pytest.mark.slow
def test_a_photo_on_the_trained_v1(
    tmp_path: Path, rpi4: RpcDevice, shared_models: Path, shared_images: Path
) -> None:
    path = built(
        shared_models / "mobilenet_v1_1.0_224_imagenet1001.onnx",
        tmp_path / "v1.so",
        shape=(1, 3, 224, 224),
        preprocessing=Preprocessing(height=224, width=224, resize_shorter=256),
    )
    result = check_on(rpi4, path, inputs=0, images=[shared_images / "chelsea.png"])
    assert result, result.summary()
    assert result.photo_agreement.top1 == 1.0


def test_a_board_refuses_what_it_cannot_run(tmp_path: Path, rpi4: RpcDevice) -> None:
    onnx = of_zoo(tmp_path, "mobilenet_v1", alpha=0.25, resolution=32)
    path = built(onnx, tmp_path / "net.so", preset="rpi5")
    with pytest.raises(UsageError, match="asimddp"):
        check_on(rpi4, path)
