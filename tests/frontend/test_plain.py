"""Means over the image and divisions get one form, and compute what they did."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

from mobilenet_tvm import frontend
from mobilenet_tvm.errors import UsageError

SHAPE = (2, 3, 6, 5)
IMAGE = np.random.default_rng(2).normal(0, 2, SHAPE).astype(np.float32)


def cleaned(built: Any, result: str, rank: int = 4) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    proto = built.model(result, rank=rank)
    clean = frontend.clean(frontend.from_proto(proto, "net")).proto
    onnx.checker.check_model(clean, full_check=True)
    return proto, clean


def operators(proto: onnx.ModelProto) -> dict[str, int]:
    return dict(Counter(node.op_type for node in proto.graph.node))


def assert_same(reference: Any, proto: onnx.ModelProto, clean: onnx.ModelProto) -> None:
    wanted, got = reference(proto, IMAGE)[0], reference(clean, IMAGE)[0]
    assert got.shape == wanted.shape
    np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("opset", [13, 18])
@pytest.mark.parametrize("axes", [[2, 3], [-1, -2]])
@pytest.mark.parametrize("keepdims", [0, 1])
def test_mean_over_height_and_width(net, reference, opset, axes, keepdims):
    built = net(opset, SHAPE)
    x = built.reduce("ReduceMean", "input", axes, keepdims)
    proto, clean = cleaned(built, x, 4 if keepdims else 2)
    assert operators(clean) == {"GlobalAveragePool": 1} | ({} if keepdims else {"Reshape": 1})
    assert clean.graph.output[0].name == x
    assert_same(reference, proto, clean)


@pytest.mark.parametrize("keepdims", [0, 1])
def test_mean_over_flattened_pixels(net, reference, keepdims):
    built = net(13, SHAPE)
    rows = built.node("Reshape", "input", built.constant([2, 3, 30], np.int64))
    x = built.reduce("ReduceMean", rows, [-1], keepdims)
    proto, clean = cleaned(built, x, 2 + keepdims)
    assert operators(clean) == {"GlobalAveragePool": 1, "Reshape": 1}
    assert_same(reference, proto, clean)


def test_a_window_as_large_as_the_image(net, reference):
    built = net(13, SHAPE)
    x = built.node("AveragePool", "input", kernel_shape=[6, 5], auto_pad="VALID")
    proto, clean = cleaned(built, x)
    assert operators(clean) == {"GlobalAveragePool": 1}
    assert_same(reference, proto, clean)


@pytest.mark.parametrize(("size", "steps"), [(16, 1), (17, 2), (56, 2)])
def test_large_images_are_averaged_in_two_steps(net, relay_run, size, steps):
    """One sum of 3136 equal numbers is 5e-5 off, where float32 could be 1e-7."""
    built = net(13, (1, 4, size, size))
    proto = built.model(built.reduce("ReduceMean", "input", [2, 3], 1), rank=4)
    model = frontend.clean(frontend.from_proto(proto, "net"))
    onnx.checker.check_model(model.proto, full_check=True)
    found = [node.op_type for node in model.proto.graph.node]
    assert found == ["AveragePool", "GlobalAveragePool"][-steps:]
    relay = frontend.to_relay(model)
    for value in (1.1, 0.7, -0.3):
        image = np.full((1, 4, size, size), value, np.float32)
        np.testing.assert_allclose(relay_run(relay, image)[0], image[:, :, :1, :1], rtol=4e-6)


def means_of_something_else(built: Any, case: str) -> str:
    if case == "one axis":
        return built.reduce("ReduceMean", "input", [3], 1)
    if case == "channels":
        return built.reduce("ReduceMean", "input", [1, 2], 1)
    if case == "smaller window":
        return built.node("AveragePool", "input", kernel_shape=[5, 5])
    if case == "padded window":
        return built.node("AveragePool", "input", kernel_shape=[6, 5], pads=[0, 0, 1, 0])
    if case == "sum":
        return built.reduce("ReduceSum", "input", [2, 3], 1)
    # Rows of [N * C, 1, H * W] are no image of C channels.
    rows = built.node("Reshape", "input", built.constant([6, 1, 30], np.int64))
    return built.reduce("ReduceMean", rows, [2], 1)


@pytest.mark.parametrize(
    "case", ["one axis", "channels", "smaller window", "padded window", "sum", "other rows"]
)
def test_other_means_are_left_alone(net, reference, case):
    built = net(13, SHAPE)
    proto, clean = cleaned(built, means_of_something_else(built, case))
    assert "GlobalAveragePool" not in operators(clean)
    assert_same(reference, proto, clean)


@pytest.mark.parametrize("divisor", [6.0, [[[2.0]], [[-3.0]], [[0.7]]]])
def test_division_by_a_constant(net, reference, divisor):
    built = net(13, SHAPE)
    proto, clean = cleaned(built, built.node("Div", "input", built.constant(divisor)))
    assert operators(clean) == {"Mul": 1}
    assert_same(reference, proto, clean)


@pytest.mark.parametrize("divisor", [0.0, 1e-39, 1e38 * 2, float("inf")])
def test_divisions_whose_reciprocal_is_no_normal_number_stay(net, divisor):
    built = net(13, SHAPE)
    _, clean = cleaned(built, built.node("Div", "input", built.constant(divisor)))
    assert operators(clean) == {"Div": 1}


def test_division_of_a_constant_and_of_integers_stay(net):
    built = net(13, SHAPE)
    _, clean = cleaned(built, built.node("Div", built.constant(1.0), "input"))
    assert operators(clean) == {"Div": 1}
    built = net(13, SHAPE)
    whole = built.node("Cast", "input", to=onnx.TensorProto.INT64)
    halves = built.node("Div", whole, built.constant([2], np.int64))
    _, clean = cleaned(built, built.node("Cast", halves, to=onnx.TensorProto.FLOAT))
    assert operators(clean) == {"Cast": 2, "Div": 1}


def test_what_else_reads_the_rows_keeps_them(net, reference):
    built = net(13, SHAPE)
    rows = built.node("Reshape", "input", built.constant([2, 3, 30], np.int64))
    mean = built.reduce("ReduceMean", rows, [2], 1)
    proto, clean = cleaned(built, built.node("Sub", rows, mean), 3)
    assert operators(clean) == {"Reshape": 2, "GlobalAveragePool": 1, "Sub": 1}
    assert_same(reference, proto, clean)


def test_names_of_another_domain_are_not_ours(net):
    built = net(13, SHAPE)
    built.nodes.append(helper.make_node("ReduceMean", ["input"], ["y"], domain="com.foo"))
    with pytest.raises(UsageError, match=r"com\.foo::ReduceMean"):
        cleaned(built, "y")
