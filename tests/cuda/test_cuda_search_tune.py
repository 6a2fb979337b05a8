"""``tune`` for a GPU on the emulator: interrupted, gone on with, and ended in an artifact."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from mobilenet_tvm import tune as verb
from mobilenet_tvm.build.manifest import read_manifest
from mobilenet_tvm.records import parse_line, read_run

EMULATED = ("--target", "cuda-sm80", "--device", "emulated", "--no-transfer")
PATIENCE_S = 500


@pytest.fixture
def network(tmp_path: Path) -> Path:
    """One convolution of each kind: a network that is tuned in seconds."""
    draw = np.random.default_rng(0)
    layers = [("stem", 3, 8, 3, 2, 1), ("deep", 8, 8, 3, 1, 8), ("point", 8, 16, 1, 1, 1)]
    nodes, weights, data = [], [], "image"
    for name, channels, filters, size, stride, groups in layers:
        shape = (filters, channels // groups, size, size)
        weights.append(
            numpy_helper.from_array(draw.normal(size=shape).astype("float32"), f"{name}_w")
        )
        pads = [size // 2] * 4
        options = {"group": groups, "pads": pads, "strides": [stride] * 2}
        nodes.append(helper.make_node("Conv", [data, f"{name}_w"], [name], name=name, **options))
        data = name
    tensor = helper.make_tensor_value_info
    image = tensor("image", TensorProto.FLOAT, [1, 3, 16, 16])
    result = tensor(data, TensorProto.FLOAT, [1, 16, 8, 8])
    graph = helper.make_graph(nodes, "three", [image], [result], weights)
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8), tmp_path / "three.onnx")
    return tmp_path / "three.onnx"


def tune(network: Path, *options: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "mobilenet_tvm.tune", "--onnx", str(network), *EMULATED]
    return subprocess.Popen(
        [*command, *options, "-o", str(network.parent / "out")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_emulator_must_be_asked_for_twice(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert verb.main([*EMULATED, "-o", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "an emulator's times mean nothing" in said
    assert "--allow-emulated" in said
    assert not list(tmp_path.iterdir())


def test_interrupted_run_goes_on_and_ends_in_a_checked_artifact(
    network: Path, cuda_compiler: Any
) -> None:
    options = ("--allow-emulated", "--tuner", "autotvm", "--trials", "3", "--json")
    process = tune(network, *options)
    deadline = time.monotonic() + PATIENCE_S
    log = network.parent / "out/tuning_logs/cuda-sm80/three.autotvm.jsonl"
    while not log.exists() or log.read_text().count("\n") < 2:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    kept = log.read_text().splitlines()
    assert 2 <= len(kept) < 9

    process = tune(network, *options)
    output, said = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, said
    assert log.read_text().splitlines()[: len(kept)] == kept
    records = [parse_line(line) for line in log.read_text().splitlines()]
    assert set(Counter((record.key, record.config) for record in records).values()) == {1}
    payload = json.loads(output)
    assert (payload["timing"], payload["cpu"]) == ("emulated", "CUDA emulator (sm_80)")
    assert payload["tuned"] == payload["tasks"] == 3
    assert payload["search"]["trials"] == 9 - len(kept)
    assert payload["parity"]["passed"]
    assert payload["bench"] is None
    run = read_run(log)
    assert run is not None
    assert (run.timing, run.cpu, run.threads) == ("emulated", "CUDA emulator (sm_80)", 1)
    artifact = Path(payload["artifact"])
    manifest = read_manifest(artifact)
    assert manifest.latency == ()
    assert manifest.cuda is not None
    assert manifest.cuda.arch == "sm_80"

    # A GPU's times and an emulator's are not mixed.
    log.with_name(log.name.replace(".jsonl", ".run.json")).write_text(
        json.dumps(json.loads(_run_text(log)) | {"timing": "measured"})
    )
    process = tune(network, *options)
    _, said = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 2
    assert "holds measured times, not emulated ones" in said


def _run_text(log: Path) -> str:
    return log.with_name(log.name.replace(".jsonl", ".run.json")).read_text()
