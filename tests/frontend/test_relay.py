"""Relay modules are plain: explicit pads in the convolutions, no BatchNorm, static types."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper

from mobilenet_tvm import frontend
from mobilenet_tvm.build.manifest import TensorSpec
from mobilenet_tvm.errors import UsageError

# Convolutions as imported: those of the file, and the classifier as a pointwise one.
REAL = {
    "mobilenet_v1_1.0_224_imagenet1001": (None, 28),
    "mobilenet_v2_1.0_160_dogs19": (None, 53),
    "mobilenet_v3_small_0.35_textangle": ((1, 3, 48, 192), 54),
}


def calls(model):
    """All operator calls of a module, as (name, attributes)."""
    import tvm
    from tvm import relay

    found = []

    def visit(expression):
        if isinstance(expression, relay.Call) and isinstance(expression.op, tvm.ir.Op):
            found.append((expression.op.name, expression.attrs))

    relay.analysis.post_order_visit(model.module["main"], visit)
    return found


def imported(proto, **options):
    return frontend.to_relay(frontend.clean(frontend.from_proto(proto, "net"), **options))


@pytest.mark.parametrize("name", REAL)
def test_structure_of_real_models(name, shared_models):
    shape, convolutions = REAL[name]
    model = frontend.to_relay(
        frontend.clean(frontend.read(shared_models / f"{name}.onnx"), shape=shape)
    )
    found = calls(model)
    names = [operator for operator, _ in found]
    assert names.count("nn.conv2d") == convolutions
    unwanted = {"nn.pad", "nn.batch_norm", "nn.dropout", "shape_of", "cast", "transpose"}
    assert not unwanted & set(names)
    assert not [operator for operator in names if operator.startswith("dyn.")]
    for operator, attributes in found:
        if operator == "nn.conv2d":
            assert len(attributes.padding) == 4
    assert model.params == {}


def test_padding_of_the_real_v1_is_tensorflows(shared_models):
    path = shared_models / "mobilenet_v1_1.0_224_imagenet1001.onnx"
    model = frontend.to_relay(frontend.clean(frontend.read(path)))
    pads = [
        (int(a.strides[0]), [int(p) for p in a.padding])
        for operator, a in calls(model)
        if operator == "nn.conv2d" and int(a.kernel_size[0]) == 3
    ]
    assert len(pads) == 14
    for stride, padding in pads:
        assert padding == ([0, 0, 1, 1] if stride == 2 else [1, 1, 1, 1])


@pytest.mark.parametrize("opset", [9, 11, 13, 17, 18, 20])
def test_numbers_at_every_opset(opset, mobile_net, reference, relay_run):
    proto = mobile_net(opset, ("N", 3, 17, 18))
    data = np.random.default_rng(0).uniform(-1, 1, (2, 3, 17, 18)).astype(np.float32)
    model = imported(proto, batch=2)
    names = {name for name, _ in calls(model)}
    assert not names & {"nn.pad", "nn.batch_norm", "nn.dropout"}
    results = relay_run(model, data)
    assert len(results) == len(model.outputs) == 2
    for spec, got, expected in zip(model.outputs, results, reference(proto, data), strict=True):
        assert got.shape == spec.shape
        np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("name", ["input.1", "serving_default_x:0", "a/b"])
def test_input_names_are_kept(net, relay_run, name):
    built = net(13)
    built.input.name = name
    model = imported(built.model(built.conv(name, 3, 4, 3), rank=4))
    assert model.inputs == (TensorSpec(name, (1, 3, 17, 18), "float32"),)
    assert [var.name_hint for var in model.module["main"].params] == [name]
    assert relay_run(model, np.ones((1, 3, 17, 18), np.float32))[0].shape == (1, 4, 15, 16)


def test_two_inputs(net):
    built = net(13)
    proto = built.model(built.node("Sub", "other", "input"), rank=4)
    proto.graph.input.append(
        helper.make_tensor_value_info("other", TensorProto.FLOAT, (1, 3, 17, 18))
    )
    model = imported(proto)
    assert sorted(spec.name for spec in model.inputs) == ["input", "other"]
    assert [v.name_hint for v in model.module["main"].params] == [s.name for s in model.inputs]


@pytest.mark.parametrize("break_it", ["mode", "types"])
def test_importer_errors_are_one_line(net, capfd, break_it):
    built = net(13)
    if break_it == "mode":  # refused by the importer's Python
        x = built.node("Pad", "input", built.constant([0, 0, 1, 1] * 2, np.int64), mode="wrap")
    else:  # refused by Relay's type checker, in C++
        weight = built.constant(np.ones((4, 5, 3, 3)))
        x = built.node("ConvTranspose", "input", weight)
    proto = built.model(x, rank=4)
    clean = frontend.CleanModel(
        frontend.from_proto(proto, "odd_net"),
        proto,
        (TensorSpec("input", (1, 3, 17, 18), "float32"),),
        (),
    )
    with pytest.raises(UsageError) as caught:
        frontend.to_relay(clean)
    text = str(caught.value)
    assert text.startswith("Relay cannot import odd_net: ")
    assert len(text) > len("Relay cannot import odd_net: ") + 10
    assert "\n" not in text
    assert "Traceback" not in text
    shown = capfd.readouterr()
    assert shown.err == shown.out == ""


def test_warnings_do_not_reach_the_screen(mobile_net, capfd, recwarn):
    imported(mobile_net(13))
    shown = capfd.readouterr()
    assert shown.err == shown.out == ""
    assert not recwarn.list
