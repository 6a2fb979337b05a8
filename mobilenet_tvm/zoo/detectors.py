"""The detectors as data: a MobileNet, SSD's extra layers, heads on six feature maps.

After the papers and the authors' configurations (TensorFlow object detection API,
``ssd_mobilenet_v1_coco`` and ``ssdlite_mobilenet_v2_coco``): 91 scores a box (COCO's label
numbers go to 90, and the background), 3 anchors at each position of the first map and 6 of the
others. The shapes in comments are a row's outputs ``[C, H, W]`` at alpha 1 and resolution 300.
"""

from __future__ import annotations

from dataclasses import replace

from mobilenet_tvm.zoo.mobilenets import MOBILENET_V1, MOBILENET_V2, V1, V2
from mobilenet_tvm.zoo.rows import Bottleneck, Conv, Detector, Family, Features, Row, Separable

COCO_SCORES = 91


def extra(channels: int, *, separable: bool) -> tuple[Row, ...]:
    """One of SSD's extra stages: half the channels by 1x1, then a 3x3 convolution of stride 2.

    SSDLite's is ``separable``.
    """
    squeeze = Conv(channels // 2, kernel=1)
    if separable:
        return (squeeze, Separable(channels, stride=2), Features(6))
    return (squeeze, Conv(channels, stride=2), Features(6))


SSD_MOBILENET_V1 = replace(
    MOBILENET_V1,
    name="ssd_mobilenet_v1",
    title="SSD 300 on MobileNet V1",
    source=f"{V1}, Table 13",
    step=1,
    resolution=300,
    classes=COCO_SCORES,
    rows=(
        *MOBILENET_V1.rows[:12],  # 12: [512, 19, 19]
        Features(3),
        *MOBILENET_V1.rows[12:],  # 14: [1024, 10, 10]
        Features(6),
        *extra(512, separable=False),  # 15, 16: [512, 5, 5]
        *extra(256, separable=False),  # 17, 18: [256, 3, 3]
        *extra(256, separable=False),  # 19, 20: [256, 2, 2]
        *extra(128, separable=False),  # 21, 22: [128, 1, 1]
    ),
    head=(Detector(kernel=1),),
)


def on_v2() -> tuple[Row, ...]:
    """V2's rows with feature maps: the expansion of row 15, still at stride 16, and the end."""
    rows = list(MOBILENET_V2.rows)
    at_16 = rows[14]
    assert isinstance(at_16, Bottleneck)
    rows[14] = replace(at_16, anchors=3)  # 15: [160, 10, 10], its expansion [576, 19, 19]
    # The detectors' code thins the last layer too.
    rows[18] = Conv(1280, kernel=1)  # 19: [1280, 10, 10]
    return (*rows, Features(6))


SSD_MOBILENET_V2 = Family(
    name="ssd_mobilenet_v2",
    title="SSD 300 on MobileNet V2",
    source=f"{V2}, Table 5",
    alphas=MOBILENET_V2.alphas,
    resolution=300,
    classes=COCO_SCORES,
    rows=(
        *on_v2(),
        *extra(512, separable=False),  # 20, 21: [512, 5, 5]
        *extra(256, separable=False),  # 22, 23: [256, 3, 3]
        *extra(256, separable=False),  # 24, 25: [256, 2, 2]
        *extra(128, separable=False),  # 26, 27: [128, 1, 1]
    ),
    head=(Detector(kernel=3),),
)

SSDLITE_MOBILENET_V2 = replace(
    SSD_MOBILENET_V2,
    name="ssdlite_mobilenet_v2",
    title="SSDLite 320 on MobileNet V2",
    source=f"{V2}, section 6.2",
    resolution=320,
    rows=(
        *on_v2(),
        *extra(512, separable=True),  # 20, 21: [512, 5, 5]
        *extra(256, separable=True),  # 22, 23: [256, 3, 3]
        *extra(256, separable=True),  # 24, 25: [256, 2, 2]
        *extra(128, separable=True),  # 26, 27: [128, 1, 1]
    ),
    head=(Detector(kernel=3, separable=True),),
)
