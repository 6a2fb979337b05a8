"""A dense layer over one pixel becomes a pointwise convolution, and nothing else does."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from mobilenet_tvm import frontend


def classifier(
    *, pixels: int = 1, flatten: str = "Flatten", tail: str = "Gemm", **attributes: float
) -> onnx.ModelProto:
    """[1, 6, pixels, pixels] -> flatten -> Gemm or MatMul to 5 classes."""
    random = np.random.default_rng(3)
    features = 6 * pixels * pixels
    rows = attributes.get("transB", 0)
    weight = random.normal(size=(5, features) if rows else (features, 5)).astype(np.float32)
    constants = {
        "weight": weight,
        "bias": random.normal(size=5).astype(np.float32),
        "shape": np.array([1, features], np.int64),
        "axes": np.array([2, 3], np.int64),
    }
    extra = {"Flatten": [], "Reshape": ["shape"], "Squeeze": ["axes"]}[flatten]
    inputs = ["flat", "weight"] + (["bias"] if tail == "Gemm" else [])
    nodes = [
        helper.make_node(flatten, ["x", *extra], ["flat"], "flatten"),
        helper.make_node(tail, inputs, ["logits"], "fc", **attributes),
    ]
    graph = helper.make_graph(
        nodes,
        "classifier",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 6, pixels, pixels])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, 5])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)


def cleaned_types(model: onnx.ModelProto) -> list[str]:
    clean = frontend.clean(frontend.from_proto(model, "classifier"))
    onnx.checker.check_model(clean.proto)
    return [node.op_type for node in clean.proto.graph.node]


@pytest.mark.parametrize("flatten", ["Flatten", "Reshape", "Squeeze"])
@pytest.mark.parametrize(
    ("tail", "attributes"), [("Gemm", {}), ("Gemm", {"transB": 1}), ("MatMul", {})]
)
def test_same_numbers_as_a_convolution(flatten: str, tail: str, attributes: dict) -> None:
    model = classifier(flatten=flatten, tail=tail, **attributes)
    clean = frontend.clean(frontend.from_proto(model, "classifier"))
    assert [node.op_type for node in clean.proto.graph.node] == ["Conv", "Flatten"]
    feed = {"x": np.random.default_rng(0).normal(size=(1, 6, 1, 1)).astype(np.float32)}
    wanted, got = (
        onnxruntime.InferenceSession(proto.SerializeToString()).run(None, feed)[0]
        for proto in (model, clean.proto)
    )
    np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-6)


def test_the_convolution_keeps_the_layer_s_name() -> None:
    clean = frontend.clean(frontend.from_proto(classifier(), "classifier"))
    assert clean.proto.graph.node[0].name == "fc"


@pytest.mark.parametrize(
    "model",
    [classifier(pixels=2), classifier(alpha=0.5), classifier(beta=2.0)],
    ids=["over four pixels", "alpha", "beta"],
)
def test_other_dense_layers_are_left_alone(model: onnx.ModelProto) -> None:
    assert cleaned_types(model)[-1] == "Gemm"
