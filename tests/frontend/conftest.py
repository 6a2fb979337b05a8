"""A small MobileNet-like network as exporters of each operator set write it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from mobilenet_tvm import toolchain
from mobilenet_tvm.frontend import RelayModel


class Net:
    """Builds an ONNX graph node by node; weights are seeded."""

    def __init__(self, opset: int, shape: tuple[int | str, ...] = (1, 3, 17, 18)) -> None:
        self.opset = opset
        self.random = np.random.default_rng(opset)
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self.input = helper.make_tensor_value_info("input", TensorProto.FLOAT, shape)

    def constant(self, values: Any, dtype: Any = np.float32) -> str:
        name = f"c{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.asarray(values, dtype), name))
        return name

    def node(self, op: str, *inputs: str, outputs: int = 1, **attributes: Any) -> str:
        names = [f"{op.lower()}_{len(self.nodes)}" + (f"_{i}" if i else "") for i in range(outputs)]
        self.nodes.append(helper.make_node(op, inputs, names, name=names[0], **attributes))
        return names[0]

    def conv(
        self, x: str, cin: int, cout: int, k: int, *, group: int = 1, **attributes: Any
    ) -> str:
        bias = attributes.pop("bias", False)
        weight = self.constant(
            self.random.normal(0, (2 * group / cin) ** 0.5 / k, (cout, cin // group, k, k))
        )
        inputs = [x, weight]
        if bias:
            inputs.append(self.constant(self.random.normal(0, 0.2, cout)))
        return self.node("Conv", *inputs, group=group, kernel_shape=[k, k], **attributes)

    def norm(self, x: str, channels: int) -> str:
        statistics = [
            self.random.uniform(0.5, 1.5, channels),
            self.random.normal(0, 0.3, channels),
            self.random.normal(0, 0.3, channels),
            self.random.uniform(0.3, 2, channels),
        ]
        return self.node("BatchNormalization", x, *map(self.constant, statistics), epsilon=1e-3)

    def relu6(self, x: str) -> str:
        if self.opset < 11:
            return self.node("Clip", x, min=0.0, max=6.0)
        return self.node("Clip", x, self.constant(0.0), self.constant(6.0))

    def pad(self, x: str, pads: list[int]) -> str:
        if self.opset < 11:
            return self.node("Pad", x, pads=pads)
        return self.node("Pad", x, self.constant(pads, np.int64))

    def reduce(self, op: str, x: str, axes: list[int], keepdims: int) -> str:
        if self.opset >= (13 if op == "ReduceSum" else 18):
            return self.node(op, x, self.constant(axes, np.int64), keepdims=keepdims)
        return self.node(op, x, axes=axes, keepdims=keepdims)

    def model(self, *outputs: str, rank: int = 2) -> onnx.ModelProto:
        dims = [f"d{axis}" for axis in range(rank)]
        graph = helper.make_graph(
            self.nodes,
            "net",
            [self.input],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, dims) for name in outputs],
            self.weights,
        )
        opsets = [helper.make_opsetid("", self.opset)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=8)


@pytest.fixture
def net() -> type[Net]:
    return Net


@pytest.fixture
def mobile_net() -> Callable[..., onnx.ModelProto]:
    """``mobile_net(opset, shape)``: pads, clips and shape arithmetic of all kinds."""

    def make(opset: int, shape: tuple[int | str, ...] = (1, 3, 17, 18)) -> onnx.ModelProto:
        net = Net(opset, shape)
        x = net.conv("input", 3, 8, 3, strides=[2, 2], auto_pad="SAME_UPPER")
        x = net.relu6(net.norm(x, 8))
        x = net.conv(x, 8, 8, 3, group=8, auto_pad="SAME_LOWER", strides=[2, 2], bias=True)
        x = net.node("Relu", net.norm(x, 8))
        x = net.conv(net.pad(x, [0, 0, 0, 0, 0, 0, 1, 1]), 8, 8, 3, group=8, auto_pad="VALID")
        x = net.node("Identity", x)
        low = net.node("Max", x, net.constant(0.0))
        x = net.node("Min", low, net.constant(6.0))
        x = net.node("MaxPool", x, kernel_shape=[2, 2], strides=[1, 1], auto_pad="SAME_LOWER")
        x = net.norm(net.node("Add", x, net.conv(x, 8, 8, 1)), 8)
        x = net.node("Dropout", x)
        x = net.reduce("ReduceMean", x, [2, 3], 1)
        batch = net.node("Gather", net.node("Shape", x), net.constant([0], np.int64), axis=0)
        target = net.node("Concat", batch, net.constant([-1], np.int64), axis=0)
        x = net.node("Reshape", x, target)
        x = net.node(
            "Gemm", x, net.constant(net.random.normal(0, 1, (8, 5))), net.constant([1.0] * 5)
        )
        return net.model(x, net.node("Softmax", x, axis=1))

    return make


def in_onnxruntime(proto: onnx.ModelProto, data: np.ndarray) -> list[np.ndarray]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options)
    return session.run(None, {session.get_inputs()[0].name: data})


def in_relay(model: RelayModel, data: np.ndarray) -> list[np.ndarray]:
    import tvm
    from tvm import relay
    from tvm.contrib import graph_executor

    with tvm.transform.PassContext(opt_level=1, config=toolchain.pass_config()):
        built = relay.build(model.module, "llvm", params=model.params)
    runner = graph_executor.GraphModule(built["default"](tvm.cpu()))
    runner.run(**{model.inputs[0].name: data})
    return [runner.get_output(i).numpy() for i in range(runner.get_num_outputs())]


@pytest.fixture
def reference() -> Callable[..., list[np.ndarray]]:
    """``reference(proto, data)``: the outputs that ONNX Runtime gives, unoptimised."""
    return in_onnxruntime


@pytest.fixture
def relay_run() -> Callable[..., list[np.ndarray]]:
    """``relay_run(relay_model, data)``: its outputs on this CPU, untuned."""
    return in_relay
