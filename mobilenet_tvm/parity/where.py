"""Where a tensor is wrong: what its wrong elements have in common, in words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

_AXES = {4: ("image", "channel", "row", "column"), 2: ("image", "channel")}

# A channel whose differences vary by less than this share of their mean is shifted as a whole.
_CONSTANT = 1e-3
# Of fewer elements it may be chance.
_FEW = 4


def describe(actual: Array, expected: Array, tolerance: float) -> tuple[str, ...]:
    """Facts about the elements that differ by more than ``tolerance`` of max |expected|.

    Args:
        actual: ``[N, C, H, W]``, or any other shape.
        expected: of the same shape.
        tolerance: as a share of max |expected|.
    """
    a, r = actual.astype(np.float64), expected.astype(np.float64)
    scale = float(np.abs(r[np.isfinite(r)]).max(initial=0.0))
    with np.errstate(invalid="ignore"):
        wrong = ~(np.abs(a - r) <= tolerance * scale) & ~(np.isnan(a) & np.isnan(r))
    count = int(wrong.sum())
    if count == 0:
        return ()
    facts = [f"{count} of {wrong.size} elements are wrong"]
    nan = int((np.isnan(a) & ~np.isnan(r)).sum())
    if nan:
        facts.append(f"{nan} of them are NaN: never written, or computed from what never was")
    for axis, name in enumerate(_AXES.get(wrong.ndim, ())):
        others = tuple(other for other in range(wrong.ndim) if other != axis)
        hit = np.flatnonzero(wrong.any(axis=others))
        if len(hit) < wrong.shape[axis]:
            facts.append(f"only in {_plural(name, hit)} of {wrong.shape[axis]}")
    facts += _swapped(a, r, wrong, tolerance * scale)
    facts += _shifted(a, r, wrong)
    return tuple(facts)


def _plural(name: str, indices: Sequence[int] | NDArray[np.intp]) -> str:
    return f"{name}{'s' if len(indices) > 1 else ''} {_ranges(indices)}"


def _ranges(indices: Sequence[int] | NDArray[np.intp]) -> str:
    """Ascending numbers in short: ``0-3, 7, 12-15``; the first five ranges of many."""
    found: list[list[int]] = []
    for index in map(int, indices):
        if found and index == found[-1][1] + 1:
            found[-1][1] = index
        else:
            found.append([index, index])
    texts = [f"{low}" if low == high else f"{low}-{high}" for low, high in found]
    return ", ".join(texts[:5]) + (", ..." if len(texts) > 5 else "")


def _swapped(a: Array, r: Array, wrong: Array, limit: float) -> list[str]:
    """Channels that hold what others should."""
    if wrong.ndim < 2:
        return []
    others = tuple(axis for axis in range(wrong.ndim) if axis != 1)
    hit = np.flatnonzero(wrong.any(axis=others))
    if not 2 <= len(hit) <= 64:
        return []
    found = []
    for channel in hit:
        for other in hit:
            same = np.abs(a[:, channel] - r[:, other]).max() <= limit
            if channel != other and same and np.abs(r[:, other]).max() > 0:
                found.append(f"channel {channel} holds what belongs to channel {other}")
                break
    return found[:4]


def _shifted(a: Array, r: Array, wrong: Array) -> list[str]:
    """Channels that are wrong by a constant, as without a bias."""
    if wrong.ndim != 4 or not np.isfinite(a).all():
        return []
    hit = np.flatnonzero(wrong.any(axis=(0, 2, 3)))
    difference = (a - r)[:, hit]
    # Where neither side is cut off by an activation.
    shifts = []
    for place, channel in enumerate(hit):
        values = difference[:, place][wrong[:, channel]]
        if values.size < _FEW or values.std() > _CONSTANT * abs(values.mean()):
            return []
        shifts.append(values.mean())
    return ["every wrong channel is off by a constant, as without its bias"] if shifts else []
