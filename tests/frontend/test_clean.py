"""Cleaning keeps the numbers, and leaves one plain form."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from mobilenet_tvm import frontend
from mobilenet_tvm.build.manifest import TensorSpec
from mobilenet_tvm.errors import UsageError

OPSETS = (9, 11, 13, 17, 18, 20)
REAL = {
    "mobilenet_v1_1.0_224_imagenet1001": None,
    "mobilenet_v2_1.0_160_dogs19": None,
    "mobilenet_v3_small_0.35_textangle": (1, 3, 48, 192),
}


def photo(shape, seed=0):
    return np.random.default_rng(seed).uniform(-1, 1, shape).astype(np.float32)


def cleaned(proto, **options):
    return frontend.clean(frontend.from_proto(proto, "net"), **options)


def operators(model):
    return Counter(node.op_type for node in model.proto.graph.node)


def attributes(node):
    return {a.name: helper.get_attribute_value(a) for a in node.attribute}


def assert_same(reference, model, data, tolerance=1e-5):
    before = reference(model.original.proto, data)
    after = reference(model.proto, data)
    assert len(before) == len(after)
    for one, other in zip(before, after, strict=True):
        assert one.shape == other.shape
        np.testing.assert_allclose(other, one, rtol=0, atol=tolerance * np.abs(one).max())


@pytest.mark.parametrize("opset", OPSETS)
def test_same_numbers_at_every_opset(opset, mobile_net, reference):
    model = cleaned(mobile_net(opset, ("N", 3, 17, 18)), batch=2)
    assert_same(reference, model, photo((2, 3, 17, 18)))
    found = operators(model)
    assert not found.keys() & {"Identity", "Dropout", "Constant", "Shape", "Gather", "Concat"}
    assert found["BatchNormalization"] == 1  # the one after Add
    for node in model.proto.graph.node:
        assert "auto_pad" not in attributes(node)
    onnx.checker.check_model(model.proto, full_check=True)


@pytest.mark.parametrize("name", REAL)
def test_real_models(name, shared_models, reference):
    model = frontend.clean(frontend.read(shared_models / f"{name}.onnx"), shape=REAL[name])
    assert_same(reference, model, photo(model.inputs[0].shape))
    assert not operators(model).keys() & {"BatchNormalization", "Constant", "Identity", "Shape"}
    for node in model.proto.graph.node:
        if node.op_type == "Conv":
            assert "auto_pad" not in attributes(node)
            assert len(attributes(node).get("pads", [0] * 4)) == 4


def test_the_original_is_left_alone(mobile_net):
    model = frontend.from_proto(mobile_net(13, ("N", 3, 17, 18)), "net")
    frontend.clean(model)
    assert model.proto == mobile_net(13, ("N", 3, 17, 18))


def test_specs(mobile_net):
    model = cleaned(mobile_net(13, ("N", 3, 17, 18)), batch=3)
    assert model.inputs == (TensorSpec("input", (3, 3, 17, 18), "float32"),)
    assert [(o.shape, o.dtype) for o in model.outputs] == [((3, 5), "float32")] * 2
    assert model.outputs[0].name == model.proto.graph.output[0].name


# (operator, mode, stride, dilation): what ONNX Runtime has a reference for.
PADDED = [
    *itertools.product(
        ("Conv", "MaxPool", "AveragePool"),
        ("SAME_UPPER", "SAME_LOWER", "VALID", "NOTSET"),
        (1, 2, 3),
        (1,),
    ),
    *itertools.product(("Conv", "MaxPool"), ("VALID", "NOTSET"), (1,), (2,)),
]


@pytest.mark.parametrize(("operator", "mode", "stride", "dilation"), PADDED)
def test_auto_pad(net, reference, operator, mode, stride, dilation):
    built = net(13, (1, 4, 10, 13))
    options = {"auto_pad": mode, "strides": [stride] * 2}
    if dilation > 1:
        options["dilations"] = [dilation] * 2
    if operator == "Conv":
        weight = built.constant(built.random.normal(size=(6, 4, 3, 4)))
        x = built.node("Conv", "input", weight, **options)  # kernel_shape is optional
    else:
        x = built.node(operator, "input", kernel_shape=[3, 4], **options)
    assert_same(reference, cleaned(built.model(x, rank=4)), photo((1, 4, 10, 13)))


def test_same_padding_reaches_as_far_as_a_dilated_kernel(net):
    built = net(13, (1, 4, 10, 13))
    weight = built.constant(built.random.normal(size=(6, 4, 3, 4)))
    x = built.node("Conv", "input", weight, auto_pad="SAME_UPPER", dilations=[2, 2])
    model = cleaned(built.model(x, rank=4))
    assert attributes(model.proto.graph.node[0])["pads"] == [2, 3, 2, 3]
    assert model.outputs[0].shape == (1, 6, 10, 13)


def conv_norm(net, **conv_options):
    x = net.conv("input", 3, 8, 3, **conv_options)
    return x, net.norm(x, 8)


@pytest.mark.parametrize("bias", [False, True])
def test_norm_is_folded(net, reference, bias):
    built = net(13)
    _, y = conv_norm(built, bias=bias)
    model = cleaned(built.model(y, rank=4))
    assert operators(model) == {"Conv": 1}
    assert model.proto.graph.node[0].output[0] == y
    assert len(model.proto.graph.initializer) == 2
    assert_same(reference, model, photo((1, 3, 17, 18)))


def test_norm_stays_where_its_convolution_is_read_twice(net, reference):
    built = net(13)
    x, y = conv_norm(built)
    model = cleaned(built.model(built.node("Add", x, y), rank=4))
    assert operators(model)["BatchNormalization"] == 1
    assert_same(reference, model, photo((1, 3, 17, 18)))


def test_norm_stays_where_its_convolution_is_an_output(net, reference):
    built = net(13)
    x, y = conv_norm(built)
    model = cleaned(built.model(y, x, rank=4))
    assert operators(model)["BatchNormalization"] == 1
    assert_same(reference, model, photo((1, 3, 17, 18)))


def test_shared_weights_are_folded_apart(net, reference):
    built = net(13)
    _, y = conv_norm(built)
    again = built.node("Conv", "input", "c0", kernel_shape=[3, 3])
    model = cleaned(built.model(built.node("Mul", y, again), rank=4))
    assert operators(model) == {"Conv": 2, "Mul": 1}
    assert_same(reference, model, photo((1, 3, 17, 18)))


def test_training_mode_is_refused(net):
    built = net(15)
    _, y = conv_norm(built)
    built.nodes[-1].attribute.append(helper.make_attribute("training_mode", 1))
    with pytest.raises(UsageError, match="training mode"):
        cleaned(built.model(y, rank=4))


def test_spatial_constant_as_long_as_there_are_channels(net, reference):
    # A multiplier over the width must not be mistaken for one over the channels.
    built = net(13, (1, 3, 17, 18))
    x = built.conv("input", 3, 16, 3)
    y = built.node("Mul", x, built.constant(np.linspace(1, 2, 16).reshape(1, 1, 1, 16)))
    assert_same(reference, cleaned(built.model(y, rank=4)), photo((1, 3, 17, 18)))


@pytest.mark.parametrize(("dims", "shape", "batch", "expected"), [
    ((1, 3, 17, 18), None, None, (1, 3, 17, 18)),
    ((1, 3, 17, 18), (1, 3, 17, 18), 1, (1, 3, 17, 18)),
    (("N", 3, 17, 18), None, None, (1, 3, 17, 18)),
    (("?", 3, 17, 18), None, 4, (4, 3, 17, 18)),
    ((-1, 3, 17, 18), None, 2, (2, 3, 17, 18)),
    ((0, 3, 17, 18), None, 2, (2, 3, 17, 18)),
    (("", 3, 17, 18), None, 2, (2, 3, 17, 18)),
    ((-1, 3, "?", "?"), (2, 3, 17, 18), None, (2, 3, 17, 18)),
    (("a", "b", "c", "d"), (1, 3, 9, 9), 1, (1, 3, 9, 9)),
    (None, (1, 3, 17, 18), None, (1, 3, 17, 18)),
])  # fmt: skip
def test_shapes_are_fixed(mobile_net, dims, shape, batch, expected):
    model = cleaned(with_input_dims(mobile_net(13), dims), shape=shape, batch=batch)
    assert model.inputs[0].shape == expected
    assert model.outputs[0].shape == (expected[0], 5)


def with_input_dims(proto, dims):
    tensor = proto.graph.input[0].type.tensor_type
    tensor.ClearField("shape")
    for size in dims or ():
        dim = tensor.shape.dim.add()
        if isinstance(size, int):
            dim.dim_value = size
        elif size:
            dim.dim_param = size
    return proto


@pytest.mark.parametrize(("dims", "shape", "batch", "words"), [
    (("N", 3, "H", 18), None, None, ("'input'", "[N, 3, H, 18]", "--shape 1,3,224,18")),
    (None, None, None, ("'input'", "unknown shape", "--shape")),
    ((1, 3, 17, 18), (1, 3, 17, 19), None, ("--shape 1,3,17,19", "[1, 3, 17, 18]")),
    ((1, 3, 17, 18), (3, 17, 18), None, ("--shape 3,17,18", "[1, 3, 17, 18]")),
    ((1, 3, 17, 18), None, 4, ("--batch 4", "1", "dynamic batch")),
    (("N", 3, 17, 18), (2, 3, 17, 18), 4, ("--batch 4", "leave --batch out")),
    (("N", 3, 17, 18), None, 0, ("[0, 3, 17, 18]",)),
])  # fmt: skip
def test_shapes_that_cannot_be_fixed(mobile_net, dims, shape, batch, words):
    with pytest.raises(UsageError) as caught:
        cleaned(with_input_dims(mobile_net(13), dims), shape=shape, batch=batch)
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)


def test_shape_that_the_operators_contradict(net):
    built = net(13, ("N", "C", "H", "W"))
    proto = built.model(built.conv("input", 3, 8, 3), rank=4)
    with pytest.raises(UsageError) as caught:
        frontend.to_relay(cleaned(proto, shape=(1, 4, 17, 18)))
    assert "\n" not in str(caught.value)


def test_shape_needs_a_single_input(net):
    built = net(13)
    proto = built.model(built.node("Add", "input", "other"), rank=4)
    proto.graph.input.append(
        helper.make_tensor_value_info("other", TensorProto.FLOAT, ("N", 3, 17, 18))
    )
    with pytest.raises(UsageError, match=r"2 \(input, other\)"):
        cleaned(proto, shape=(1, 3, 17, 18))
    assert [spec.shape for spec in cleaned(proto).inputs] == [(1, 3, 17, 18)] * 2


def test_weights_listed_as_inputs(mobile_net, reference):
    # ONNX IR 3 and older: every initializer is an input too.
    proto = mobile_net(9)
    proto.ir_version = 3
    for tensor in proto.graph.initializer:
        proto.graph.input.append(
            helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
        )
    model = cleaned(proto)
    assert [spec.name for spec in model.inputs] == ["input"]
    assert_same(reference, model, photo((1, 3, 17, 18)))


def test_model_local_functions_are_inlined(net, reference):
    built = net(17, (1, 3, 17, 18))
    x = built.conv("input", 3, 8, 3)
    built.nodes.append(helper.make_node("HSwish", [x], ["h"], domain="pkg.local"))
    proto = built.model("h", rank=4)
    opsets = [helper.make_opsetid("", 17)]
    body = [
        helper.make_node("HardSigmoid", ["x"], ["g"], alpha=1 / 6, beta=0.5),
        helper.make_node("Mul", ["x", "g"], ["y"]),
    ]
    proto.functions.append(helper.make_function("pkg.local", "HSwish", ["x"], ["y"], body, opsets))
    proto.opset_import.append(helper.make_opsetid("pkg.local", 1))
    model = cleaned(proto)
    assert operators(model) == {"Conv": 1, "HardSigmoid": 1, "Mul": 1}
    assert_same(reference, model, photo((1, 3, 17, 18)))


def test_data_dependent_output_is_refused(net):
    built = net(13)
    with pytest.raises(UsageError, match=r"'nonzero_0' cannot be fixed.*\(NonZero\)"):
        cleaned(built.model(built.node("NonZero", "input")))


def test_weights_as_constant_nodes(net, reference):
    built = net(13)
    value = numpy_helper.from_array(built.random.normal(size=(4, 3, 3, 3)).astype(np.float32))
    weight = built.node("Constant", value=value)
    model = cleaned(built.model(built.node("Conv", "input", weight), rank=4))
    assert operators(model) == {"Conv": 1}
    assert_same(reference, model, photo((1, 3, 17, 18)))


@pytest.mark.parametrize(("opset", "words"), [(99, "newer than supported"), (6, "older")])
def test_opset_out_of_range(mobile_net, opset, words):
    proto = mobile_net(13)
    proto.opset_import[0].version = opset
    with pytest.raises(UsageError, match=f"opset {opset}.*{words}.*20"):
        cleaned(proto)
