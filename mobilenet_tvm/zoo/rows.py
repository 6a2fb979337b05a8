"""What a layer table is written in: kinds of rows, and the family that holds them.

``builder`` turns a row into ONNX nodes. Channels are those of alpha 1. A row is frozen data: a
variant of a network is its rows with ``dataclasses.replace``, not a second builder.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

MIN_CHANNELS = 8
"""Fewest channels a layer keeps at a small alpha (TF-slim's ``min_depth``)."""

CLASSES = 0
"""In place of channels: one for each class."""

Act = Literal["relu6", "relu", "hard_swish", "none"]
Pad = Literal["same", "valid"] | int  # TensorFlow's SAME, no padding, or so much at each side


@dataclass(frozen=True)
class Conv:
    """Convolution, then BatchNorm or (``norm=False``) a bias of its own, then ``act``.

    ``width`` says how alpha changes ``channels``: always, only where it widens (V2's last
    layer keeps its 1280 below alpha 1), or never.
    """

    channels: int
    stride: int = 1
    kernel: int = 3
    act: Act = "relu6"
    norm: bool = True
    pad: Pad = "same"
    groups: int = 1
    width: Literal["always", "widen", "never"] = "always"
    name: str = ""


@dataclass(frozen=True)
class Separable:
    """Depthwise convolution and 1x1 (pointwise) one, each with BatchNorm and ReLU6."""

    channels: int
    stride: int
    kernel: int = 3


@dataclass(frozen=True)
class Bottleneck:
    """Inverted bottleneck: 1x1 to ``expand`` times the input, depthwise, 1x1 without activation.

    A shortcut goes around it where input and output have the same shape. V3 puts a squeeze and
    excitation behind the depthwise convolution; V4's universal form has a second depthwise one
    of size ``start`` before the expansion, and each of the two may be absent (0). The stride is
    the depthwise convolution's (``start``'s where it is the only one). With ``expand`` 1 there
    is no expansion. ``anchors`` makes the expansion a detector's feature map.
    """

    channels: int
    stride: int
    expand: float
    kernel: int = 3
    start: int = 0
    act: Act = "relu6"
    squeeze: bool = False
    anchors: int = 0


@dataclass(frozen=True)
class Fused:
    """V4's fused bottleneck: full convolution to ``expand`` times the input, then linear 1x1."""

    channels: int
    stride: int
    expand: float
    kernel: int = 3
    act: Act = "relu"


@dataclass(frozen=True)
class Pool:
    """Max pooling."""

    kernel: int
    stride: int
    pad: Pad = "same"


@dataclass(frozen=True)
class Lrn:
    """Local response normalization across ``size`` channels, as ONNX's LRN."""

    size: int
    alpha: float
    beta: float
    bias: float


@dataclass(frozen=True)
class Branches:
    """Rows side by side on the same input, their outputs concatenated: Inception, Fire."""

    name: str
    branches: tuple[tuple[Conv | Pool, ...], ...]


@dataclass(frozen=True)
class Dense:
    """Fully connected layer of ``units`` with bias and ReLU; flattens what comes."""

    units: int


@dataclass(frozen=True)
class GlobalPool:
    """Global average pooling: ``[C, H, W] -> [C, 1, 1]``."""


@dataclass(frozen=True)
class Flatten:
    """``[C, H, W] -> [C * H * W]``."""


@dataclass(frozen=True)
class Classifier:
    """The last dense layer, ``fc``: ``[C] -> [classes]``; flattens what comes."""


@dataclass(frozen=True)
class Features:
    """What comes in is a detector's feature map, with ``anchors`` boxes at each position."""

    anchors: int


@dataclass(frozen=True)
class Detector:
    """Box and score convolutions on every feature map: ``boxes`` and ``scores``.

    ``separable`` is SSDLite's form: a depthwise convolution with BatchNorm and ReLU6, then 1x1.
    """

    kernel: int
    separable: bool = False


Row = (
    Conv
    | Separable
    | Bottleneck
    | Fused
    | Pool
    | Lrn
    | Branches
    | Dense
    | GlobalPool
    | Flatten
    | Classifier
    | Features
    | Detector
)


@dataclass(frozen=True)
class Family:
    """One network: its table, and what may be asked of it.

    ``rows`` and then ``head`` make the graph. ``alphas`` are the width multipliers that its
    paper or its authors' code has, widest first: alpha may be anything from the last to the
    first, or down to 0 where ``any_alpha``. ``resolution`` and ``classes`` are what is built
    unless asked otherwise; the resolution may be any multiple of ``step`` from
    ``least_resolution`` up. ``rounding`` is how the authors' code rounds channels.
    """

    name: str
    title: str
    source: str
    rows: tuple[Row, ...]
    head: tuple[Row, ...] = (GlobalPool(), Flatten(), Classifier())
    alphas: tuple[float, ...] = (1.0,)
    any_alpha: bool = False
    rounding: Literal["down", "divisible"] = "divisible"
    resolution: int = 224
    step: int = 1
    least_resolution: int = 32
    classes: int = 1000

    def scaled(self, channels: int, alpha: float) -> int:
        """``channels`` at the width multiplier ``alpha``."""
        if self.rounding == "down":
            return scale_channels(channels, alpha)
        return make_divisible(channels * alpha)


def scale_channels(channels: int, alpha: float) -> int:
    """``channels`` thinned by the width multiplier ``alpha``, as V1's own code does.

    Source: TF-slim ``mobilenet_v1.py``, ``max(int(depth * depth_multiplier), min_depth)``.
    """
    return max(int(channels * alpha), MIN_CHANNELS)


def make_divisible(channels: float, divisor: int = 8) -> int:
    """``channels`` to the nearest multiple of ``divisor``, though never 10 % below them.

    Source: TF-slim ``mobilenet.py``, used from V2 on: 0.35 * 32 = 11.2 is 16, as 8 is too few.
    """
    rounded = max(int(channels + divisor / 2) // divisor * divisor, divisor)
    return rounded if rounded >= 0.9 * channels else rounded + divisor
