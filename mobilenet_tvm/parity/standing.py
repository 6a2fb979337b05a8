"""Who stands alone: the artifact and several references on one input, two by two."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

ARTIFACT = "artifact"


@dataclass(frozen=True)
class Distance:
    """max |first - second| as ``share`` of the scale; infinite where they cannot be compared."""

    first: str
    second: str
    share: float


@dataclass(frozen=True)
class Standing:
    """One output as the artifact and every reference have it.

    ``scale`` is max |output| of the deciding reference. ``alone`` is who differs from all the
    others while these agree within the tolerance, None where that is nobody. ``verdict`` says
    it in one line.
    """

    output: str
    scale: float
    distances: tuple[Distance, ...]
    alone: str | None
    verdict: str

    def __str__(self) -> str:
        pairs = ", ".join(f"{d.first}/{d.second} {d.share:.1e}" for d in self.distances)
        return f"{self.output}: {self.verdict} ({pairs} of max |reference|)"

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON; an infinite distance is None."""
        return {
            "output": self.output,
            "scale": self.scale,
            "alone": self.alone,
            "verdict": self.verdict,
            "distances": [
                {
                    "between": [d.first, d.second],
                    "share": d.share if math.isfinite(d.share) else None,
                }
                for d in self.distances
            ],
        }


def stand(output: str, parties: Mapping[str, Mapping[str, Array]], tolerance: float) -> Standing:
    """Compare ``output`` of every two of ``parties``: the artifact, then the references.

    All distances are shares of one scale, that of the second party: the deciding reference.
    """
    names = list(parties)
    values = {name: outputs.get(output) for name, outputs in parties.items()}
    scale = _scale(values[names[1]])
    distances = tuple(
        Distance(one, other, _share(values[one], values[other], scale))
        for one, other in itertools.combinations(names, 2)
    )
    alone = _alone(names, distances, tolerance)
    return Standing(output, scale, distances, alone, _verdict(names, distances, alone, tolerance))


def _scale(value: Array | None) -> float:
    if value is None:
        return 0.0
    finite = np.abs(value[np.isfinite(value)].astype(np.float64))
    return float(finite.max(initial=0.0))


def _share(one: Array | None, other: Array | None, scale: float) -> float:
    if one is None or other is None or one.shape != other.shape or one.dtype != other.dtype:
        return math.inf
    a, b = one.astype(np.float64), other.astype(np.float64)
    finite = np.isfinite(a) & np.isfinite(b)
    if not np.array_equal(a[~finite], b[~finite], equal_nan=True):
        return math.inf
    difference = float(np.abs(a[finite] - b[finite]).max(initial=0.0))
    if difference == 0:
        return 0.0
    return difference / scale if scale else math.inf


def _alone(names: Sequence[str], distances: Sequence[Distance], tolerance: float) -> str | None:
    for name in names:
        own = [d for d in distances if name in (d.first, d.second)]
        others = [d for d in distances if name not in (d.first, d.second)]
        if all(d.share > tolerance for d in own) and all(d.share <= tolerance for d in others):
            return name if others else None
    return None


def _verdict(
    names: Sequence[str], distances: Sequence[Distance], alone: str | None, tolerance: float
) -> str:
    if alone is not None:
        others = [_called(name) for name in names if name != alone]
        apart = max(d.share for d in distances if alone not in (d.first, d.second))
        return f"{_called(alone)} stands alone: {' and '.join(others)} agree to {apart:.0e}"
    near = [d for d in distances if d.share <= tolerance]
    if not near:
        return f"all {_COUNT.get(len(names), str(len(names)))} differ"
    if len(near) == len(distances):
        return "all agree within the tolerance"
    pairs = [f"{_called(d.first)} agrees with {_called(d.second)}" for d in near]
    return f"nobody stands alone: {', '.join(pairs)}"


_COUNT = {2: "two", 3: "three", 4: "four"}


def _called(name: str) -> str:
    return f"the {name}" if name == ARTIFACT else name
