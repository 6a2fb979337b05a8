"""The networks as data: one table a family, after its paper's own table.

A row is one block of the paper's table; ``builder`` turns rows into ONNX nodes. Channels are
those of alpha 1; the shapes in comments are the block's outputs ``[C, H, W]`` at alpha 1 and
resolution 224. A new family is a new table, and a new kind of row where its blocks differ.
"""

from __future__ import annotations

from dataclasses import dataclass

MIN_CHANNELS = 8
"""Fewest channels a layer keeps at a small alpha (TF-slim's ``min_depth``)."""


@dataclass(frozen=True)
class Conv:
    """Full convolution, BatchNorm, ReLU6."""

    channels: int
    stride: int
    kernel: int = 3


@dataclass(frozen=True)
class Separable:
    """Depthwise convolution and 1x1 (pointwise) one, each with BatchNorm and ReLU6."""

    channels: int
    stride: int
    kernel: int = 3


Row = Conv | Separable


@dataclass(frozen=True)
class Family:
    """One network: its rows, then average pooling and one dense layer of ``classes``."""

    name: str
    title: str
    source: str
    rows: tuple[Row, ...]


def scale_channels(channels: int, alpha: float) -> int:
    """``channels`` thinned by the width multiplier ``alpha``, as the paper's own code does.

    Source: TF-slim ``mobilenet_v1.py``, ``max(int(depth * depth_multiplier), min_depth)``.
    """
    return max(int(channels * alpha), MIN_CHANNELS)


MOBILENET_V1 = Family(
    name="mobilenet_v1",
    title="MobileNet V1",
    source="arXiv 1704.04861, Table 1",
    rows=(
        Conv(32, stride=2),  # 1: [32, 112, 112]
        Separable(64, stride=1),  # 2: [64, 112, 112]
        Separable(128, stride=2),  # 3: [128, 56, 56]
        Separable(128, stride=1),  # 4: [128, 56, 56]
        Separable(256, stride=2),  # 5: [256, 28, 28]
        Separable(256, stride=1),  # 6: [256, 28, 28]
        Separable(512, stride=2),  # 7: [512, 14, 14]
        Separable(512, stride=1),  # 8: [512, 14, 14]
        Separable(512, stride=1),  # 9: [512, 14, 14]
        Separable(512, stride=1),  # 10: [512, 14, 14]
        Separable(512, stride=1),  # 11: [512, 14, 14]
        Separable(512, stride=1),  # 12: [512, 14, 14]
        Separable(1024, stride=2),  # 13: [1024, 7, 7]
        # The paper prints stride 2 here, with an input and output of 7x7: a slip for 1.
        Separable(1024, stride=1),  # 14: [1024, 7, 7]
    ),
)

FAMILIES = {family.name: family for family in (MOBILENET_V1,)}
