"""Class scores: logits to probabilities, and the best classes."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Scores = NDArray[np.float64]

# A softmax in float16 adds up to 1 within this.
_SUM_TOLERANCE = 1e-3


def as_scores(output: NDArray[Any]) -> Scores | None:
    """``output`` as class scores ``[N, C] float64``, C > 1, or None where it is none.

    ``[N, C]`` and, as some exporters leave it, ``[N, C, 1, 1]`` are class scores.
    """
    if output.ndim < 2 or output.shape[0] == 0 or output.shape[1] < 2:
        return None
    if output.size != output.shape[0] * output.shape[1]:
        return None
    return output.reshape(output.shape[:2]).astype(np.float64)


def is_distribution(scores: Scores) -> bool:
    """Whether every row of ``[N, C]`` is a probability distribution already."""
    if not np.isfinite(scores).all() or (scores < 0).any():
        return False
    return bool((np.abs(scores.sum(axis=1) - 1) <= _SUM_TOLERANCE).all())


def softmax(scores: Scores) -> Scores:
    """Softmax of each row of ``[N, C]``."""
    exponentials = np.exp(scores - scores.max(axis=1, keepdims=True))
    return np.asarray(exponentials / exponentials.sum(axis=1, keepdims=True))


def probabilities(scores: Scores) -> Scores:
    """``scores`` where they are a distribution, else their softmax, ``[N, C]``."""
    return scores if is_distribution(scores) else softmax(scores)


def best(scores: Scores, k: int) -> NDArray[np.intp]:
    """Indices of the ``k`` best classes of each row, best first, ``[N, min(k, C)]``.

    Of equal scores the lower index comes first; NaN comes last.
    """
    return np.argsort(-scores, axis=1, kind="stable")[:, :k]
