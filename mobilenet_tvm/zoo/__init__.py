"""MobileNets made here, as ONNX: layer tables, one builder, and what a model costs.

    >>> from mobilenet_tvm import zoo
    >>> model = zoo.build("mobilenet_v1", alpha=0.5, resolution=160)
    >>> zoo.costs(model)
    Costs(mult_adds=76524800, parameters=1319648)

``zoo.paper.FIGURES`` holds what the papers print. This room knows ONNX alone, not TVM.
"""

from __future__ import annotations

import difflib
from typing import Any

import onnx

from mobilenet_tvm.errors import UsageError
from mobilenet_tvm.zoo import builder
from mobilenet_tvm.zoo.costing import Costs, LayerCost, costs, layer_costs
from mobilenet_tvm.zoo.filling import fill
from mobilenet_tvm.zoo.rows import Family
from mobilenet_tvm.zoo.tables import FAMILIES

__all__ = [
    "Costs",
    "LayerCost",
    "build",
    "costs",
    "defaults",
    "layer_costs",
    "names",
    "outline",
    "validate",
]


def names() -> tuple[str, ...]:
    """The names that ``build`` knows."""
    return tuple(FAMILIES)


def defaults(name: str = "mobilenet_v1") -> dict[str, Any]:
    """What ``build`` takes for arguments that are left out: alpha, resolution, classes ...

    Raises:
        UsageError: the zoo has no such model.
    """
    family = _family(name)
    return {
        "alpha": 1.0,
        "resolution": family.resolution,
        "batch": 1,
        "classes": family.classes,
        "seed": 0,
    }


def build(
    name: str = "mobilenet_v1",
    *,
    alpha: float = 1.0,
    resolution: int | None = None,
    batch: int = 1,
    classes: int | None = None,
    seed: int = 0,
) -> onnx.ModelProto:
    """A network of the zoo with seeded weights, as ONNX (opset 13, with hard-swish 14).

    Input ``input`` ``[batch, 3, resolution, resolution] float32``, meant for images in
    [-1, 1]; output ``logits`` ``[batch, classes] float32``, with no softmax. A detector (``ssd*``)
    has ``boxes`` ``[batch, anchors, 4]`` and ``scores`` ``[batch, anchors, classes]``, both raw:
    no anchors added, no softmax, no suppression. BatchNormalization is unfolded, ReLU6 is Clip
    with inputs, pads are explicit and equal TensorFlow's SAME; nodes are named after the paper's
    layers (``conv1``, ``conv_dw_2``, ``conv_pw_2`` ... ``fc``). The same arguments give the same
    bytes on every machine. The weights are random, yet every ReLU6 clips at both ends and the
    outputs depend on the input (see ``zoo.weights``).

    Args:
        name: one of ``names()``.
        alpha: width multiplier, in the family's own range (V1: (0, 1]).
        resolution: height and width of the input, in pixels; by default the family's own
            (224), else what its strides allow (V1: a positive multiple of 32).
        batch: images a run, at least 1.
        classes: number of logits, at least 1; by default the family's own (1000; a detector's
            91 scores a box count the background).
        seed: of the weights, at least 0.

    Raises:
        UsageError: an argument is outside its range.
    """
    validate(name, seed=seed)
    model = outline(name, alpha=alpha, resolution=resolution, batch=batch, classes=classes)
    fill(model, seed)
    return model


def outline(
    name: str = "mobilenet_v1",
    *,
    alpha: float = 1.0,
    resolution: int | None = None,
    batch: int = 1,
    classes: int | None = None,
) -> onnx.ModelProto:
    """The graph of ``build``, its weights with shapes and no values: enough for ``costs``.

    It takes milliseconds and kilobytes, whatever the network; it cannot be run.

    Raises:
        UsageError: an argument is outside its range.
    """
    validate(name, alpha=alpha, resolution=resolution, batch=batch, classes=classes)
    family = FAMILIES[name]
    return builder.outline(
        family,
        alpha=alpha,
        resolution=family.resolution if resolution is None else resolution,
        batch=batch,
        classes=family.classes if classes is None else classes,
    )


def validate(
    name: str = "mobilenet_v1",
    *,
    alpha: float = 1.0,
    resolution: int | None = None,
    batch: int = 1,
    classes: int | None = None,
    seed: int = 0,
) -> None:
    """Check the arguments of ``build`` without building.

    Raises:
        UsageError: an argument is outside its range.
    """
    family = _family(name)
    _validate_alpha(family, alpha)
    if resolution is not None:
        _validate_resolution(family, resolution)
    classes = family.classes if classes is None else classes
    for what, value, least in (("batch", batch, 1), ("classes", classes, 1), ("seed", seed, 0)):
        if value < least:
            raise UsageError(f"{what} {value} is too small: give {least} or more")


def _family(name: str) -> Family:
    if name not in FAMILIES:
        close = max(FAMILIES, key=lambda known: difflib.SequenceMatcher(None, name, known).ratio())
        raise UsageError(
            f"the zoo has no model {name!r}: did you mean {close}? It has {', '.join(FAMILIES)}"
        )
    return FAMILIES[name]


def _validate_alpha(family: Family, alpha: float) -> None:
    most, least = family.alphas[0], family.alphas[-1]
    if (alpha > 0 if family.any_alpha else least <= alpha) and alpha <= most:
        return  # NaN is never here
    if most == least and not family.any_alpha:
        raise UsageError(f"alpha {alpha:g}: {family.name} has one width, {most:g}: leave alpha out")
    published = ", ".join(f"{a:g}" for a in family.alphas)
    raise UsageError(
        f"alpha {alpha:g} is outside {'(0' if family.any_alpha else f'[{least:g}'}, {most:g}]: "
        f"give {published} or between"
    )


def _validate_resolution(family: Family, resolution: int) -> None:
    step, least = family.step, family.least_resolution
    if step > 1 and (resolution < least or resolution % step):
        below = max(resolution // step, 1) * step
        raise UsageError(
            f"resolution {resolution} is no positive multiple of {step}: "
            f"give {below} or {below + step}"
        )
    if resolution < least:
        raise UsageError(
            f"resolution {resolution} is too small for {family.name}: give {least} or more"
        )
