"""A dense layer over one pixel becomes a pointwise convolution, and nothing else does."""

from __future__ import annotations

from typing import Any

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


def head(net: Any, flat: str, *tail: Any) -> onnx.ModelProto:
    """``tail`` is a chain of functions of the builder and a tensor, over flattened 6 channels."""
    built = net(14, (2, 6, 1, 1))
    x = built.node("Flatten", "input") if flat == "Flatten" else "input"
    for step in tail:
        x = step(built, x)
    return built.model(x)


def dense(cin: int, cout: int, bias: bool = True) -> Any:
    def step(built: Any, x: str) -> str:
        weight = built.constant(built.random.normal(size=(cin, cout)))
        given = [built.constant(built.random.normal(size=cout))] if bias else []
        return built.node("Gemm" if bias else "MatMul", x, weight, *given)

    return step


def node(op: str, *constants: Any, **attributes: Any) -> Any:
    return lambda built, x: built.node(op, x, *map(built.constant, constants), **attributes)


def norm(built: Any, x: str) -> str:
    return built.norm(x, 5)


CHAINS = {
    "hard-swish between": (dense(6, 5), node("HardSwish"), dense(5, 4)),
    "clip between": (dense(6, 5), node("Clip", 0.0, 6.0), dense(5, 4)),
    "bias apart": (dense(6, 5, False), node("Add", [1.0, 2, 3, 4, 5]), dense(5, 4, False)),
    "bias in a row": (dense(6, 5, False), node("Add", [[1.0, 2, 3, 4, 5]]), dense(5, 4)),
    "norm": (dense(6, 5), norm, node("Relu"), dense(5, 4)),
    "product with itself": (dense(6, 5), lambda b, x: b.node("Mul", x, x), dense(5, 4)),
}


@pytest.mark.parametrize("name", CHAINS)
def test_layers_behind_an_activation(net, reference, name: str) -> None:
    proto = head(net, "Flatten", *CHAINS[name])
    clean = frontend.clean(frontend.from_proto(proto, "head")).proto
    onnx.checker.check_model(clean, full_check=True)
    found = [node.op_type for node in clean.graph.node]
    assert found.count("Conv") == 2
    assert found[-1] == "Flatten"
    assert not {"Gemm", "MatMul", "BatchNormalization"} & set(found)
    assert found.count("Flatten") == 1
    image = np.random.default_rng(0).normal(size=(2, 6, 1, 1)).astype(np.float32)
    np.testing.assert_allclose(
        reference(clean, image)[0], reference(proto, image)[0], rtol=1e-4, atol=1e-5
    )


def other_rows(built: Any, x: str) -> str:
    """[2, 6] as [6, 2]: the same numbers, of other channels."""
    return built.node("Reshape", x, built.constant([6, 2], np.int64))


def column(built: Any, x: str) -> str:
    """A number a row, not a channel."""
    return built.node("Mul", x, built.constant([[2.0], [3.0]]))


@pytest.mark.parametrize(
    "tail",
    [(other_rows, dense(2, 4)), (dense(6, 5), column, dense(5, 4)), (node("Softmax"), dense(6, 4))],
    ids=["other rows", "a number a row", "softmax"],
)
def test_what_mixes_or_tells_apart_rows_is_no_pixel(net, reference, tail: Any) -> None:
    proto = head(net, "Flatten", *tail)
    clean = frontend.clean(frontend.from_proto(proto, "head")).proto
    assert [node.op_type for node in clean.graph.node].count("Gemm") == 1
    image = np.random.default_rng(0).normal(size=(2, 6, 1, 1)).astype(np.float32)
    np.testing.assert_allclose(
        reference(clean, image)[0], reference(proto, image)[0], rtol=1e-4, atol=1e-5
    )
