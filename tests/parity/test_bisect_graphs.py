"""Bisection of graphs that a MobileNet is not: siblings, aliases, several outputs, other dtypes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from mobilenet_tvm import check, frontend, targets
from mobilenet_tvm.build import Plan, compile_model
from mobilenet_tvm.build.manifest import ModelInfo, read_manifest, sha256_file, write_manifest
from mobilenet_tvm.parity.bisect import bisect

SHAPE = (1, 16, 8, 8)


class Graph:
    """Nodes on ``x [1, 16, 8, 8]``, each called by its output."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.weights: list[Any] = []
        self._rng = np.random.default_rng(0)

    def node(self, kind: str, output: str, *inputs: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(kind, inputs, [output], f"N_{output}", **attributes))
        return output

    def conv(self, output: str, source: str, kernel: int = 1, filters: int = 16) -> str:
        weight = self._rng.normal(size=(filters, 16, kernel, kernel)).astype(np.float32) / 4
        self.weights.append(numpy_helper.from_array(weight, f"{output}_w"))
        pads = [kernel // 2] * 4
        return self.node(
            "Conv", output, source, f"{output}_w", kernel_shape=[kernel] * 2, pads=pads
        )

    def save(self, path: Path, *outputs: str) -> Path:
        graph = helper.make_graph(
            self.nodes,
            "g",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, SHAPE)],
            [helper.make_tensor_value_info(o, TensorProto.FLOAT, None) for o in outputs],
            self.weights,
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)])
        model.ir_version = 8
        path.write_bytes(model.SerializeToString())
        return path


def built(onnx: Path, plan: Plan | None = None) -> Path:
    relay = frontend.to_relay(frontend.clean(frontend.read(onnx)))
    info = ModelInfo("g", sha256_file(onnx), path=str(onnx))
    path = onnx.with_suffix(".so")
    compile_model(relay, targets.resolve("x86"), path, info=info, plan=plan)
    return path


FEED = {"x": np.random.default_rng(1).normal(size=SHAPE).astype(np.float32)}


def siblings(g: Graph) -> tuple[str, ...]:
    """RepVGG's branches, and MobileOne's two of one shape: fusion turns their order round."""
    r = g.node("Relu", "r", "x")
    three, one = g.conv("three", r, 3), g.conv("one", r)
    left, right = g.conv("left", r), g.conv("right", r)
    first = g.node("Add", "first", three, one)
    gate = g.node("Sigmoid", "gate", left)
    g.node("Add", "y", first, g.node("Mul", "gated", gate, right))
    return ("y",)


def aliases(g: Graph) -> tuple[str, ...]:
    """One pooled image as an output, flattened, and as it is for a layer behind."""
    pooled = g.node("GlobalAveragePool", "pooled", g.conv("c", "x"))
    g.node("Flatten", "embedding", pooled)
    g.node("Flatten", "logits", g.conv("head", pooled, filters=10))
    return ("embedding", "logits")


def boxes(g: Graph) -> tuple[str, ...]:
    """A detector's head: moved to the end, reshaped, and beside it an inner tensor as output."""
    inner = g.node("Relu", "inner", g.conv("c", "x", 3))
    moved = g.node("Transpose", "moved", g.conv("box", inner, filters=8), perm=[0, 2, 3, 1])
    g.weights.append(numpy_helper.from_array(np.array([1, -1, 4], np.int64), "shape"))
    g.node("Reshape", "boxes", moved, "shape")
    return ("boxes", "inner")


GRAPHS = {"siblings": siblings, "aliases": aliases, "boxes": boxes}


@pytest.mark.parametrize("name", GRAPHS)
def test_a_sound_graph_has_no_culprit(name: str, tmp_path: Path) -> None:
    g = Graph()
    outputs = GRAPHS[name](g)
    found = bisect(built(g.save(tmp_path / "g.onnx", *outputs)), FEED)
    assert found.culprit is None, found.summary()
    assert found.summary().startswith("every layer agrees"), found.summary()
    assert found.compared == found.kernels
    assert {layer.tensor for layer in found.layers} >= set(outputs)


@pytest.mark.parametrize(
    ("name", "broken"),
    [
        ("siblings", "three"),
        ("siblings", "one"),
        ("siblings", "left"),
        ("siblings", "right"),
        ("aliases", "head"),
        ("boxes", "box"),
    ],
)
def test_the_broken_convolution_is_named(name: str, broken: str, tmp_path: Path) -> None:
    g = Graph()
    outputs = GRAPHS[name](g)
    path = built(g.save(tmp_path / "g.onnx", *outputs))
    # The artifact says that it was made from another model: one weight of that has another sign.
    (weight,) = (w for w in g.weights if w.name == f"{broken}_w")
    values = numpy_helper.to_array(weight).copy()
    values[0, 0] *= -3
    weight.CopyFrom(numpy_helper.from_array(values, weight.name))
    other = g.save(tmp_path / "other.onnx", *outputs)
    claim(path, other)
    found = bisect(path, FEED)
    assert found.culprit is not None, found.summary()
    assert f"Conv N_{broken}" in found.culprit.nodes
    assert found.culprit.before <= 1e-5


def claim(path: Path, onnx: Path) -> None:
    import msgspec

    info = ModelInfo("g", sha256_file(onnx), path=str(onnx))
    write_manifest(path, msgspec.structs.replace(read_manifest(path), model=info))


def test_outputs_are_compared_whatever_is_known_of_the_kernels(tmp_path: Path) -> None:
    import msgspec

    g = Graph()
    path = built(g.save(tmp_path / "g.onnx", *boxes(g)))
    manifest = read_manifest(path)
    nameless = tuple(msgspec.structs.replace(layer, output=None) for layer in manifest.layers)
    write_manifest(path, msgspec.structs.replace(manifest, layers=nameless))
    found = bisect(path, FEED)
    # The outputs are known all the same, and what is before each is compared with it.
    assert [layer.tensor for layer in found.layers] == ["boxes", "inner"]
    assert [len(layer.nodes) for layer in found.layers] == [5, 2]
    assert found.compared == found.kernels


def test_a_folder_that_cannot_be_written_costs_the_reproducer_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    g = Graph()
    path = built(g.save(tmp_path / "g.onnx", *siblings(g)))
    weight = next(w for w in g.weights if w.name == "one_w")
    weight.CopyFrom(numpy_helper.from_array(-numpy_helper.to_array(weight), weight.name))
    claim(path, g.save(tmp_path / "other.onnx", "y"))
    (tmp_path / "taken").touch()
    arguments = [str(path), "--bisect", "--bisect-output", str(tmp_path / "taken" / "x"), "--json"]
    assert check.main(arguments) == 1
    said = capsys.readouterr()
    payload = json.loads(said.out)
    assert payload["bisect"]["culprit"]["nodes"] == ["Conv N_one"]
    assert payload["bisect"]["reproducer"] is None
    assert "the layer is not written out: cannot write" in said.err


def test_files_of_one_name_are_told_apart(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    g = Graph()
    onnx = g.save(tmp_path / "g.onnx", *siblings(g))
    for folder, scale in (("a", 0), ("b", 1)):
        (tmp_path / folder).mkdir()
        np.savez(tmp_path / folder / "in.npz", x=FEED["x"] * np.float32(scale))
    files = [str(tmp_path / folder / "in.npz") for folder in "ab"]
    arguments = ["--onnx", str(onnx), "--inputs", "0", "--npz", *files, "--bisect", "--json"]
    assert check.main(arguments) == 0
    # Of two that pass it is the one with an error at all: the zeros are exact.
    assert json.loads(capsys.readouterr().out)["bisect"]["input"] == "b/in.npz"


@pytest.mark.slow
def test_ansor_s_layout_is_seen_through(tmp_path: Path) -> None:
    """Untuned, for the layout alone: NHWC convolutions, of which TVM drops the transposition."""
    g = Graph()
    onnx = g.save(tmp_path / "g.onnx", *boxes(g))
    relay = frontend.to_relay(frontend.clean(frontend.read(onnx)))
    import dataclasses

    from mobilenet_tvm.build.layouts import mixed

    moved = dataclasses.replace(relay, module=mixed(relay.module, (0, 1)))
    path = tmp_path / "g.so"
    info = ModelInfo("g", sha256_file(onnx), path=str(onnx))
    compile_model(moved, targets.resolve("x86"), path, info=info)
    found = bisect(path, FEED)
    assert found.culprit is None, found.summary()
    assert {layer.tensor for layer in found.layers} >= {"boxes", "inner"}


def test_an_artifact_that_is_not_compiled_or_named_is_one_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert check.main([]) == 2
    assert "name an ARTIFACT, or a model with --onnx" in capsys.readouterr().err
    assert check.main([str(tmp_path / "x.so"), "--target", "x86"]) == 2
    assert "--target: only with no ARTIFACT" in capsys.readouterr().err
    assert check.main(["--onnx", str(tmp_path / "none.onnx")]) == 2
    assert "there is no file" in capsys.readouterr().err
