"""The verb that says what is in a photo, on a module made of numpy."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from mobilenet_tvm import run, runtime
from mobilenet_tvm.build.manifest import (
    FORMAT_VERSION,
    Manifest,
    ModelInfo,
    Preprocessing,
    TargetInfo,
    TensorSpec,
    ToolchainInfo,
    TuningInfo,
)

CLASSES = 7


@pytest.fixture
def module(monkeypatch):
    """A module that likes class 2 in red photos, and class 4 in blue ones."""

    def predict(feed):
        red, _, blue = feed["x"][0].mean(axis=(1, 2))
        logits = np.linspace(-3, -4, CLASSES, dtype=np.float32)
        logits[2], logits[4] = 2 * red, 2 * blue
        return {"y": np.repeat(logits[None], len(feed["x"]), axis=0)}

    manifest = Manifest(
        format_version=FORMAT_VERSION,
        name="colours",
        model=ModelInfo("colours", "sha256:0"),
        inputs=(TensorSpec("x", (2, 3, 8, 8), "float32"),),
        outputs=(TensorSpec("y", (2, CLASSES), "float32"),),
        target=TargetInfo("x86", "llvm", "x86_64", ()),
        toolchain=ToolchainInfo("0", "0", "0"),
        tuning=TuningInfo(0, 0),
        so_sha256="",
        preprocessing=Preprocessing(8, 8, 8),
    )
    module = SimpleNamespace(run=predict, manifest=manifest)
    monkeypatch.setattr(runtime, "load", lambda _path, **_how: module)
    return module


@pytest.fixture
def red(tmp_path):
    path = tmp_path / "red.png"
    Image.new("RGB", (16, 16), "red").save(path)
    return str(path)


@pytest.fixture
def blue(tmp_path):
    path = tmp_path / "blue.png"
    Image.new("RGB", (16, 16), "blue").save(path)
    return str(path)


def replace_manifest(module, **changes):
    module.manifest = Manifest(
        **{f: changes.get(f, getattr(module.manifest, f)) for f in Manifest.__struct_fields__}
    )


def labels_file(tmp_path, count):
    path = tmp_path / "labels.txt"
    path.write_text("\n".join(f"colour {i}" for i in range(count)) + "\n")
    return str(path)


@pytest.mark.usefixtures("module")
def test_five_classes_of_each_photo_best_first(red, blue, capsys):
    assert run.main(["net.so", red, blue]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 * (1 + 5)
    assert lines[0] == red
    # e^2 / (e^2 + e^-2 + e^-3 + e^-3.17 + e^-3.5 + e^-3.83 + e^-4)
    assert lines[1].split() == ["96.1%", "class", "2"]
    assert lines[6] == blue
    assert lines[7].split()[-1] == "4"


def test_probabilities_are_the_softmax_of_logits(module, red, capsys):
    assert run.main(["net.so", red, "--json"]) == 0
    payload = json.loads(capsys.readouterr().out)
    logits = module.run({"x": np.full((1, 3, 8, 8), -1, np.float32) * [[[[-1]], [[1]], [[1]]]]})
    row = np.exp(logits["y"][0].astype(np.float64))
    (image,) = payload["images"]
    assert payload["artifact"] == "net.so"
    assert image["image"] == red
    assert [entry["index"] for entry in image["top"]] == [2, 4, 0, 1, 3]
    assert [entry["label"] for entry in image["top"]] == [None] * 5
    expected = (row / row.sum())[[2, 4, 0, 1, 3]]
    assert [entry["probability"] for entry in image["top"]] == pytest.approx(list(expected))


def test_probabilities_are_printed_as_they_are(module, red, capsys):
    distribution = np.array([[0.5, 0.2, 0.1, 0.1, 0.1, 0, 0]] * 2, np.float32)
    module.run = lambda feed: {"y": distribution}
    assert run.main(["net.so", red, "--json"]) == 0
    top = json.loads(capsys.readouterr().out)["images"][0]["top"]
    assert [entry["probability"] for entry in top] == pytest.approx([0.5, 0.2, 0.1, 0.1, 0.1])


def test_labels_of_the_manifest(module, red, capsys):
    replace_manifest(module, labels=tuple("abcdefg"))
    assert run.main(["net.so", red]) == 0
    assert capsys.readouterr().out.splitlines()[1].endswith("class 2  c")


def test_labels_of_a_file_win(module, red, tmp_path, capsys):
    replace_manifest(module, labels=tuple("abcdefg"))
    assert run.main(["net.so", red, "--labels", labels_file(tmp_path, CLASSES)]) == 0
    assert capsys.readouterr().out.splitlines()[1].endswith("class 2  colour 2")


@pytest.mark.usefixtures("module")
def test_labels_that_do_not_fit_are_refused(red, tmp_path, capsys):
    assert run.main(["net.so", red, "--labels", labels_file(tmp_path, CLASSES - 1)]) == 2
    assert "6 labels for 7 classes" in capsys.readouterr().err
    assert run.main(["net.so", red, "--labels", str(tmp_path / "none.txt")]) == 2
    assert "cannot read the labels" in capsys.readouterr().err
    assert run.main(["net.so", red, "--labels", red]) == 2
    assert "is no text file" in capsys.readouterr().err
    assert run.main(["net.so", red, "--labels", labels_file(tmp_path, 0)]) == 2
    assert "is empty" in capsys.readouterr().err


@pytest.mark.usefixtures("module")
def test_a_file_that_is_no_photo_is_refused(red, tmp_path, capsys):
    notes = tmp_path / "notes.png"
    notes.write_text("not a picture")
    assert run.main(["net.so", red, str(notes)]) == 2
    assert "notes.png is no image" in capsys.readouterr().err


def test_a_model_without_class_scores_is_refused(module, red, capsys):
    replace_manifest(module, outputs=(TensorSpec("y", (2, 4, 7, 7), "float32"),))
    module.run = lambda feed: {"y": np.zeros((2, 4, 7, 7), np.float32)}
    assert run.main(["net.so", red]) == 2
    assert "no class scores [N, C] among its outputs (y [2, 4, 7, 7])" in capsys.readouterr().err
