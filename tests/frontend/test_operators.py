"""Unsupported operators are all named; the importer is kept from misreading the others."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper

from mobilenet_tvm import frontend
from mobilenet_tvm.errors import UsageError

DATA = np.random.default_rng(1).normal(0, 3, (2, 3, 6, 7)).astype(np.float32)


def both(proto, reference, relay_run):
    clean = frontend.clean(frontend.from_proto(proto, "net"))
    return reference(proto, DATA)[0], relay_run(frontend.to_relay(clean), DATA)[0]


def test_all_unsupported_operators_are_named(net):
    built = net(18, (1, 3, 8, 8))
    x = "input"
    for _ in range(5):
        x = built.node("BlackmanThing", x)
    built.nodes.append(helper.make_node("Relu", [x], ["r"], name="sly", domain="com.foo"))
    x = built.node("Det", "r")
    with pytest.raises(UsageError) as caught:
        frontend.clean(frontend.from_proto(built.model(x), "net"))
    text = str(caught.value)
    assert "\n" not in text
    assert "BlackmanThing (blackmanthing_0, blackmanthing_1, blackmanthing_2 and 2 more)" in text
    assert "com.foo::Relu (sly)" in text
    assert "Det (det_6)" in text
    assert "Relu (" not in text.replace("com.foo::Relu (", "")


def test_unsupported_operators_in_subgraphs(net):
    built = net(13, (1, 3, 8, 8))
    branches = {
        name: helper.make_graph(
            [helper.make_node(op, ["input"], [f"{name}_y"], name=f"{name}_node")],
            name,
            [],
            [helper.make_tensor_value_info(f"{name}_y", TensorProto.FLOAT, (1, 3, 8, 8))],
        )
        for name, op in (("then_branch", "Relu"), ("else_branch", "Wobble"))
    }
    total = built.node("ReduceSum", "input", keepdims=0)
    condition = built.node("Greater", total, built.constant(0.0))
    proto = built.model(built.node("If", condition, **branches), rank=4)
    with pytest.raises(UsageError, match=r"Wobble \(else_branch_node\)"):
        frontend.clean(frontend.from_proto(proto, "net"))


@pytest.mark.parametrize("keepdims", [0, 1])
@pytest.mark.parametrize("opset", [13, 18, 20])
@pytest.mark.parametrize("op", ["ReduceMean", "ReduceSum", "ReduceMax"])
def test_reduce_over_two_axes(net, reference, relay_run, op, opset, keepdims):
    # Relay's importer takes the first axis alone where axes are an input.
    built = net(opset, DATA.shape)
    proto = built.model(built.reduce(op, "input", [-2, -1], keepdims), rank=4 if keepdims else 2)
    expected, got = both(proto, reference, relay_run)
    assert got.shape == expected.shape == ((2, 3, 1, 1) if keepdims else (2, 3))
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("bounds", [("", "max"), ("min", ""), ("min",), ("min", "max")])
def test_clip_with_either_bound(net, reference, relay_run, bounds):
    # Relay's importer drops the only bound of a Clip.
    built = net(13, DATA.shape)
    names = {"": "", "min": built.constant(-1.0), "max": built.constant(2.0)}
    x = built.node("Clip", "input", *(names[bound] for bound in bounds))
    expected, got = both(built.model(x, rank=4), reference, relay_run)
    assert not np.array_equal(expected, DATA)
    np.testing.assert_array_equal(got, expected)


def test_clip_with_a_computed_bound(net, reference, relay_run):
    built = net(13, DATA.shape)
    low = built.node("ReduceMean", "input", keepdims=0)
    x = built.node("Clip", "input", low, built.constant(2.0))
    expected, got = both(built.model(x, rank=4), reference, relay_run)
    np.testing.assert_allclose(got, expected, atol=1e-6)


def test_pad_of_some_axes(net, reference, relay_run):
    built = net(18, DATA.shape)
    pads = built.constant([1, 0, 2, 3], np.int64)
    x = built.node("Pad", "input", pads, "", built.constant([-1, 2], np.int64))
    expected, got = both(built.model(x, rank=4), reference, relay_run)
    np.testing.assert_array_equal(got, expected)
