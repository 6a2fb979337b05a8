"""Other ways to count than ``costing``'s: those by which papers come to their figures."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import onnx

from mobilenet_tvm.zoo import builder, costing
from mobilenet_tvm.zoo.tables import FAMILIES


@dataclass(frozen=True)
class Count:
    """A model's outline and the layers of it that are counted."""

    model: onnx.ModelProto
    layers: Sequence[costing.LayerCost]

    @property
    def mult_adds(self) -> int:
        """Mult-Adds as ``costing`` counts them."""
        return sum(layer.mult_adds for layer in self.layers)

    @property
    def parameters(self) -> int:
        """Parameters as ``costing`` counts them."""
        return sum(layer.parameters for layer in self.layers)


@dataclass(frozen=True)
class Reason:
    """A way of counting: in words, for behind a number's name, and as a function."""

    words: str
    value: Callable[[Count], float]


def count(
    name: str, *, alpha: float, resolution: int, classes: int | None = None, behind: str = ""
) -> Count:
    """Count a network of the zoo, whole or only what stands ``behind`` a layer."""
    family = FAMILIES[name]
    model = builder.outline(
        family,
        alpha=alpha,
        resolution=resolution,
        batch=1,
        classes=family.classes if classes is None else classes,
    )
    layers = costing.layer_costs(model)
    if behind:
        layers = layers[[layer.node for layer in layers].index(behind) + 1 :]
    return Count(model, layers)


def _without_dense(counted: Count) -> float:
    return sum(layer.mult_adds for layer in counted.layers if layer.kind != "dense")


def _with_norms(counted: Count) -> float:
    vectors = ("/bias", "/bn/scale", "/bn/offset")
    tensors = (t for t in counted.model.graph.initializer if t.name.endswith(vectors))
    values: int = sum(math.prod(t.dims) for t in tensors)
    return counted.parameters + values


def _with_products(counted: Count) -> float:
    shapes = costing.shapes(counted.model)
    products = (n for n in counted.model.graph.node if n.op_type in ("HardSwish", "Mul"))
    values: int = sum(math.prod(shapes[n.output[0]]) for n in products)
    return counted.mult_adds + values


def _hidden_1280(counted: Count) -> float:
    # Both layers that touch the hidden 1024 grow in proportion.
    grown = sum(layer.parameters for layer in counted.layers[-2:]) * 1280 / 1024
    return sum(layer.parameters for layer in counted.layers[:-2]) + grown


WITHOUT_DENSE = Reason("without the dense layers", _without_dense)
DOUBLED = Reason("with additions and multiplications counted apart", lambda c: 2 * c.mult_adds)
WITH_NORMS = Reason("with biases and BatchNorm's scales and offsets", _with_norms)
WITH_PRODUCTS = Reason("with the products of hard-swish and of the gates", _with_products)
HIDDEN_1280 = Reason("with a hidden layer of 1280, as V3-Large has", _hidden_1280)
IN_1024S = Reason(
    "in units of 1024 * 1000 (the K of the network's own paper is 1024)",
    lambda c: c.parameters / 1.024,
)
