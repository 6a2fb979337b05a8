"""Blocks in the very forms that exporters write them: imported, built, and fast where it counts.

Each graph holds many forms at once, because building is what takes the time.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import mobilenet_tvm
from mobilenet_tvm import frontend, targets
from mobilenet_tvm.build import compile_model
from mobilenet_tvm.build.manifest import ModelInfo, sha256_bytes
from mobilenet_tvm.records import extract_tasks

CHANNELS = 16
SIZE = 8


@dataclass(frozen=True)
class Built:
    """An artifact of a graph: its kernels in order, its tasks' labels, how to run it."""

    kernels: list[str]
    labels: list[str]
    module: Any
    specs: tuple[Any, ...]


@pytest.fixture
def build(tmp_path: Path) -> Callable[[onnx.ModelProto], Built]:
    """``build(proto)``: imported and compiled for this CPU, untuned."""

    def make(proto: onnx.ModelProto) -> Built:
        import tvm

        relay = frontend.to_relay(frontend.clean(frontend.from_proto(proto, "net")))
        preset = targets.resolve("x86")
        path = tmp_path / "net.x86.so"
        compile_model(relay, preset, path, info=ModelInfo("net", sha256_bytes(b"net")))
        graph = json.loads(tvm.runtime.load_module(str(path))["get_graph_json"]())
        called = [node["attrs"]["func_name"] for node in graph["nodes"] if node["op"] == "tvm_op"]
        return Built(
            [name.removeprefix("tvmgen_default_") for name in called],
            [task.label for task in extract_tasks(relay.module, preset)],
            mobilenet_tvm.load(path, threads=1),
            relay.inputs,
        )

    return make


@pytest.fixture
def assert_same(reference: Callable[..., list[np.ndarray]]) -> Callable[..., None]:
    """``assert_same(proto, built)``: outputs are ONNX Runtime's, and depend on the image."""

    def check(proto: onnx.ModelProto, built: Built) -> None:
        (spec,) = built.specs
        draw = np.random.default_rng(0)
        images = [draw.uniform(-1, 1, spec.shape).astype(np.float32) for _ in range(2)]
        expected = [reference(proto, image) for image in images]
        for image, wanted in zip(images, expected, strict=True):
            got = list(built.module.run({spec.name: image}).values())
            assert len(got) == len(wanted)
            for one, other in zip(got, wanted, strict=True):
                assert one.shape == other.shape
                np.testing.assert_allclose(one, other, rtol=0, atol=1e-4 * np.abs(other).max())
        for one, other in zip(*expected, strict=True):
            assert np.abs(one - other).max() > 0.01 * np.abs(one).max()

    return check


def layout_transforms(built: Built) -> list[str]:
    return [name for name in built.kernels if "layout_transform" in name]


def clip6(net: Any, x: str) -> str:
    return net.relu6(x)


def max_min(net: Any, x: str) -> str:
    return net.node("Min", net.node("Max", x, net.constant(0.0)), net.constant(6.0))


def plus3(net: Any, x: str) -> str:
    return net.node("Add", x, net.constant(3.0))


# Hard-swish: as one operator, or in parts in the order of one exporter or another.
HARD_SWISH: dict[str, Callable[[Any, str], str]] = {
    "HardSwish": lambda n, x: n.node("HardSwish", x),
    "HardSigmoid": lambda n, x: n.node("Mul", x, n.node("HardSigmoid", x, alpha=1 / 6, beta=0.5)),
    "gate / 6": lambda n, x: n.node(
        "Mul", x, n.node("Div", clip6(n, plus3(n, x)), n.constant(6.0))
    ),
    "product / 6": lambda n, x: n.node(
        "Div", n.node("Mul", x, clip6(n, plus3(n, x))), n.constant(6.0)
    ),
    "product * 1/6": lambda n, x: n.node(
        "Mul", n.node("Mul", clip6(n, plus3(n, x)), x), n.constant([1 / 6])
    ),
    "x * 1/6 first": lambda n, x: n.node(
        "Mul", n.node("Mul", x, n.constant(1 / 6)), clip6(n, plus3(n, x))
    ),
    "Max and Min": lambda n, x: n.node(
        "Mul", x, n.node("Div", max_min(n, plus3(n, x)), n.constant(6.0))
    ),
}


@pytest.mark.slow
def test_hard_swish_in_every_form_is_part_of_its_convolution(net, build, assert_same):
    built = net(17, (1, 3, SIZE, SIZE))
    x = built.conv("input", 3, CHANNELS, 3, pads=[1] * 4)
    for number, form in enumerate(HARD_SWISH.values()):
        x = built.norm(form(built, x), CHANNELS) if number == 3 else form(built, x)
        x = built.conv(x, CHANNELS, CHANNELS, 1)
    proto = built.model(x, rank=4)
    made = build(proto)
    assert_same(proto, made)
    # Nothing between the convolutions; a transform brings the output to NCHW.
    convolutions = [name for name in made.kernels if "conv2d" in name]
    assert len(convolutions) == len(HARD_SWISH) + 1
    assert len(made.kernels) == len(convolutions) + len(layout_transforms(made))
    assert len(layout_transforms(made)) <= 1
    assert not [name for name in made.kernels if "divide" in name]


def pool_global(net: Any, x: str) -> str:
    return net.node("GlobalAveragePool", x)


def pool_mean(net: Any, x: str) -> str:
    return net.reduce("ReduceMean", x, [2, 3], 1)


def pool_mean_negative(net: Any, x: str) -> str:
    return net.reduce("ReduceMean", x, [-1, -2], 1)


def pool_window(net: Any, x: str) -> str:
    return net.node("AveragePool", x, kernel_shape=[SIZE, SIZE])


def flat_global(net: Any, x: str) -> str:
    return net.node("Flatten", net.node("GlobalAveragePool", x))


def flat_mean(net: Any, x: str) -> str:
    return net.reduce("ReduceMean", x, [2, 3], 0)


def flat_rows(net: Any, x: str) -> str:
    shape = net.constant([0, CHANNELS, -1], np.int64)
    return net.reduce("ReduceMean", net.node("Reshape", x, shape), [2], 0)


def gemm(net: Any, x: str, cin: int, cout: int) -> str:
    weight = net.constant(net.random.normal(0, cin**-0.5, (cout, cin)))
    return net.node("Gemm", x, weight, net.constant(net.random.normal(0, 0.3, cout)), transB=1)


def matmul(net: Any, x: str, cin: int, cout: int) -> str:
    product = net.node("MatMul", x, net.constant(net.random.normal(0, cin**-0.5, (cin, cout))))
    return net.node("Add", product, net.constant(net.random.normal(0, 0.3, cout)))


def unsqueeze(net: Any, x: str) -> str:
    return net.node("Unsqueeze", x, net.constant([2, 3], np.int64))


def unsqueeze_twice(net: Any, x: str) -> str:
    x = net.node("Unsqueeze", x, net.constant([-1], np.int64))
    return net.node("Unsqueeze", x, net.constant([-1], np.int64))


def reshape(net: Any, x: str) -> str:
    return net.node("Reshape", x, net.constant([-1, CHANNELS, 1, 1], np.int64))


def hard_sigmoid(net: Any, x: str) -> str:
    return net.node("HardSigmoid", x, alpha=1 / 6, beta=0.5)


def gate_parts(net: Any, x: str) -> str:
    return net.node("Div", clip6(net, plus3(net, x)), net.constant(6.0))


def sigmoid(net: Any, x: str) -> str:
    return net.node("Sigmoid", x)


CONVS = [
    (pool_global, hard_sigmoid),
    (pool_mean, gate_parts),
    (pool_mean_negative, sigmoid),
    (pool_window, hard_sigmoid),
]
DENSES = [
    (flat_global, gemm, hard_sigmoid, reshape),
    (flat_mean, matmul, gate_parts, unsqueeze),
    (flat_rows, gemm, sigmoid, unsqueeze_twice),
]


def squeeze_excite_net(net: Any) -> tuple[onnx.ModelProto, int]:
    """Depthwise, squeeze-excite, projection: once in each form. Also the number of blocks."""
    hidden = CHANNELS // 2

    def depthwise(x: str) -> str:
        x = net.conv(x, CHANNELS, CHANNELS, 3, group=CHANNELS, pads=[1] * 4)
        return net.node("Relu", net.norm(x, CHANNELS))

    x = net.conv("input", 3, CHANNELS, 3, pads=[1] * 4)
    for pool, gate in CONVS:
        x = depthwise(x)
        y = net.node("Relu", net.conv(pool(net, x), CHANNELS, hidden, 1, bias=True))
        y = gate(net, net.conv(y, hidden, CHANNELS, 1, bias=True))
        x = net.conv(net.node("Mul", x, y), CHANNELS, CHANNELS, 1)
    for pool, dense, gate, back in DENSES:
        x = depthwise(x)
        y = net.node("Relu", dense(net, pool(net, x), CHANNELS, hidden))
        y = back(net, gate(net, dense(net, y, hidden, CHANNELS)))
        x = net.conv(net.node("Mul", y, x), CHANNELS, CHANNELS, 1)
    return net.model(x, rank=4), len(CONVS) + len(DENSES)


@pytest.mark.slow
def test_squeeze_excite_in_every_form(net, build, assert_same):
    proto, blocks = squeeze_excite_net(net(20, (1, 3, SIZE, SIZE)))
    made = build(proto)
    assert_same(proto, made)
    names = " ".join(made.kernels)
    assert len([n for n in made.kernels if n.startswith("fused_nn_global_avg_pool2d")]) == blocks
    # Depthwise, two layers of the gate and the projection a block, and the first convolution.
    assert len([n for n in made.kernels if "conv2d" in n]) == 4 * blocks + 1
    assert not [word for word in ("mean", "dense", "divide", "nn_pad") if word in names]
    # The gate multiplies the image, in its layout, not the weights of the projection.
    gates = [n for n in made.kernels if n.startswith("fused_multiply")]
    assert len(gates) == blocks
    assert len(layout_transforms(made)) <= 1
    assert {"pointwise 1x1 16->8 @ 1x1", "pointwise 1x1 8->16 @ 1x1"} <= set(made.labels)


def test_squeeze_excite_is_one_graph_whatever_wrote_it(net):
    counts = []
    for opset in (13, 20):  # axes as an attribute, and as an input
        proto, blocks = squeeze_excite_net(net(opset, ("N", 3, SIZE, SIZE)))
        clean = frontend.clean(frontend.from_proto(proto, "net"), batch=2)
        counts.append([node.op_type for node in clean.proto.graph.node])
    assert counts[0] == counts[1]
    assert counts[0].count("GlobalAveragePool") == blocks
    unwanted = {"ReduceMean", "AveragePool", "Gemm", "MatMul", "Flatten", "Reshape", "Unsqueeze"}
    assert not unwanted & set(counts[0])


@pytest.mark.slow
def test_heads_and_pads(net, build, assert_same):
    """Classifiers of every kind over one body, whose pads are nodes of their own."""
    built = net(18, (1, 3, 2 * SIZE, 2 * SIZE))
    x = built.conv(built.pad("input", [0, 0, 0, 0, 0, 0, 1, 1]), 3, CHANNELS, 3, strides=[2, 2])
    x = built.relu6(built.norm(x, CHANNELS))
    pads = built.constant([1, 1, 1, 1], np.int64)
    axes = built.constant([2, 3], np.int64)
    x = built.node("Pad", x, pads, "", axes)
    x = built.node("Relu", built.conv(x, CHANNELS, CHANNELS, 3, group=CHANNELS))
    flat = flat_mean(built, x)
    # torchvision's V3: two layers with hard-swish between, and a Dropout.
    hidden = built.node("HardSwish", gemm(built, flat, CHANNELS, 24))
    outputs = [gemm(built, built.node("Dropout", hidden), 24, 10)]
    outputs.append(matmul(built, flat, CHANNELS, 10))
    pixel = built.conv(pool_global(built, x), CHANNELS, 10, 1, bias=True)
    outputs.append(built.node("Squeeze", pixel, axes))
    proto = built.model(*outputs)
    made = build(proto)
    assert_same(proto, made)
    names = " ".join(made.kernels)
    assert "nn_pad" not in names
    assert "dense" not in names
    assert {"pointwise 1x1 16->24 @ 1x1", "pointwise 1x1 24->10 @ 1x1"} <= set(made.labels)


@pytest.mark.slow
def test_unknown_heads_are_kept(net, build, assert_same):
    """Segmentation, attention and boxes on one body: what Relay can import comes along."""
    built = net(17, (1, 3, SIZE, SIZE))
    x = built.node("HardSwish", built.conv("input", 3, CHANNELS, 3, pads=[1] * 4))
    low = built.conv(x, CHANNELS, 4, 1, bias=True)
    # LR-ASPP: a gate of another branch, and a bilinear resize to the image's size.
    gate = built.node("Sigmoid", built.conv(pool_mean(built, x), CHANNELS, 4, 1))
    scales = built.constant([1.0, 1.0, 2.0, 2.0])
    segments = built.node(
        "Resize",
        built.node("Mul", low, gate),
        "",
        scales,
        mode="linear",
        coordinate_transformation_mode="half_pixel",
    )
    # SSD: [N, anchors, 4], softmax over classes.
    nhwc = built.node("Transpose", low, perm=[0, 2, 3, 1])
    boxes = built.node("Reshape", nhwc, built.constant([1, -1, 4], np.int64))
    scores = built.node("Softmax", boxes, axis=-1)
    # Attention over pixels.
    rows = built.node("Reshape", low, built.constant([1, 4, SIZE * SIZE], np.int64))
    columns = built.node("Transpose", rows, perm=[0, 2, 1])
    weights = built.node("Softmax", built.node("MatMul", columns, rows), axis=-1)
    attended = built.node("MatMul", rows, weights)
    best = built.node("TopK", scores, built.constant([3], np.int64), outputs=2, axis=1)
    norm = built.node("ReduceL2", attended, axes=[1], keepdims=1)
    proto = built.model(segments, boxes, scores, best, norm, rank=4)
    for value, rank in zip(proto.graph.output, (4, 3, 3, 3, 3), strict=True):
        del value.type.tensor_type.shape.dim[rank:]
    made = build(proto)
    assert_same(proto, made)
    assert "pointwise 1x1 16->4 @ 8x8" in made.labels


def test_a_head_that_depends_on_the_data_is_named(net):
    built = net(13, (1, 4, SIZE, SIZE))
    rows = built.constant([1, SIZE * SIZE, 4], np.int64)
    boxes = built.node("Reshape", built.conv("input", 4, 4, 1), rows)
    scores = built.node("Transpose", boxes, perm=[0, 2, 1])
    chosen = built.node("NonMaxSuppression", boxes, scores, built.constant([5], np.int64))
    proto = built.model(chosen)
    proto.graph.output[0].type.tensor_type.elem_type = onnx.TensorProto.INT64
    with pytest.raises(mobilenet_tvm.errors.UsageError) as caught:
        frontend.clean(frontend.from_proto(proto, "net"))
    text = str(caught.value)
    assert "NonMaxSuppression" in text
    assert "without its post-processing" in text
    assert "\n" not in text


@pytest.mark.parametrize("opset", [21, 22, 23])
def test_newer_operator_sets_are_converted(net, reference, opset):
    proto, _ = squeeze_excite_net(net(20, (1, 3, SIZE, SIZE)))
    newer = onnx.version_converter.convert_version(proto, opset)
    newer.ir_version = 10
    clean = frontend.clean(frontend.from_proto(newer, "net"))
    assert clean.proto.opset_import[0].version == 20
    image = np.random.default_rng(1).uniform(-1, 1, (1, 3, SIZE, SIZE)).astype(np.float32)
    wanted, got = reference(newer, image)[0], reference(clean.proto, image)[0]
    np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())
    onnx.checker.check_model(clean.proto, full_check=True)
