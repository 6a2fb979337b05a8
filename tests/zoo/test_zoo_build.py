"""What ``zoo.build`` makes: structure, shapes, determinism, and arguments refused."""

from __future__ import annotations

import hashlib
import subprocess
import sys

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper

from mobilenet_tvm import zoo
from mobilenet_tvm.errors import UsageError
from mobilenet_tvm.zoo.graph import same_pads
from mobilenet_tvm.zoo.tables import FAMILIES, MOBILENET_V1, scale_channels


def attributes(node: onnx.NodeProto) -> dict:
    return {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}


def node(model: onnx.ModelProto, name: str) -> onnx.NodeProto:
    return next(n for n in model.graph.node if n.name == name)


def test_structure_is_what_exporters_write():
    model = zoo.build(alpha=0.25, resolution=64, classes=10)
    onnx.checker.check_model(model, full_check=True)
    ops = [n.op_type for n in model.graph.node]
    assert ops == ["Conv", "BatchNormalization", "Clip"] * 27 + [
        "GlobalAveragePool",
        "Flatten",
        "Gemm",
    ]
    names = [n.name for n in model.graph.node if n.op_type in ("Conv", "Gemm")]
    separable = [f"conv_{kind}_{i}" for i in range(2, 15) for kind in ("dw", "pw")]
    assert names == ["conv1", *separable, "fc"]
    assert all(len(n.input) == 2 for n in model.graph.node if n.op_type == "Conv")
    constants = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    bounds = {tuple(n.input[1:]) for n in model.graph.node if n.op_type == "Clip"}
    assert [[float(constants[name]) for name in pair] for pair in bounds] == [[0.0, 6.0]]
    assert {a.dtype for a in constants.values()} == {np.dtype("float32")}
    assert model.opset_import[0].version == 13


def test_batchnorm_is_unfolded_and_varies_by_channel():
    model = zoo.build(alpha=0.25, resolution=64, classes=10)
    constants = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    for norm in (n for n in model.graph.node if n.op_type == "BatchNormalization"):
        scale, offset, mean, variance = (constants[name] for name in norm.input[1:])
        for values in (scale, offset, variance):
            assert np.std(values) > 0.01, norm.name
        assert (variance > 0).all()
        if norm.name != "conv1/bn":  # images are centred on 0
            assert np.std(mean) > 0.01, norm.name


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "pads"),
    [
        (224, 3, 2, (0, 1)),
        (112, 3, 1, (1, 1)),
        (7, 3, 2, (1, 1)),
        (9, 1, 1, (0, 0)),
        (2, 5, 2, (1, 2)),
    ],
)
def test_same_pads(size, kernel, stride, pads):
    assert same_pads(size, kernel, stride) == pads


def test_pads_equal_same_upper():
    """The same weights with auto_pad=SAME_UPPER in place of explicit pads give the same logits."""
    explicit = zoo.build(alpha=0.1, resolution=96, classes=7)
    automatic = onnx.ModelProto()
    automatic.CopyFrom(explicit)
    for conv in (n for n in automatic.graph.node if n.op_type == "Conv"):
        kept = [a for a in conv.attribute if a.name != "pads"]
        del conv.attribute[:]
        conv.attribute.extend([*kept, onnx.helper.make_attribute("auto_pad", "SAME_UPPER")])
    image = np.random.default_rng(0).uniform(-1, 1, (1, 3, 96, 96)).astype(np.float32)
    np.testing.assert_array_equal(logits(explicit, image), logits(automatic, image))
    assert list(attributes(node(explicit, "conv1"))["pads"]) == [0, 0, 1, 1]


def logits(model: onnx.ModelProto, image: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return session.run(["logits"], {"input": image})[0]


# TF-slim's channels of V1's rows at the paper's alphas.
CHANNELS = {
    1.0: [32, 64, 128, 128, 256, 256, 512, 512, 512, 512, 512, 512, 1024, 1024],
    0.75: [24, 48, 96, 96, 192, 192, 384, 384, 384, 384, 384, 384, 768, 768],
    0.5: [16, 32, 64, 64, 128, 128, 256, 256, 256, 256, 256, 256, 512, 512],
    0.25: [8, 16, 32, 32, 64, 64, 128, 128, 128, 128, 128, 128, 256, 256],
}


@pytest.mark.parametrize("alpha", CHANNELS)
def test_channels_at_the_papers_alphas(alpha):
    assert [scale_channels(row.channels, alpha) for row in MOBILENET_V1.rows] == CHANNELS[alpha]


@settings(max_examples=15, deadline=None)
@given(
    alpha=st.floats(0.001, 0.3) | st.just(1.0),
    steps=st.integers(1, 3),
    batch=st.integers(1, 3),
    classes=st.integers(1, 12),
    seed=st.integers(0, 2**32),
)
def test_any_alpha_and_resolution_runs(alpha, steps, batch, classes, seed):
    resolution = 32 * steps
    model = zoo.build(alpha=alpha, resolution=resolution, batch=batch, classes=classes, seed=seed)
    onnx.checker.check_model(model, full_check=True)
    image = np.random.default_rng(seed).uniform(-1, 1, (batch, 3, resolution, resolution))
    result = logits(model, image.astype(np.float32))
    assert result.shape == (batch, classes)
    assert np.isfinite(result).all()

    layers = {layer.node: layer for layer in zoo.layer_costs(model)}
    size = resolution
    for number, row in enumerate(MOBILENET_V1.rows, start=1):
        layer = layers["conv1" if number == 1 else f"conv_pw_{number}"]
        size //= row.stride
        expected = max(int(row.channels * alpha), 8)
        assert layer.output_shape == (batch, expected, size, size)


def digest(**arguments) -> str:
    return hashlib.sha256(zoo.build(**arguments).SerializeToString()).hexdigest()


def test_same_arguments_same_bytes_in_every_process():
    arguments = {"alpha": 0.25, "resolution": 96, "classes": 10, "seed": 3}
    code = (
        "import hashlib; from mobilenet_tvm import zoo;"
        f"print(hashlib.sha256(zoo.build(**{arguments}).SerializeToString()).hexdigest())"
    )
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert digest(**arguments) == digest(**arguments) == other.stdout.strip()
    assert digest(**arguments) != digest(**{**arguments, "seed": 4})


def test_weights_are_the_same_on_every_machine():
    """Pinned: records and manifests name a zoo model by its digest."""
    model = zoo.build(alpha=0.25, resolution=128)
    weights = b"".join(t.raw_data for t in model.graph.initializer)
    assert hashlib.sha256(weights).hexdigest() == PINNED


PINNED = "357086e203f00cf17e7829413dea3c1a96a85ad4c69a831adcb0f1c2bd1b3334"


def test_batch_changes_nothing_but_shapes():
    one = zoo.build(alpha=0.25, resolution=64, batch=1)
    three = zoo.build(alpha=0.25, resolution=64, batch=3)
    assert list(one.graph.initializer) == list(three.graph.initializer)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"name": "mobilnet_v1"}, ["'mobilnet_v1'", "did you mean mobilenet_v1"]),
        ({"name": "resnet"}, ["'resnet'", "It has mobilenet_v1"]),
        ({"alpha": 0}, ["alpha 0 ", "(0, 1]"]),
        ({"alpha": 1.01}, ["alpha 1.01 "]),
        ({"alpha": float("nan")}, ["alpha nan "]),
        ({"resolution": 225}, ["resolution 225", "multiple of 32", "224 or 256"]),
        ({"resolution": 0}, ["resolution 0", "32 or 64"]),
        ({"resolution": -32}, ["resolution -32", "32 or 64"]),
        ({"batch": 0}, ["batch 0"]),
        ({"classes": 0}, ["classes 0"]),
        ({"seed": -1}, ["seed -1"]),
    ],
)
def test_arguments_outside_their_range(arguments, words):
    with pytest.raises(UsageError) as caught:
        zoo.build(**arguments)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message


def test_zoo_does_not_load_tvm():
    code = "import sys; from mobilenet_tvm import zoo; zoo.build(alpha=0.25, resolution=32);"
    code += "sys.exit('tvm' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_names():
    assert zoo.names()[0] == "mobilenet_v1"
    assert all(FAMILIES[name].name == name for name in zoo.names())
