"""A model staged for other runtimes, and converted once: by a stand-in for their Python."""

from __future__ import annotations

import os
import sys
import time
import types
from pathlib import Path

import numpy as np
import onnx
import pytest

from mobilenet_tvm import zoo
from mobilenet_tvm.bench import conversions, converters
from mobilenet_tvm.bench.protocol import InputSpec
from mobilenet_tvm.build.manifest import ModelInfo
from mobilenet_tvm.errors import DeviceError, UsageError


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MOBILENET_TVM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def staged(tmp_path: Path) -> Path:
    model = zoo.build("mobilenet_v1", alpha=0.25, resolution=32)
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "N"
    path = tmp_path / "net.onnx"
    path.write_bytes(model.SerializeToString())
    return conversions.stage(path, ModelInfo("net", "sha256:0", batch=1))


def fake_python(path: Path, script: str) -> str:
    """Called as PYTHON elsewhere.py converters NAME MODEL_FOLDER OUTPUT_FOLDER."""
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


def test_a_staged_model_has_fixed_shapes(staged: Path, cache: Path, tmp_path: Path) -> None:
    assert staged.parent == cache / "peers"
    spec = converters.read_spec(staged)
    assert spec.inputs == (InputSpec(spec.inputs[0].name, (1, 3, 32, 32), "float32"),)
    assert [one.shape for one in spec.outputs] == [(1, 1000)]
    dims = onnx.load(staged / "model.onnx").graph.input[0].type.tensor_type.shape.dim
    assert [dim.dim_value for dim in dims] == [1, 3, 32, 32]
    info = ModelInfo("net", "sha256:0", batch=2)
    other = conversions.stage(tmp_path / "net.onnx", info)
    assert other != staged
    assert converters.read_spec(other).inputs[0].shape == (2, 3, 32, 32)
    assert {file.name for file in staged.iterdir()} == {"model.onnx", "spec.json"}


def test_a_model_is_converted_once_for_each_version(staged: Path, tmp_path: Path) -> None:
    calls = tmp_path / "calls"
    python = fake_python(tmp_path / "python", f'echo "$2 $3" >> {calls}; echo x > "$5/model.x"')
    for _ in range(2):
        made = conversions.convert("ncnn", staged, python, {"pnnx": "2", "ncnn": "1"})
        assert (made / "model.x").read_text() == "x\n"
        assert made.parent == staged
    assert calls.read_text() == "converters ncnn\n"
    newer = conversions.convert("ncnn", staged, python, {"pnnx": "3", "ncnn": "1"})
    assert newer != made
    assert len(calls.read_text().splitlines()) == 2


def test_a_conversion_that_fails_says_why_and_leaves_nothing(staged: Path, tmp_path: Path) -> None:
    before = sorted(staged.iterdir())
    python = fake_python(tmp_path / "python", "echo noise >&2; echo 'no such operator' >&2; exit 1")
    with pytest.raises(DeviceError, match="the conversion failed: no such operator"):
        conversions.convert("mnn", staged, python, {})
    python = fake_python(tmp_path / "python", "kill -SEGV $$")
    with pytest.raises(DeviceError, match="the conversion failed: signal 11"):
        conversions.convert("mnn", staged, python, {})
    assert sorted(staged.iterdir()) == before


def test_a_conversion_that_hangs_is_ended_with_its_children(
    staged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conversions, "TIMEOUT_S", 0.5)
    pids = tmp_path / "pids"
    python = fake_python(tmp_path / "python", f"sleep 60 & echo $! > {pids}; wait")
    with pytest.raises(DeviceError, match="more than"):
        conversions.convert("mnn", staged, python, {})
    child = int(pids.read_text())
    for _ in range(100):
        if not Path(f"/proc/{child}").exists() or " Z " in Path(f"/proc/{child}/stat").read_text():
            break
        time.sleep(0.02)
    else:
        os.kill(child, 0)
        raise AssertionError("the child goes on")


def test_pnnx_is_told_to_keep_float32_and_leaves_two_files(
    staged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool = fake_python(
        tmp_path / "pnnx",
        'test "$*" = "model.onnx fp16=0" || exit 3; touch model.ncnn.param model.ncnn.bin junk.py',
    )
    monkeypatch.setitem(sys.modules, "pnnx", types.SimpleNamespace(EXEC_PATH=tool))
    output = tmp_path / "output"
    output.mkdir()
    converters.to_ncnn(staged, output)
    assert sorted(file.name for file in output.iterdir()) == ["model.ncnn.bin", "model.ncnn.param"]
    # Some versions end with 0 when they have failed.
    fake_python(tmp_path / "pnnx", "exit 0")
    for file in output.iterdir():
        file.unlink()
    with pytest.raises(UsageError, match=r"wrote no model\.ncnn\.param"):
        converters.to_ncnn(staged, output)


def test_what_is_no_image_network_is_refused() -> None:
    one = InputSpec("x", (1, 3, 32, 32), "float32")
    for inputs in (
        (one, one),
        (InputSpec("x", (1, 10), "float32"),),
        (InputSpec("x", (1, 3, 32, 32), "uint8"),),
    ):
        spec = converters.ModelSpec(inputs, ())
        with pytest.raises(UsageError, match="MNN is run here with models of one float32"):
            converters.only_image(spec, "MNN")
    assert converters.only_image(converters.ModelSpec((one,), ()), "MNN") == one
    assert np.prod(converters.image_shape(one)) == 3 * 32 * 32
