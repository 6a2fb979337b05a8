"""The registry: every network of the zoo, by name.

A network is a layer table (``rows`` has its kinds of rows): ``mobilenets``, ``detectors`` on
them, and the networks they are compared with (``comparison``). A new one is a new table, and a
new kind of row where its blocks differ.
"""

from __future__ import annotations

from mobilenet_tvm.zoo import comparison, detectors, mobilenets
from mobilenet_tvm.zoo.mobilenets import MOBILENET_V1
from mobilenet_tvm.zoo.rows import scale_channels

__all__ = ["FAMILIES", "MOBILENET_V1", "scale_channels"]

FAMILIES = {
    family.name: family
    for family in (
        mobilenets.MOBILENET_V1,
        mobilenets.MOBILENET_V1_CONV,
        mobilenets.MOBILENET_V1_SHALLOW,
        mobilenets.MOBILENET_V2,
        mobilenets.MOBILENET_V3_LARGE,
        mobilenets.MOBILENET_V3_SMALL,
        mobilenets.MOBILENET_V3_LARGE_MINIMALISTIC,
        mobilenets.MOBILENET_V3_SMALL_MINIMALISTIC,
        mobilenets.MOBILENET_V4_CONV_SMALL,
        mobilenets.MOBILENET_V4_CONV_MEDIUM,
        detectors.SSD_MOBILENET_V1,
        detectors.SSD_MOBILENET_V2,
        detectors.SSDLITE_MOBILENET_V2,
        comparison.GOOGLENET,
        comparison.VGG16,
        comparison.SQUEEZENET,
        comparison.ALEXNET,
    )
}
