"""``python -m mobilenet_tvm.models``."""

from __future__ import annotations

import hashlib
import json

import onnx
import pytest

from mobilenet_tvm import zoo
from mobilenet_tvm.models import main
from mobilenet_tvm.zoo import paper


def test_lists_the_zoo(capsys):
    assert main(["--json"]) == 0
    captured = capsys.readouterr()
    models = json.loads(captured.out)["models"]
    assert [model["name"] for model in models] == list(zoo.names())
    for model in models:  # under --json the list goes to stderr
        assert f"{model['title']}, {model['source']}" in captured.err


def test_costs_beside_the_papers(capsys):
    assert main(["--costs", "--json"]) == 0
    captured = capsys.readouterr()
    rows = json.loads(captured.out)["costs"]
    assert len(rows) == len(paper.FIGURES)
    assert all(row["agrees"] or row["notes"] for row in rows)
    assert rows[0]["mult_adds"] == 568_740_352
    assert "568.7" in captured.err
    vgg = next(row for row in rows if row["name"] == "vgg16")
    assert not vgg["agrees"]
    assert vgg["explained"]
    assert vgg["notes"] == ["Mult-Adds without the dense layers: 15347 M"]
    assert "vgg16 1-224: Mult-Adds without the dense layers: 15347 M" in captured.err


def test_costs_of_the_largest_model_build_no_weights(capsys):
    assert main(["--costs", "--model", "vgg16", "--json"]) == 0
    payload = json.loads(capsys.readouterr().out)
    assert payload["parameters"] == 138_344_128
    assert len(payload["layers"]) == 16


def test_costs_of_one_model_layer_by_layer(capsys):
    assert main(["--costs", "--alpha", "0.25", "--resolution", "64", "--json"]) == 0
    payload = json.loads(capsys.readouterr().out)
    assert payload["model"] == {"name": "mobilenet_v1", "alpha": 0.25, "resolution": 64}
    assert len(payload["layers"]) == 28
    assert sum(layer["mult_adds"] for layer in payload["layers"]) == payload["mult_adds"]


def test_writes_the_model_asked_for(tmp_path, capsys):
    path = tmp_path / "small.onnx"
    options = "--model mobilenet_v1 --alpha 0.25 --resolution 64 --batch 2 --classes 10 --seed 5"
    assert main([*options.split(), "-o", str(path), "--json"]) == 0
    payload = json.loads(capsys.readouterr().out)
    expected = zoo.build(alpha=0.25, resolution=64, batch=2, classes=10, seed=5)
    assert onnx.load(path) == expected
    assert payload["digest"] == "sha256:" + hashlib.sha256(path.read_bytes()).hexdigest()
    assert [p.name for p in tmp_path.iterdir()] == ["small.onnx"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--alpha", "0.5"], "-o FILE.onnx"),
        (["--costs", "--model", "mobilnet"], "did you mean mobilenet_v1"),
        (["--costs", "--resolution", "200"], "192 or 224"),
        (["--costs", "--model", "mobilenet_v2", "--alpha", "0.3"], "[0.35, 1.4]"),
        (["--costs", "--seed", "-1"], "seed -1"),
        (["-o", "{folder}"], "give -o a file"),
        (["-o", "{folder}/none/a.onnx"], "in a folder that exists"),
    ],
)
def test_bad_usage_is_one_line_and_exit_2(options, words, tmp_path, capsys):
    assert main([o.format(folder=tmp_path) for o in options]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert captured.err.startswith("error: ")
    assert words in captured.err
