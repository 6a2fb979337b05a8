"""Values for the weights of an outline: one walk over the graph, in its order.

At every node the mean and variance of each channel are predicted from those before it, so that
the next layer can be made to fit; see ``weights`` for why.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx

from mobilenet_tvm.zoo import moments
from mobilenet_tvm.zoo.weights import (
    AIMS,
    UNIT,
    Aim,
    Draws,
    Floats,
    Moments,
    Weights,
    he_scale,
    image_moments,
    scaled,
    sums,
    taps_seen,
)

# A gate or hidden layer reads means over a whole image. They vary from image to image by more
# than independent pixels would, as neighbours are alike: as if there were no more than this many.
_ALIKE = 9
# The same for scores that are pooled at the very end, where nothing can be saturated.
_ALIKE_SCORES = 49
_ACTIVATIONS = ("Clip", "Relu", "HardSwish", "HardSigmoid")
_WITH_WEIGHTS = ("Conv", "Gemm")


def fill(model: onnx.ModelProto, seed: int) -> None:
    """Give every initializer of ``model`` that has none its values, in place.

    The same outline and seed give the same bits on every machine.
    """
    _Filler(model.graph, seed).run()


class _Filler:
    """The walk: moments of every tensor so far, by name."""

    def __init__(self, graph: onnx.GraphProto, seed: int) -> None:
        self.graph = graph
        self.weights = Weights(seed)
        self.initializers = {t.name: t for t in graph.initializer}
        self.readers: dict[str, list[onnx.NodeProto]] = {}
        for node in graph.node:
            for name in node.input:
                self.readers.setdefault(name, []).append(node)
        shape = [d.dim_value for d in graph.input[0].type.tensor_type.shape.dim]
        self.moments = {graph.input[0].name: image_moments(shape[1], shape[2])}
        # What a layer made before its activation: offset and scale, ``[C]`` each.
        self.normal: dict[str, tuple[Floats, Floats]] = {}

    def run(self) -> None:
        for node in self.graph.node:
            x = self.moments.get(node.input[0])
            if x is not None:
                made = self.node(node, x)
                if made is not None:
                    self.moments[node.output[0]] = made

    def node(self, node: onnx.NodeProto, x: Moments) -> Moments | None:
        """Fill the weights of ``node``; the moments of its output, None behind an output."""
        op = node.op_type
        settings = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        if op in _ACTIVATIONS:
            return moments.activated(op, *self.normal[node.input[0]], x.size)
        if op in _WITH_WEIGHTS:
            return self.layer(node, x, settings)
        if op == "BatchNormalization":
            return self.batch_norm(node, x)
        if op in ("Add", "Mul"):
            combine = moments.added if op == "Add" else moments.multiplied
            return combine(x, self.moments[node.input[1]])
        if op == "MaxPool":
            kernel, stride, pads = (settings[k] for k in ("kernel_shape", "strides", "pads"))
            size = (x.size + pads[0] + pads[2] - kernel[0]) // stride[0] + 1
            return moments.pooled_max(x, kernel[0] * kernel[1], size)
        if op == "GlobalAveragePool":
            return Moments(x.mean, x.variance, 1, pooled=x.size**2)
        if op == "Flatten":
            return moments.flattened(x)
        if op == "Concat":
            return moments.concatenated([self.moments[name] for name in node.input])
        if op == "LRN":
            return moments.response_normalized(
                x, settings["alpha"], settings["beta"], settings["bias"]
            )
        return None  # Transpose and Reshape stand behind a detector's heads

    def layer(self, node: onnx.NodeProto, x: Moments, settings: dict[str, Any]) -> Moments:
        """A Conv or Gemm: draw its weights; give it a bias unless BatchNorm follows."""
        weight, output = self.initializers[node.input[1]], node.output[0]
        shape = tuple(weight.dims)
        integers = self.weights.draw(*shape)
        size, seen = x.size, np.ones((1, 1))
        if node.op_type == "Conv":
            (kernel, _), (stride, _), pads = (
                settings[k] for k in ("kernel_shape", "strides", "pads")
            )
            size = (x.size + pads[0] + pads[2] - kernel) // stride + 1
            seen = taps_seen(x.size, kernel, stride, pads[0], size)
        elif output not in self.readers:
            self.classifier(node, x, integers)
            return x  # nobody reads them
        x = Moments(x.mean, x.variance / min(x.pooled, _ALIKE), x.size)
        blocks = integers.reshape(*shape, 1, 1) if len(shape) == 2 else integers
        mean, variance = sums(blocks, x, seen, settings.get("group", 1))
        if len(node.input) == 2:
            scale = he_scale(integers)
            self.put(weight, scaled(integers, scale))
            return Moments(mean * scale, variance * scale**2, size)
        scale = self.spread(output, size) / math.sqrt(math.fsum(variance.tolist()) / variance.size)
        self.put(weight, scaled(integers, scale))
        offset = self.weights.between(*self.aim(output).offset, mean.size)
        self.put(self.initializers[node.input[2]], offset - mean * scale)
        self.normal[output] = offset, np.sqrt(variance) * scale
        return moments.activated("", offset, np.sqrt(variance) * scale, size)

    def classifier(self, node: onnx.NodeProto, x: Moments, integers: Draws) -> None:
        """The last Gemm: the logits of one input spread by 2.5 around a small bias.

        What all inputs share is taken off, so that the winning class depends on the input.
        """
        aim = AIMS["output"]
        variance = math.fsum(x.variance.tolist()) / x.pooled
        mean, _ = sums(integers.reshape(*integers.shape, 1, 1), x, np.ones((1, 1)))
        scale = aim.scale[0] / math.sqrt(variance) * UNIT
        bias = self.weights.between(*aim.offset, mean.size) - mean * scale
        self.put(self.initializers[node.input[1]], scaled(integers, scale))
        self.put(self.initializers[node.input[2]], bias)

    def batch_norm(self, node: onnx.NodeProto, x: Moments) -> Moments:
        """A BatchNormalization with the statistics that its convolution really has."""
        output = node.output[0]
        norm = self.weights.batch_norm(x.mean, x.variance, self.aim(output))
        values = (norm.scale, norm.offset, norm.mean, norm.variance)
        for name, value in zip(node.input[1:], values, strict=True):
            self.put(self.initializers[name], value)
        self.normal[output] = norm.offset, norm.scale
        return moments.activated("", norm.offset, norm.scale, x.size)

    def aim(self, tensor: str) -> Aim:
        """What the layer that makes ``tensor`` is to produce."""
        behind = self.behind(tensor)
        if behind is not None:
            return AIMS["output"]
        reader = self.readers[tensor][0].op_type
        return AIMS[reader if reader in _ACTIVATIONS else ""]

    def spread(self, tensor: str, size: int) -> float:
        """Standard deviation to give ``tensor`` by the scale of its layer's weights."""
        spread = sum(self.aim(tensor).scale) / 2
        pooled = "GlobalAveragePool" in (self.behind(tensor) or ())
        return spread * math.sqrt(min(size**2, _ALIKE_SCORES)) if pooled else spread

    def behind(self, tensor: str) -> list[str] | None:
        """The operators from ``tensor`` to the model's output; None where weights come first."""
        found = []
        while tensor in self.readers:
            node = self.readers[tensor][0]
            if node.op_type in (*_WITH_WEIGHTS, "BatchNormalization", "Add", "Mul", "MaxPool"):
                return None
            found.append(node.op_type)
            tensor = node.output[0]
        return found

    def put(self, tensor: onnx.TensorProto, value: Any) -> None:
        """Give ``tensor`` its values, as float32."""
        tensor.raw_data = np.ascontiguousarray(value, "<f4").tobytes()
