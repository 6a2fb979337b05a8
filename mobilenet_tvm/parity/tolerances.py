"""How far an output may be from the reference, as a share of max |reference| of that output."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

# By the dtype the network computes in, over the 27-60 layers of a MobileNet.
TOLERANCES: Final[dict[str, float]] = {
    # Exact arithmetic would need no tolerance at all; it covers rounding of the reference only.
    "float64": 1e-10,
    # Another order of summation gives 1e-7 to 1e-5; a wrong channel or bias gives 1e-2 and more.
    "float32": 1e-4,
    # 11 bits of significand (unit roundoff 4.9e-4), accumulated over the layers.
    "float16": 1e-2,
    # 8 bits of significand (unit roundoff 3.9e-3).
    "bfloat16": 5e-2,
    # One step of 255 may round the other way in each of a few layers; two steps at the output.
    "int8": 2 / 127,
    "uint8": 2 / 255,
}

# Integers that are counted or accumulated, not rounded, must be equal.
DEFAULT_TOLERANCE: Final = 0.0


def tolerance_for(dtypes: Iterable[str]) -> float:
    """The loosest tolerance of ``dtypes`` (numpy names), 0 for a dtype that does not round."""
    return max((TOLERANCES.get(dtype, DEFAULT_TOLERANCE) for dtype in dtypes), default=0.0)
