"""MobileNets made here, as ONNX: layer tables, one builder, and what a model costs.

    >>> from mobilenet_tvm import zoo
    >>> model = zoo.build("mobilenet_v1", alpha=0.5, resolution=160)
    >>> zoo.costs(model)
    Costs(mult_adds=76524800, parameters=1319648)

``zoo.paper.FIGURES`` holds what the papers print. This room knows ONNX alone, not TVM.
"""

from __future__ import annotations

import difflib

import onnx

from mobilenet_tvm.errors import UsageError
from mobilenet_tvm.zoo.builder import build_family
from mobilenet_tvm.zoo.costing import Costs, LayerCost, costs, layer_costs
from mobilenet_tvm.zoo.tables import FAMILIES

__all__ = ["Costs", "LayerCost", "build", "costs", "layer_costs", "names", "validate"]

RESOLUTION_STEP = 32  # what the strides of every family multiply to


def names() -> tuple[str, ...]:
    """The names that ``build`` knows."""
    return tuple(FAMILIES)


def build(
    name: str = "mobilenet_v1",
    *,
    alpha: float = 1.0,
    resolution: int = 224,
    batch: int = 1,
    classes: int = 1000,
    seed: int = 0,
) -> onnx.ModelProto:
    """A MobileNet with seeded weights, as ONNX (opset 13).

    Input ``input`` ``[batch, 3, resolution, resolution] float32``, meant for images in
    [-1, 1]; output ``logits`` ``[batch, classes] float32``, with no softmax. BatchNormalization
    is unfolded, ReLU6 is Clip with inputs, pads are explicit and equal TensorFlow's SAME; nodes
    are named after the paper's layers (``conv1``, ``conv_dw_2``, ``conv_pw_2`` ... ``fc``).
    The same arguments give the same bytes on every machine. The weights are random, yet every
    ReLU6 clips at both ends and the logits depend on the input (see ``zoo.weights``).

    Args:
        name: one of ``names()``.
        alpha: width multiplier, in (0, 1].
        resolution: height and width of the input, in pixels, a positive multiple of 32.
        batch: images a run, at least 1.
        classes: number of logits, at least 1.
        seed: of the weights, at least 0.

    Raises:
        UsageError: an argument is outside its range.
    """
    validate(name, alpha=alpha, resolution=resolution, batch=batch, classes=classes, seed=seed)
    return build_family(
        FAMILIES[name],
        alpha=alpha,
        resolution=resolution,
        batch=batch,
        classes=classes,
        seed=seed,
    )


def validate(
    name: str = "mobilenet_v1",
    *,
    alpha: float = 1.0,
    resolution: int = 224,
    batch: int = 1,
    classes: int = 1000,
    seed: int = 0,
) -> None:
    """Check the arguments of ``build`` without building.

    Raises:
        UsageError: an argument is outside its range.
    """
    if name not in FAMILIES:
        close = difflib.get_close_matches(name, FAMILIES, n=1, cutoff=0)
        raise UsageError(
            f"the zoo has no model {name!r}: did you mean {close[0]}? It has {', '.join(FAMILIES)}"
        )
    if not 0 < alpha <= 1:  # NaN fails this too
        raise UsageError(f"alpha {alpha:g} is outside (0, 1]: give 1, 0.75, 0.5, 0.25 or between")
    if resolution < 1 or resolution % RESOLUTION_STEP:
        below = max(resolution // RESOLUTION_STEP, 1) * RESOLUTION_STEP
        raise UsageError(
            f"resolution {resolution} is no positive multiple of {RESOLUTION_STEP}: "
            f"give {below} or {below + RESOLUTION_STEP}"
        )
    for what, value, least in (("batch", batch, 1), ("classes", classes, 1), ("seed", seed, 0)):
        if value < least:
            raise UsageError(f"{what} {value} is too small: give {least} or more")
