"""What the papers print, as data."""

from __future__ import annotations

from dataclasses import dataclass

V1 = "arXiv 1704.04861"


@dataclass(frozen=True)
class Figure:
    """One printed row of ``table`` in ``V1``: Mult-Adds and parameters, in millions.

    ``decimals`` is how many the paper gives for the parameters.
    """

    table: str
    alpha: float
    resolution: int
    mult_adds_millions: int
    parameters_millions: float
    decimals: int = 1
    name: str = "mobilenet_v1"

    def agrees(self, mult_adds: int, parameters: int) -> bool:
        """Are counts within one unit of the last digit printed?

        Not closer: the paper takes the row of resolution 224 times (resolution / 224)**2 and
        so shrinks the dense layer too, which does not shrink (160: 290.2, counted 290.7).
        """
        return (
            abs(mult_adds / 1e6 - self.mult_adds_millions) < 1
            and abs(parameters / 1e6 - self.parameters_millions) < 10**-self.decimals
        )


FIGURES = (
    Figure("Table 6", 1.0, 224, 569, 4.2),
    Figure("Table 6", 0.75, 224, 325, 2.6),
    Figure("Table 6", 0.5, 224, 149, 1.3),
    Figure("Table 6", 0.25, 224, 41, 0.5),
    Figure("Table 7", 1.0, 192, 418, 4.2),
    Figure("Table 7", 1.0, 160, 290, 4.2),
    Figure("Table 7", 1.0, 128, 186, 4.2),
    Figure("Table 9", 0.5, 160, 76, 1.32, decimals=2),
)

# Table 2: percent of V1 1.0-224's Mult-Adds and parameters, by kind of layer. The paper prints
# 1.19 for the full convolution: a slip, as its column then ends at 99.29; 1.91 is right.
SHARES_PERCENT = {
    "pointwise": (94.86, 74.59),
    "depthwise": (3.06, 1.06),
    "conv": (1.91, 0.02),
    "dense": (0.18, 24.33),
}
