"""The float64 evaluator's own operators against ONNX Runtime, on every attribute they have."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from mobilenet_tvm.errors import UsageError
from mobilenet_tvm.parity import compare, onnx_runner, onnxruntime_runner

# One operator in float32 against the same in float64: a few roundings of the largest element.
TOLERANCE = 2e-6

PADDINGS = ("NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER")


def both(node, constants, shape, opset=19):
    graph = helper.make_graph(
        [node],
        "one",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in node.output],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, ir_version=9, opset_imports=[helper.make_opsetid("", opset)])
    data, shapes = model.SerializeToString(), {"x": shape}
    x = {"x": np.random.default_rng(5).normal(size=shape).astype(np.float32)}
    try:
        fast = onnxruntime_runner(data, shapes)(x)
    except UsageError:  # ONNX Runtime has no SAME with dilations, no pad as large as a window
        assume(False)
    return fast, onnx_runner(data, shapes)(x)


def agree(*outputs):
    result = compare(*outputs, TOLERANCE)
    assert result, str(result)


def axes_of(count, low, high):
    return st.lists(st.integers(low, high), min_size=count, max_size=count)


@st.composite
def windows(draw, axes, dilated=True, pooling=False):
    """Attributes of a window, and a spatial size that it fits in."""
    kernel = draw(axes_of(axes, 1, 5))
    attributes = {"kernel_shape": kernel, "strides": draw(axes_of(axes, 1, 3))}
    attributes["auto_pad"] = draw(st.sampled_from(PADDINGS))
    if pooling and attributes["auto_pad"].startswith("SAME"):
        # Where a stride jumps over a kernel ONNX Runtime pools with a negative pad: it begins
        # inside the input, which neither its own Conv nor TensorFlow does.
        assume(all(s <= k for s, k in zip(attributes["strides"], kernel, strict=True)))
    if dilated and not attributes["auto_pad"].startswith("SAME"):
        attributes["dilations"] = draw(axes_of(axes, 1, 3))
    if attributes["auto_pad"] == "NOTSET":
        pads = [draw(st.integers(0, size - 1)) for size in kernel * 2]
        attributes["pads"] = pads
    dilations = attributes.get("dilations", [1] * axes)
    reach = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
    size = [least + more for least, more in zip(reach, draw(axes_of(axes, 0, 6)), strict=True)]
    return attributes, size


@pytest.mark.parametrize("axes", [1, 2, 3])
@given(st.data())
@settings(max_examples=40, deadline=None)
def test_convolutions(axes, data):
    attributes, size = data.draw(windows(axes))
    group, depth, width = (data.draw(st.integers(1, 3)) for _ in range(3))
    random = np.random.default_rng(0)
    weight = random.normal(size=(group * width, depth, *attributes["kernel_shape"]))
    constants = {"w": weight.astype(np.float32)}
    if data.draw(st.booleans()):
        constants["b"] = random.normal(size=group * width).astype(np.float32)
    node = helper.make_node("Conv", ["x", *constants], ["y"], group=group, **attributes)
    agree(*both(node, constants, (2, group * depth, *size)))


@pytest.mark.parametrize("axes", [1, 2, 3])
@pytest.mark.parametrize("ceil_mode", [0, 1])
@given(st.data())
@settings(max_examples=40, deadline=None)
def test_maximum_pooling(axes, ceil_mode, data):
    attributes, size = data.draw(windows(axes, pooling=True))
    node = helper.make_node("MaxPool", ["x"], ["y"], ceil_mode=ceil_mode, **attributes)
    agree(*both(node, {}, (2, 3, *size)))


@pytest.mark.parametrize("counted", [0, 1])
@pytest.mark.parametrize("ceil_mode", [0, 1])
@given(st.data())
@settings(max_examples=40, deadline=None)
def test_average_pooling(counted, ceil_mode, data):
    attributes, size = data.draw(windows(2, dilated=False, pooling=True))
    node = helper.make_node(
        "AveragePool", ["x"], ["y"], count_include_pad=counted, ceil_mode=ceil_mode, **attributes
    )
    agree(*both(node, {}, (2, 3, *size)))


@pytest.mark.parametrize("opset", [7, 10, 11, 19])
def test_average_pooling_of_every_opset(opset):
    node = helper.make_node("AveragePool", ["x"], ["y"], kernel_shape=[7, 7])
    agree(*both(node, {}, (2, 3, 7, 7), opset))


def test_the_places_of_the_maxima_are_still_onnx_own():
    node = helper.make_node("MaxPool", ["x"], ["y", "where"], kernel_shape=[2, 2], strides=[2, 2])
    graph = helper.make_graph(
        [node],
        "one",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, (1, 2, 4, 4))],
        [
            helper.make_tensor_value_info("y", TensorProto.FLOAT, None),
            helper.make_tensor_value_info("where", TensorProto.INT64, None),
        ],
    )
    model = helper.make_model(graph, ir_version=9, opset_imports=[helper.make_opsetid("", 19)])
    data, shapes = model.SerializeToString(), {"x": (1, 2, 4, 4)}
    x = {"x": np.random.default_rng(5).permutation(32).reshape(1, 2, 4, 4).astype(np.float32)}
    agree(onnxruntime_runner(data, shapes)(x), onnx_runner(data, shapes)(x))


@pytest.mark.parametrize("size", [1, 3, 5, 9])
def test_local_response_normalisation(size):
    node = helper.make_node("LRN", ["x"], ["y"], size=size, alpha=0.3, beta=0.6, bias=1.5)
    agree(*both(node, {}, (2, 6, 3, 3)))


def test_onnx_still_needs_its_normalisation_mended():
    # When this fails, LRN in mobilenet_tvm/parity/evaluator.py can go.
    node = helper.make_node("LRN", ["x"], ["y"], size=3, alpha=1.0)
    graph = helper.make_graph(
        [node],
        "one",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, (1, 6, 3, 3))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
    )
    model = helper.make_model(graph, ir_version=9, opset_imports=[helper.make_opsetid("", 19)])
    x = {"x": np.random.default_rng(5).normal(size=(1, 6, 3, 3)).astype(np.float32)}
    (stock,) = ReferenceEvaluator(model).run(None, x)
    mended = onnx_runner(model.SerializeToString(), {"x": (1, 6, 3, 3)})(x)
    assert not compare({"y": stock}, mended, 1e-2)


def test_groups_that_do_not_fit_are_refused():
    node = helper.make_node("Conv", ["x", "w"], ["y"], group=2)
    weight = np.ones((4, 3, 1, 1), np.float32)
    graph = helper.make_graph(
        [node],
        "one",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, (1, 4, 3, 3))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(weight, "w")],
    )
    model = helper.make_model(graph, ir_version=9, opset_imports=[helper.make_opsetid("", 19)])
    x = {"x": np.ones((1, 4, 3, 3), np.float32)}
    with pytest.raises(UsageError, match=r"Conv of \(1, 4, 3, 3\) with \(4, 3, 1, 1\)"):
        onnx_runner(model.SerializeToString(), {"x": (1, 4, 3, 3)})(x)
