"""Every network of the zoo: valid ONNX, its shapes, the same bytes, alive in ONNX Runtime."""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper
from PIL import Image

from mobilenet_tvm import zoo
from mobilenet_tvm.errors import UsageError
from mobilenet_tvm.zoo import costing, mobilenets
from mobilenet_tvm.zoo.tables import FAMILIES

CLASSES = 20
DETECTORS = [name for name in zoo.names() if name.startswith("ssd")]
ACTIVATIONS = ("Clip", "Relu", "HardSwish", "HardSigmoid", "Add", "Concat")


def arguments(name: str) -> dict:
    """Of a model small enough for a test, and with pixels enough to be alive."""
    return {"resolution": max(64, FAMILIES[name].least_resolution), "classes": CLASSES}


@dataclass(frozen=True)
class Built:
    name: str
    model: onnx.ModelProto
    resolution: int


@pytest.fixture(scope="module", params=zoo.names())
def built(request):
    given = arguments(request.param)
    return Built(request.param, zoo.build(request.param, **given), given["resolution"])


def output_shapes(model: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    return {
        o.name: tuple(d.dim_value for d in o.type.tensor_type.shape.dim) for o in model.graph.output
    }


def test_is_valid_and_has_its_shapes(built):
    onnx.checker.check_model(built.model, full_check=True)
    inferred = onnx.shape_inference.infer_shapes(built.model, strict_mode=True, data_prop=True)
    if built.name in DETECTORS:
        # Maps of 4, 2 and four of 1 pixel across; 3 anchors on the first and 6 on the others.
        anchors = 3 * 4**2 + 6 * (2**2 + 4 * 1)
        expected = {"boxes": (1, anchors, 4), "scores": (1, anchors, CLASSES)}
    else:
        expected = {"logits": (1, CLASSES)}
    assert output_shapes(inferred) == expected
    names = [node.name for node in built.model.graph.node]
    tensors = [t for node in built.model.graph.node for t in node.output]
    assert len(set(names)) == len(names)
    assert len(set(tensors)) == len(tensors)
    hard_swish = any(node.op_type == "HardSwish" for node in built.model.graph.node)
    assert built.model.opset_import[0].version == (14 if hard_swish else 13)


def test_every_weight_has_values(built):
    for tensor in built.model.graph.initializer:
        values = numpy_helper.to_array(tensor)
        assert np.isfinite(values).all(), tensor.name
        if values.size > 20 and tensor.name.endswith("weight"):
            assert np.std(values) > 0, tensor.name


def test_is_the_outline_with_values(built):
    outline = zoo.outline(built.name, **arguments(built.name))
    assert list(outline.graph.node) == list(built.model.graph.node)
    shapes = [[(t.name, list(t.dims)) for t in m.graph.initializer] for m in (outline, built.model)]
    assert shapes[0] == shapes[1]
    assert outline.ByteSize() < 200_000


@pytest.mark.parametrize("kind", ["uniform", "normal"])
def test_is_alive(built, kind):
    """Nothing dies or explodes, and every output depends on the image."""
    watched = onnx.ModelProto()
    watched.CopyFrom(built.model)
    kinds = {n.output[0]: n.op_type for n in built.model.graph.node if n.op_type in ACTIVATIONS}
    outputs = [o.name for o in built.model.graph.output]
    inner = [tensor for tensor in kinds if tensor not in outputs]
    watched.graph.output.extend(onnx.helper.make_empty_tensor_value_info(t) for t in inner)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        watched.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    rng = np.random.default_rng(1)
    shape = (3, 1, 3, built.resolution, built.resolution)
    images = rng.uniform(-1, 1, shape) if kind == "uniform" else rng.standard_normal(shape)
    runs = [session.run([*outputs, *inner], {"input": i}) for i in images.astype(np.float32)]
    found = dict(zip([*outputs, *inner], map(np.stack, zip(*runs, strict=True)), strict=True))

    for tensor in outputs:
        values = found[tensor].reshape(3, -1)
        assert np.isfinite(values).all()
        assert (np.std(values, axis=1) > 1).all(), tensor
        assert np.abs(values).max() < 60, tensor
        assert np.mean(np.std(values, axis=0)) > 0.3, tensor
    for tensor in inner:
        values = found[tensor]
        op = kinds[tensor]
        low, high = (0.05, 0.6) if op == "HardSigmoid" else (0.3, 12)
        assert low < np.std(values) < high, tensor
        assert np.abs(values).max() < 60, tensor
        # A gate may be open or shut, and ReLU's zeros are wanted; a dead channel is not.
        assert np.mean(values == 0) < 0.6, tensor
        if values.ndim == 5 and values[0, 0, 0].size >= 16:
            assert np.mean((values == 0).all(axis=(0, 1, 3, 4))) < 0.2, tensor


def test_photos_get_different_answers(built, shared_images):
    photos = []
    size = (built.resolution, built.resolution)
    for path in sorted(shared_images.iterdir()):
        if path.suffix.lower() in (".png", ".jpg", ".jpeg") and len(photos) < 4:
            pixels = np.asarray(Image.open(path).convert("RGB").resize(size), np.float32)
            photos.append(pixels.transpose(2, 0, 1)[None] / 127.5 - 1)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        built.model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    runs = [session.run(None, {"input": photo}) for photo in photos]
    for values in zip(*runs, strict=True):
        flat = np.stack(values).reshape(len(photos), -1)
        assert np.corrcoef(flat)[np.triu_indices(len(photos), 1)].max() < 0.95
        assert np.mean(np.std(flat, axis=0)) > 0.3


def test_rounding_stays_inside_the_parity_gate(built):
    """Two float32 evaluations in different order stay inside a tenth of the gate's 1e-4."""
    results = []
    for level in ("ORT_ENABLE_ALL", "ORT_DISABLE_ALL"):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
        session = onnxruntime.InferenceSession(
            built.model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        shape = (1, 3, built.resolution, built.resolution)
        image = np.random.default_rng(2).uniform(-1, 1, shape).astype(np.float32)
        results.append(session.run(None, {"input": image}))
    for fused, plain in zip(*results, strict=True):
        assert np.abs(fused - plain).max() < 1e-5 * np.abs(plain).max()


def digest(model: onnx.ModelProto) -> str:
    weights = b"".join(t.raw_data for t in model.graph.initializer)
    return hashlib.sha256(weights).hexdigest()[:16]


def test_weights_are_the_same_on_every_machine(built):
    """Pinned: records and manifests name a zoo model by its digest."""
    assert digest(built.model) == PINNED[built.name]


PINNED = {
    "mobilenet_v1": "665b668ed47ae82d",
    "mobilenet_v1_conv": "19ccba3b6f3f087e",
    "mobilenet_v1_shallow": "e3eed9e7c8fad571",
    "mobilenet_v2": "0bb1f56afb8cdebf",
    "mobilenet_v3_large": "c36f5fbb7b214a26",
    "mobilenet_v3_small": "3b29a50aad9764d6",
    "mobilenet_v3_large_minimalistic": "4cf0ba7f130337f8",
    "mobilenet_v3_small_minimalistic": "1848f51628014f54",
    "mobilenet_v4_conv_small": "1b93b2a69ae2f65d",
    "mobilenet_v4_conv_medium": "25c27e9fcb1c3a0b",
    "ssd_mobilenet_v1": "d5f006139de3ae52",
    "ssd_mobilenet_v2": "a49db4bd345eb5bd",
    "ssdlite_mobilenet_v2": "0788cbec232e0f7f",
    "googlenet": "5ba4a52c8d6d8a34",
    "vgg16": "4047e2772db6c486",
    "squeezenet": "bcacc76a1a501fb8",
    "alexnet": "10af337fe48a5dce",
}


def test_same_bytes_in_every_process():
    names = ("mobilenet_v3_small", "squeezenet")
    code = (
        "import hashlib; from mobilenet_tvm import zoo;"
        f"[print(hashlib.sha256(zoo.build(n, resolution=64, seed=2).SerializeToString())"
        f".hexdigest()) for n in {names}]"
    )
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    here = [
        hashlib.sha256(zoo.build(n, resolution=64, seed=2).SerializeToString()).hexdigest()
        for n in names
    ]
    assert other.stdout.split() == here


@pytest.mark.parametrize("name", [n for n in zoo.names() if len(FAMILIES[n].alphas) > 1])
def test_every_published_alpha_has_an_outline(name):
    family = FAMILIES[name]
    costs = [zoo.costs(zoo.outline(name, alpha=alpha)) for alpha in family.alphas]
    assert sorted(costs, key=lambda c: c.mult_adds, reverse=True) == costs
    smallest = zoo.outline(name, alpha=family.alphas[-1], resolution=32, classes=2, batch=3)
    assert all(shape[0] == 3 for shape in output_shapes(smallest).values())
    onnx.shape_inference.infer_shapes(smallest, strict_mode=True)


@pytest.mark.parametrize("name", [n for n in zoo.names() if FAMILIES[n].step == 1])
@pytest.mark.parametrize("more", [0, 1, 37])
def test_any_resolution_from_the_least_up(name, more):
    resolution = FAMILIES[name].least_resolution + more
    model = zoo.outline(name, resolution=resolution, classes=3)
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
    assert output_shapes(inferred) == output_shapes(model)


def test_an_odd_resolution_runs():
    model = zoo.build("mobilenet_v3_small", alpha=0.35, resolution=75, classes=4)
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    assert np.isfinite(session.run(None, {"input": np.ones((1, 3, 75, 75), np.float32)})[0]).all()


TABLE = re.compile(r"^([A-Z0-9_]+)(?:: .*)? = ", re.MULTILINE)
SHAPE = re.compile(r"# .*?\[(\d+(?:, \d+)*)\]")


def tables() -> list[tuple[str, list[tuple[int, ...]]]]:
    """Each table of the modules that hold them, and the shapes in its comments."""
    found = []
    folder = Path(mobilenets.__file__).parent
    for module in ("mobilenets", "detectors", "comparison"):
        parts = TABLE.split((folder / f"{module}.py").read_text())
        for name, text in zip(parts[1::2], parts[2::2], strict=True):
            table = text.split("\ndef ")[0]
            shapes = [tuple(map(int, s.split(", "))) for s in SHAPE.findall(table)]
            family = {"v1_rows": "mobilenet_v1"}.get(name.lower(), name.lower())
            if shapes and family in FAMILIES:
                found.append((family, shapes))
    return found


@pytest.mark.parametrize(("name", "shapes"), tables(), ids=[name for name, _ in tables()])
def test_the_shapes_in_a_tables_comments(name, shapes):
    """They come in this order in the graph."""
    model = zoo.outline(name)
    known = costing.shapes(model)
    made = iter([known[node.output[0]][1:] for node in model.graph.node])
    for shape in shapes:
        assert shape in made, shape


def test_all_tables_with_shapes_are_checked():
    assert len(tables()) == 13


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (("mobilenet_v2", {"alpha": 1.5}), "[0.35, 1.4]: give 1.4, 1.3, 1, 0.75, 0.5, 0.35 or"),
        (("mobilenet_v2", {"alpha": 0.3}), "alpha 0.3 is outside [0.35, 1.4]"),
        (("mobilenet_v3_large", {"alpha": 1.3}), "alpha 1.3 is outside [0.35, 1.25]"),
        (("mobilenet_v2", {"alpha": float("nan")}), "alpha nan is outside"),
        (("vgg16", {"alpha": 0.5}), "alpha 0.5: vgg16 has one width, 1: leave alpha out"),
        (("mobilenet_v4_conv_medium", {"alpha": 0.5}), "one width, 1: leave alpha out"),
        (("mobilenet_v2", {"resolution": 31}), "31 is too small for mobilenet_v2: give 32 or more"),
        (("alexnet", {"resolution": 66}), "66 is too small for alexnet: give 67 or more"),
        (("mobilenet_v1_conv", {"resolution": 225}), "no positive multiple of 32: give 224 or 256"),
        (("ssd_mobilenet_v1", {"classes": 0}), "classes 0 is too small"),
        (("mobilenet_v3_smal", {}), "did you mean mobilenet_v3_small"),
    ],
)
def test_limits_are_the_familys_own(given, words):
    name, more = given
    with pytest.raises(UsageError) as caught:
        zoo.build(name, **more)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_defaults_are_the_familys_own():
    assert zoo.defaults() == {
        "alpha": 1.0,
        "resolution": 224,
        "batch": 1,
        "classes": 1000,
        "seed": 0,
    }
    assert zoo.defaults("ssd_mobilenet_v1") == {
        "alpha": 1.0,
        "resolution": 300,
        "batch": 1,
        "classes": 91,
        "seed": 0,
    }
    # The paper's and the authors' code's 1917 boxes.
    assert output_shapes(zoo.outline("ssd_mobilenet_v1")) == {
        "boxes": (1, 1917, 4),
        "scores": (1, 1917, 91),
    }


@pytest.mark.parametrize(
    ("alpha", "channels"),
    [  # TF-slim's: divisible by 8, never 10 % fewer, and 1280 is widened alone
        (1.4, [48, 24, 32, 48, 88, 136, 224, 448, 1792]),
        (1.0, [32, 16, 24, 32, 64, 96, 160, 320, 1280]),
        (0.35, [16, 8, 8, 16, 24, 32, 56, 112, 1280]),
    ],
)
def test_v2s_channels(alpha, channels):
    layers = zoo.layer_costs(zoo.outline("mobilenet_v2", alpha=alpha))
    firsts = [2, 3, 5, 8, 12, 15, 18]
    names = ["conv1", *(f"block{n}/project" for n in firsts), "conv19"]
    by_name = {layer.node: layer.output_shape[1] for layer in layers}
    assert [by_name[name] for name in names] == channels


def test_shortcuts_stand_where_shapes_allow():
    """V2: 10, as many as its authors' model has."""
    model = zoo.outline("mobilenet_v2")
    shapes = costing.shapes(model)
    adds = [n for n in model.graph.node if n.op_type == "Add"]
    assert len(adds) == 10
    for add in adds:
        first, second = (shapes[t] for t in add.input)
        assert first == second == shapes[add.output[0]]


def test_minimalistic_has_no_advanced_block():
    for size in ("large", "small"):
        model = zoo.outline(f"mobilenet_v3_{size}_minimalistic")
        assert {n.op_type for n in model.graph.node} == {
            "Conv",
            "BatchNormalization",
            "Relu",
            "Add",
            "GlobalAveragePool",
            "Flatten",
            "Gemm",
        }
        weights = [t.dims for t in model.graph.initializer if len(t.dims) == 4]
        assert {tuple(dims[2:]) for dims in weights} == {(1, 1), (3, 3)}
