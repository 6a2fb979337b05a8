"""Computed gates stay where they are; constants may go into the weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mobilenet_tvm import frontend, toolchain


def folded(model: frontend.RelayModel) -> list[str]:
    """Operators on the way to each convolution's or dense layer's weights, after TVM's folding."""
    toolchain.activate()
    import tvm
    from tvm import relay

    passes = [
        relay.transform.InferType(),
        relay.transform.BackwardFoldScaleAxis(),
        relay.transform.ForwardFoldScaleAxis(),
        relay.transform.FoldConstant(),
    ]
    config = toolchain.pass_config()
    with tvm.transform.PassContext(opt_level=3, config=config):
        module = tvm.transform.Sequential(passes)(model.module)
    found: list[str] = []

    def visit(node: Any) -> None:
        layer = isinstance(node, relay.Call) and node.op.name in ("nn.conv2d", "nn.dense")
        if layer and not isinstance(node.args[1], relay.Constant):
            found.append(node.op.name)

    relay.analysis.post_order_visit(module["main"], visit)
    return found


def imported(proto: Any) -> frontend.RelayModel:
    return frontend.to_relay(frontend.clean(frontend.from_proto(proto, "net")))


def gate(built: Any, x: str, channels: int) -> str:
    pooled = built.node("GlobalAveragePool", x)
    return built.node("Sigmoid", built.conv(pooled, channels, 8, 1))


def before(built: Any) -> str:
    """Squeeze-excite and its projection."""
    x = built.node("Relu", built.conv("input", 3, 8, 3))
    return built.conv(built.node("Mul", x, gate(built, x, 8)), 8, 4, 1)


def behind(built: Any) -> str:
    """A gate that is made of something else than what it multiplies, as in LR-ASPP."""
    return built.node("Mul", built.conv("input", 3, 8, 3), gate(built, "input", 3))


def in_a_head(built: Any) -> str:
    """Hard-swish of a dense layer's output, over more than one pixel."""
    flat = built.node("Flatten", "input")
    size = 3 * 17 * 18
    x = built.node("Gemm", flat, built.constant(built.random.normal(0, 0.03, (size, 8))))
    x = built.node("HardSwish", x)
    return built.node("Gemm", x, built.constant(built.random.normal(size=(8, 5))))


@pytest.mark.parametrize(("make", "rank"), [(before, 4), (behind, 4), (in_a_head, 2)])
def test_no_gate_goes_into_weights(net, reference, relay_run, make, rank, monkeypatch):
    built = net(14)
    proto = built.model(make(built), rank=rank)
    model = imported(proto)
    assert folded(model) == []
    image = np.random.default_rng(0).uniform(-1, 1, (1, 3, 17, 18)).astype(np.float32)
    wanted = reference(proto, image)[0]
    got = relay_run(model, image)[0]
    np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())
    # Without our pass they do: should TVM stop, the pass can go.
    monkeypatch.setattr("mobilenet_tvm.frontend.relay.keep_scales_apart", lambda module: module)
    assert folded(imported(proto)) != []


def test_constants_and_whole_images_are_left_alone(net):
    built = net(13)
    x = built.conv("input", 3, 8, 3)
    y = built.conv("input", 3, 8, 3)
    scaled = built.node("Mul", x, built.constant(np.ones((1, 8, 1, 1)) * 2))
    proto = built.model(built.node("Mul", scaled, y), rank=4)
    assert "copy" not in imported(proto).module.astext(show_meta_data=False)
