"""Networks that V1's paper compares itself with, as data: for costs and speed, not for use.

Their convolutions have biases in place of BatchNorm. The shapes in comments are a row's outputs
``[C, H, W]`` at the network's own resolution.
"""

from __future__ import annotations

from mobilenet_tvm.zoo.rows import (
    CLASSES,
    Branches,
    Classifier,
    Conv,
    Dense,
    Family,
    Flatten,
    GlobalPool,
    Lrn,
    Pad,
    Pool,
    Row,
)


def conv(
    channels: int,
    kernel: int,
    stride: int = 1,
    pad: Pad = "same",
    groups: int = 1,
    name: str = "",
) -> Conv:
    """Convolution, bias, ReLU."""
    return Conv(channels, stride, kernel, "relu", norm=False, pad=pad, groups=groups, name=name)


def inception(
    name: str, one: int, reduce3: int, three: int, reduce5: int, five: int, pooled: int
) -> Branches:
    """A line of GoogLeNet's table, its columns in the table's order."""
    return Branches(
        f"inception_{name}",
        (
            (conv(one, 1, name="1x1"),),
            (conv(reduce3, 1, name="3x3_reduce"), conv(three, 3, name="3x3")),
            (conv(reduce5, 1, name="5x5_reduce"), conv(five, 5, name="5x5")),
            (Pool(3, 1), conv(pooled, 1, name="pool_proj")),
        ),
    )


def fire(number: int, squeeze: int, expand: int) -> tuple[Row, ...]:
    """A Fire module: 1x1 to ``squeeze``, then 1x1 and 3x3 to ``expand`` each, side by side."""
    name = f"fire{number}"
    return (
        conv(squeeze, 1, name=f"{name}/squeeze1x1"),
        Branches(
            name,
            ((conv(expand, 1, name="expand1x1"),), (conv(expand, 3, name="expand3x3"),)),
        ),
    )


ALEXNET = Family(
    name="alexnet",
    title="AlexNet",
    source="Krizhevsky et al., NIPS 2012, section 3.5",
    # The paper says 224, with which its own 55x55 does not come out; 227 does.
    resolution=227,
    least_resolution=67,
    rows=(
        conv(96, 11, stride=4, pad="valid"),  # 1: [96, 55, 55]
        Lrn(5, alpha=5e-4, beta=0.75, bias=2.0),  # ONNX divides alpha by the size: the paper's 1e-4
        Pool(3, 2, "valid"),  # [96, 27, 27]
        conv(256, 5, groups=2),  # 2: [256, 27, 27]
        Lrn(5, alpha=5e-4, beta=0.75, bias=2.0),
        Pool(3, 2, "valid"),  # [256, 13, 13]
        conv(384, 3),  # 3: [384, 13, 13]
        conv(384, 3, groups=2),  # 4: [384, 13, 13]
        conv(256, 3, groups=2),  # 5: [256, 13, 13]
        Pool(3, 2, "valid"),  # [256, 6, 6]
        Dense(4096),  # 6: [4096]
        Dense(4096),  # 7: [4096]
    ),
    head=(Classifier(),),
)

VGG16 = Family(
    name="vgg16",
    title="VGG-16",
    source="arXiv 1409.1556, Table 1, configuration D",
    rows=(
        conv(64, 3),  # 1: [64, 224, 224]
        conv(64, 3),  # 2: [64, 224, 224]
        Pool(2, 2, "valid"),  # [64, 112, 112]
        conv(128, 3),  # 3: [128, 112, 112]
        conv(128, 3),  # 4: [128, 112, 112]
        Pool(2, 2, "valid"),  # [128, 56, 56]
        conv(256, 3),  # 5: [256, 56, 56]
        conv(256, 3),  # 6: [256, 56, 56]
        conv(256, 3),  # 7: [256, 56, 56]
        Pool(2, 2, "valid"),  # [256, 28, 28]
        conv(512, 3),  # 8: [512, 28, 28]
        conv(512, 3),  # 9: [512, 28, 28]
        conv(512, 3),  # 10: [512, 28, 28]
        Pool(2, 2, "valid"),  # [512, 14, 14]
        conv(512, 3),  # 11: [512, 14, 14]
        conv(512, 3),  # 12: [512, 14, 14]
        conv(512, 3),  # 13: [512, 14, 14]
        Pool(2, 2, "valid"),  # [512, 7, 7]
        Dense(4096),  # 14: [4096]
        Dense(4096),  # 15: [4096]
    ),
    head=(Classifier(),),
)

GOOGLENET = Family(
    name="googlenet",
    title="GoogLeNet, without its auxiliary classifiers",
    source="arXiv 1409.4842, Table 1",
    rows=(
        conv(64, 7, stride=2),  # 1: [64, 112, 112]
        Pool(3, 2),  # [64, 56, 56]
        Lrn(5, alpha=1e-4, beta=0.75, bias=1.0),
        conv(64, 1),  # 2: [64, 56, 56]
        conv(192, 3),  # 3: [192, 56, 56]
        Lrn(5, alpha=1e-4, beta=0.75, bias=1.0),
        Pool(3, 2),  # [192, 28, 28]
        inception("3a", 64, 96, 128, 16, 32, 32),  # [256, 28, 28]
        inception("3b", 128, 128, 192, 32, 96, 64),  # [480, 28, 28]
        Pool(3, 2),  # [480, 14, 14]
        inception("4a", 192, 96, 208, 16, 48, 64),  # [512, 14, 14]
        inception("4b", 160, 112, 224, 24, 64, 64),  # [512, 14, 14]
        inception("4c", 128, 128, 256, 24, 64, 64),  # [512, 14, 14]
        inception("4d", 112, 144, 288, 32, 64, 64),  # [528, 14, 14]
        inception("4e", 256, 160, 320, 32, 128, 128),  # [832, 14, 14]
        Pool(3, 2),  # [832, 7, 7]
        inception("5a", 256, 160, 320, 32, 128, 128),  # [832, 7, 7]
        inception("5b", 384, 192, 384, 48, 128, 128),  # [1024, 7, 7]
    ),
)

SQUEEZENET = Family(
    name="squeezenet",
    title="SqueezeNet 1.0",
    source="arXiv 1602.07360, Table 1",
    # The paper says 224, with which its own 111x111 does not come out; 227 does.
    resolution=227,
    least_resolution=35,
    rows=(
        conv(96, 7, stride=2, pad="valid"),  # 1: [96, 111, 111]
        Pool(3, 2, "valid"),  # [96, 55, 55]
        *fire(2, 16, 64),  # [128, 55, 55]
        *fire(3, 16, 64),  # [128, 55, 55]
        *fire(4, 32, 128),  # [256, 55, 55]
        Pool(3, 2, "valid"),  # [256, 27, 27]
        *fire(5, 32, 128),  # [256, 27, 27]
        *fire(6, 48, 192),  # [384, 27, 27]
        *fire(7, 48, 192),  # [384, 27, 27]
        *fire(8, 64, 256),  # [512, 27, 27]
        Pool(3, 2, "valid"),  # [512, 13, 13]
        *fire(9, 64, 256),  # [512, 13, 13]
        conv(CLASSES, 1, name="conv10"),  # [1000, 13, 13]
    ),
    head=(GlobalPool(), Flatten()),
)
