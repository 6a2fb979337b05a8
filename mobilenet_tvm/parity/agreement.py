"""Agreement of class scores: the same best class, the same ``k`` best, as good as undecided."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mobilenet_tvm.parity.scores import (
    Scores,
    as_scores,
    best,
    is_distribution,
    probabilities,
    softmax,
)


@dataclass(frozen=True)
class Disagreement:
    """Another best class than the reference's, in the row where that weighs the most.

    ``expected`` is the reference's class with the reference's score and probability, ``found``
    the actual one with the actual ones. ``margin`` is by how much the reference prefers its own
    class to the one found, as a share of max |reference|.
    """

    expected: int
    found: int
    expected_score: float
    found_score: float
    expected_probability: float
    found_probability: float
    margin: float


@dataclass(frozen=True)
class Agreement:
    """Agreement of class scores ``[N, C]``, each a share of 0 to 1.

    ``top1`` is the share of rows whose best class is the same (any of them where the reference
    has several equal ones); ``top_k`` the share of the reference's ``k`` best classes found
    among the actual ``k`` best, None where there are no more than ``k`` classes.
    ``probability_error`` is the max |error| of the softmax, of the scores themselves where they
    are probabilities already. ``disagreement`` is there where ``top1`` is not 1.
    """

    top1: float
    top_k: float | None
    k: int
    probability_error: float
    disagreement: Disagreement | None = None


def agree(a: NDArray[Any], r: NDArray[Any], k: int) -> Agreement | None:
    """How the class scores ``a`` agree with the reference's ``r``; None where they are none."""
    actual, reference = as_scores(a), as_scores(r)
    if actual is None or reference is None:
        return None
    first = best(actual, 1)
    top1 = np.take_along_axis(reference, first, axis=1)[:, 0] == reference.max(axis=1)
    share = None
    if reference.shape[1] > k:
        rows = zip(best(actual, k), best(reference, k), strict=True)
        share = float(np.mean([len(np.intersect1d(mine, theirs)) / k for mine, theirs in rows]))
    disagreement = _disagreement(actual, reference)
    if not is_distribution(reference):
        actual, reference = softmax(actual), softmax(reference)
    return Agreement(
        top1=float(top1.mean()),
        top_k=share,
        k=k,
        probability_error=float(np.abs(actual - reference).max()),
        disagreement=disagreement,
    )


def _disagreement(actual: Scores, reference: Scores) -> Disagreement | None:
    """Where ``[N, C]`` have another best class: the row of the largest margin."""
    rows = np.arange(len(reference))
    found, expected = best(actual, 1)[:, 0], best(reference, 1)[:, 0]
    margins = reference[rows, expected] - reference[rows, found]
    row = int(margins.argmax())
    if margins[row] <= 0:  # of equal scores any is the best
        return None
    chances = probabilities(actual)[row], probabilities(reference)[row]
    mine, theirs = int(found[row]), int(expected[row])
    return Disagreement(
        expected=theirs,
        found=mine,
        expected_score=float(reference[row, theirs]),
        found_score=float(actual[row, mine]),
        expected_probability=float(chances[1][theirs]),
        found_probability=float(chances[0][mine]),
        margin=float(margins[row] / np.abs(reference).max()),
    )
