"""The MobileNets as data, each after its paper's own table.

The shapes in comments are a row's outputs ``[C, H, W]`` at alpha 1 and resolution 224.
"""

from __future__ import annotations

from dataclasses import replace

from mobilenet_tvm.zoo.rows import (
    Act,
    Bottleneck,
    Classifier,
    Conv,
    Family,
    Flatten,
    Fused,
    GlobalPool,
    Row,
    Separable,
)

V1 = "arXiv 1704.04861"
V2 = "arXiv 1801.04381"
V3 = "arXiv 1905.02244"
V4 = "arXiv 2404.10518"

V1_ROWS: tuple[Conv | Separable, ...] = (
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
)

MOBILENET_V1 = Family(
    name="mobilenet_v1",
    title="MobileNet V1",
    source=f"{V1}, Table 1",
    alphas=(1.0, 0.75, 0.5, 0.25),
    any_alpha=True,
    rounding="down",
    step=32,
    rows=V1_ROWS,
)

MOBILENET_V1_CONV = replace(
    MOBILENET_V1,
    name="mobilenet_v1_conv",
    title="MobileNet V1 with full convolutions",
    source=f"{V1}, Table 4",
    rows=tuple(Conv(row.channels, row.stride) for row in V1_ROWS),
)

MOBILENET_V1_SHALLOW = replace(
    MOBILENET_V1,
    name="mobilenet_v1_shallow",
    title="MobileNet V1 without rows 8 to 12",
    source=f"{V1}, Table 5",
    rows=V1_ROWS[:7] + V1_ROWS[12:],
)


def stage(channels: int, repeats: int, stride: int, expand: float) -> tuple[Bottleneck, ...]:
    """A line of V2's table: the first block has the stride, the others have 1."""
    first = Bottleneck(channels, stride, expand)
    return (first, *[replace(first, stride=1)] * (repeats - 1))


MOBILENET_V2 = Family(
    name="mobilenet_v2",
    title="MobileNet V2",
    source=f"{V2}, Table 2",
    alphas=(1.4, 1.3, 1.0, 0.75, 0.5, 0.35),
    rows=(
        Conv(32, stride=2),  # 1: [32, 112, 112]
        *stage(16, 1, stride=1, expand=1),  # 2: [16, 112, 112]
        *stage(24, 2, stride=2, expand=6),  # 3, 4: [24, 56, 56]
        *stage(32, 3, stride=2, expand=6),  # 5 to 7: [32, 28, 28]
        *stage(64, 4, stride=2, expand=6),  # 8 to 11: [64, 14, 14]
        *stage(96, 3, stride=1, expand=6),  # 12 to 14: [96, 14, 14]
        *stage(160, 3, stride=2, expand=6),  # 15 to 17: [160, 7, 7]
        *stage(320, 1, stride=1, expand=6),  # 18: [320, 7, 7]
        Conv(1280, kernel=1, width="widen"),  # 19: [1280, 7, 7]
    ),
)


def v3(channels: int, kernel: int, stride: int, expand: float, act: Act, se: bool) -> Bottleneck:
    """A line of V3's table, its columns in the order of the authors' code."""
    return Bottleneck(channels, stride, expand, kernel, act=act, squeeze=se)


def v3_head(units: int, act: Act = "hard_swish") -> tuple[Row, ...]:
    """Pooling, a hidden layer of ``units`` on one pixel (bias, no BatchNorm), the classifier."""
    hidden = Conv(units, kernel=1, act=act, norm=False, width="widen")
    return (GlobalPool(), hidden, Flatten(), Classifier())


RE: Act = "relu"
HS: Act = "hard_swish"

# The expansions are V3's "exp size" over the block's input, as the authors' code has them: at
# another alpha the ratio stays, not the size.
MOBILENET_V3_LARGE = Family(
    name="mobilenet_v3_large",
    title="MobileNet V3-Large",
    source=f"{V3}, Table 1",
    alphas=(1.25, 1.0, 0.75, 0.5, 0.35),
    rows=(
        Conv(16, stride=2, act=HS),  # 1: [16, 112, 112]
        v3(16, 3, 1, 1, RE, False),  # 2: [16, 112, 112]
        v3(24, 3, 2, 4, RE, False),  # 3: [24, 56, 56]
        v3(24, 3, 1, 3, RE, False),  # 4: [24, 56, 56]
        v3(40, 5, 2, 3, RE, True),  # 5: [40, 28, 28]
        v3(40, 5, 1, 3, RE, True),  # 6: [40, 28, 28]
        v3(40, 5, 1, 3, RE, True),  # 7: [40, 28, 28]
        v3(80, 3, 2, 6, HS, False),  # 8: [80, 14, 14]
        v3(80, 3, 1, 2.5, HS, False),  # 9: [80, 14, 14]
        v3(80, 3, 1, 184 / 80, HS, False),  # 10: [80, 14, 14]
        v3(80, 3, 1, 184 / 80, HS, False),  # 11: [80, 14, 14]
        v3(112, 3, 1, 6, HS, True),  # 12: [112, 14, 14]
        v3(112, 3, 1, 6, HS, True),  # 13: [112, 14, 14]
        v3(160, 5, 2, 6, HS, True),  # 14: [160, 7, 7]
        v3(160, 5, 1, 6, HS, True),  # 15: [160, 7, 7]
        v3(160, 5, 1, 6, HS, True),  # 16: [160, 7, 7]
        Conv(960, kernel=1, act=HS),  # 17: [960, 7, 7]
    ),
    head=v3_head(1280),  # 18: [1280, 1, 1]
)

MOBILENET_V3_SMALL = replace(
    MOBILENET_V3_LARGE,
    name="mobilenet_v3_small",
    title="MobileNet V3-Small",
    source=f"{V3}, Table 2",
    rows=(
        Conv(16, stride=2, act=HS),  # 1: [16, 112, 112]
        v3(16, 3, 2, 1, RE, True),  # 2: [16, 56, 56]
        v3(24, 3, 2, 72 / 16, RE, False),  # 3: [24, 28, 28]
        v3(24, 3, 1, 88 / 24, RE, False),  # 4: [24, 28, 28]
        v3(40, 5, 2, 4, HS, True),  # 5: [40, 14, 14]
        v3(40, 5, 1, 6, HS, True),  # 6: [40, 14, 14]
        v3(40, 5, 1, 6, HS, True),  # 7: [40, 14, 14]
        v3(48, 5, 1, 3, HS, True),  # 8: [48, 14, 14]
        v3(48, 5, 1, 3, HS, True),  # 9: [48, 14, 14]
        v3(96, 5, 2, 6, HS, True),  # 10: [96, 7, 7]
        v3(96, 5, 1, 6, HS, True),  # 11: [96, 7, 7]
        v3(96, 5, 1, 6, HS, True),  # 12: [96, 7, 7]
        Conv(576, kernel=1, act=HS),  # 13: [576, 7, 7]
    ),
    head=v3_head(1024),  # 14: [1024, 1, 1]
)


def minimalistic(row: Row) -> Row:
    """``row`` without squeeze and excitation, hard-swish and 5x5 convolution."""
    if isinstance(row, Bottleneck):
        return replace(row, kernel=3, act="relu", squeeze=False)
    return replace(row, act="relu") if isinstance(row, Conv) else row


def minimalistic_family(family: Family) -> Family:
    """The minimalistic form of ``family``, of the same dimensions."""
    return replace(
        family,
        name=f"{family.name}_minimalistic",
        title=f"{family.title} minimalistic",
        source="TF-slim mobilenet_v3.py",
        rows=tuple(map(minimalistic, family.rows)),
        head=tuple(map(minimalistic, family.head)),
    )


MOBILENET_V3_LARGE_MINIMALISTIC = minimalistic_family(MOBILENET_V3_LARGE)
MOBILENET_V3_SMALL_MINIMALISTIC = minimalistic_family(MOBILENET_V3_SMALL)


def uib(start: int, kernel: int, stride: int, channels: int, expand: float) -> Bottleneck:
    """A line of V4's table: a universal inverted bottleneck, its columns in the table's order."""
    return Bottleneck(channels, stride, expand, kernel, start, act="relu")


# V4's hidden layer has BatchNorm, no bias, also where it stands behind the pooling.
V4_HEAD = (
    GlobalPool(),
    Conv(1280, kernel=1, act="relu", width="widen"),
    Flatten(),
    Classifier(),
)

MOBILENET_V4_CONV_SMALL = Family(
    name="mobilenet_v4_conv_small",
    title="MobileNet V4-Conv-S",
    source=f"{V4}; TF Model Garden mobilenet.py",
    alphas=(1.0, 0.5, 0.35),  # below 1: timm
    rows=(
        Conv(32, stride=2, act="relu"),  # 1: [32, 112, 112]
        Conv(32, stride=2, act="relu"),  # 2: [32, 56, 56]
        Conv(32, kernel=1, act="relu"),  # 3: [32, 56, 56]
        Conv(96, stride=2, act="relu"),  # 4: [96, 28, 28]
        Conv(64, kernel=1, act="relu"),  # 5: [64, 28, 28]
        uib(5, 5, 2, 96, 3),  # 6: [96, 14, 14] ExtraDW
        uib(0, 3, 1, 96, 2),  # 7: [96, 14, 14] IB
        uib(0, 3, 1, 96, 2),  # 8: [96, 14, 14] IB
        uib(0, 3, 1, 96, 2),  # 9: [96, 14, 14] IB
        uib(0, 3, 1, 96, 2),  # 10: [96, 14, 14] IB
        uib(3, 0, 1, 96, 4),  # 11: [96, 14, 14] ConvNext
        uib(3, 3, 2, 128, 6),  # 12: [128, 7, 7] ExtraDW
        uib(5, 5, 1, 128, 4),  # 13: [128, 7, 7] ExtraDW
        uib(0, 5, 1, 128, 4),  # 14: [128, 7, 7] IB
        uib(0, 5, 1, 128, 3),  # 15: [128, 7, 7] IB
        uib(0, 3, 1, 128, 4),  # 16: [128, 7, 7] IB
        uib(0, 3, 1, 128, 4),  # 17: [128, 7, 7] IB
        Conv(960, kernel=1, act="relu"),  # 18: [960, 7, 7]
    ),
    head=V4_HEAD,  # 19: [1280, 1, 1]
)

MOBILENET_V4_CONV_MEDIUM = replace(
    MOBILENET_V4_CONV_SMALL,
    name="mobilenet_v4_conv_medium",
    title="MobileNet V4-Conv-M",
    alphas=(1.0,),
    resolution=256,
    rows=(
        Conv(32, stride=2, act="relu"),  # 1: [32, 128, 128]
        Fused(48, stride=2, expand=4),  # 2: [48, 64, 64]
        uib(3, 5, 2, 80, 4),  # 3: [80, 32, 32] ExtraDW
        uib(3, 3, 1, 80, 2),  # 4: [80, 32, 32] ExtraDW
        uib(3, 5, 2, 160, 6),  # 5: [160, 16, 16] ExtraDW
        uib(3, 3, 1, 160, 4),  # 6: [160, 16, 16] ExtraDW
        uib(3, 3, 1, 160, 4),  # 7: [160, 16, 16] ExtraDW
        uib(3, 5, 1, 160, 4),  # 8: [160, 16, 16] ExtraDW
        uib(3, 3, 1, 160, 4),  # 9: [160, 16, 16] ExtraDW
        uib(3, 0, 1, 160, 4),  # 10: [160, 16, 16] ConvNext
        uib(0, 0, 1, 160, 2),  # 11: [160, 16, 16] FFN
        uib(3, 0, 1, 160, 4),  # 12: [160, 16, 16] ConvNext
        uib(5, 5, 2, 256, 6),  # 13: [256, 8, 8] ExtraDW
        uib(5, 5, 1, 256, 4),  # 14: [256, 8, 8] ExtraDW
        uib(3, 5, 1, 256, 4),  # 15: [256, 8, 8] ExtraDW
        uib(3, 5, 1, 256, 4),  # 16: [256, 8, 8] ExtraDW
        uib(0, 0, 1, 256, 4),  # 17: [256, 8, 8] FFN
        uib(3, 0, 1, 256, 4),  # 18: [256, 8, 8] ConvNext
        uib(3, 5, 1, 256, 2),  # 19: [256, 8, 8] ExtraDW
        uib(5, 5, 1, 256, 4),  # 20: [256, 8, 8] ExtraDW
        uib(0, 0, 1, 256, 4),  # 21: [256, 8, 8] FFN
        uib(0, 0, 1, 256, 4),  # 22: [256, 8, 8] FFN
        uib(5, 0, 1, 256, 2),  # 23: [256, 8, 8] ConvNext
        Conv(960, kernel=1, act="relu"),  # 24: [960, 8, 8]
    ),
)
