"""Two sets of outputs side by side: how far apart, and is it near enough.

After Polygraphy's ``Comparator``: the result is falsy when it fails and carries the tolerance
that would have passed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mobilenet_tvm.parity.agreement import Agreement, Disagreement, agree
from mobilenet_tvm.parity.tolerances import TOLERANCES, tolerance_for

Array = NDArray[Any]


@dataclass(frozen=True)
class NonFinite:
    """How many elements of an array are no numbers."""

    nan: int = 0
    inf: int = 0


@dataclass(frozen=True)
class OutputComparison:
    """One output against its reference. Falsy when it fails.

    ``error`` is max |actual - reference| over ``scale`` = max |reference|, and so the tolerance
    that would have passed; it is infinite where no tolerance would: then ``problem`` says why.
    ``relative_error`` is the largest elementwise one. Numbers that cannot be had are NaN.
    ``warning`` says why a pass would prove nothing.
    """

    name: str
    tolerance: float
    shape: tuple[int, ...] = ()
    dtype: str = ""
    error: float = math.inf
    absolute_error: float = math.nan
    relative_error: float = math.nan
    scale: float = math.nan
    cosine: float = math.nan
    actual_non_finite: NonFinite = NonFinite()
    reference_non_finite: NonFinite = NonFinite()
    agreement: Agreement | None = None
    problem: str | None = None
    warning: str | None = None

    def __bool__(self) -> bool:
        return self.problem is None and self.error <= self.tolerance

    @property
    def would_pass_at(self) -> float:
        """The smallest tolerance that passes; infinite when none does."""
        return self.error

    @property
    def disagreement(self) -> Disagreement | None:
        """Another best class than the reference's."""
        return None if self.agreement is None else self.agreement.disagreement

    @property
    def near_tie(self) -> bool:
        """Whether the best class differs, and the reference is as good as undecided.

        Two classes nearer than twice the dtype's tolerance may change places in two results
        that each are within it. A wider ``tolerance`` asked for excuses no more than that.
        """
        window = 2 * min(self.tolerance, tolerance_for([self.dtype]))
        return self.disagreement is not None and self.disagreement.margin <= window

    def __str__(self) -> str:
        start = f"{'ok  ' if self else 'FAIL'} {self.name}"
        if self.problem is not None:
            return f"{start}: {self.problem}"
        line = (
            f"{start} {list(self.shape)} {self.dtype}: max error {self.error:.1e} of scale "
            f"{self.scale:.3g} (tolerance {self.tolerance:.1e}), absolute "
            f"{self.absolute_error:.1e}, relative {self.relative_error:.1e}, "
            f"cosine {self.cosine:.6f}"
        )
        if self.agreement is not None:
            line += f", probabilities {self.agreement.probability_error:.1e}"
            line += f", top-1 {self.agreement.top1:.2f}"
            if self.agreement.top_k is not None:
                line += f", top-{self.agreement.k} {self.agreement.top_k:.2f}"
        if not self:
            line += f"; would pass at {self.would_pass_at:.1e}"
        return f"{line} [{self.warning}]" if self.warning else line

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON; a number that is NaN or infinite is None."""
        agreement = self.agreement
        return {
            "output": self.name,
            "passed": bool(self),
            "problem": self.problem,
            "shape": list(self.shape),
            "dtype": self.dtype,
            "error": finite_or_none(self.error),
            "absolute_error": finite_or_none(self.absolute_error),
            "relative_error": finite_or_none(self.relative_error),
            "scale": finite_or_none(self.scale),
            "cosine": finite_or_none(self.cosine),
            "nan": self.actual_non_finite.nan,
            "inf": self.actual_non_finite.inf,
            "reference_nan": self.reference_non_finite.nan,
            "reference_inf": self.reference_non_finite.inf,
            "probability_error": agreement and agreement.probability_error,
            "top1_agreement": agreement and agreement.top1,
            "top_k_agreement": agreement and agreement.top_k,
            "k": agreement and agreement.k,
            "near_tie": self.near_tie,
        }


@dataclass(frozen=True)
class Comparison:
    """All outputs against their references. Falsy when one fails, or when there are none."""

    outputs: tuple[OutputComparison, ...]
    tolerance: float

    def __bool__(self) -> bool:
        return bool(self.outputs) and all(self.outputs)

    @property
    def would_pass_at(self) -> float:
        """The smallest tolerance at which every output passes; infinite when none does."""
        return max((output.would_pass_at for output in self.outputs), default=math.inf)

    @property
    def warnings(self) -> tuple[str, ...]:
        """Why a pass would prove nothing, an output at a time."""
        return tuple(f"{o.name}: {o.warning}" for o in self.outputs if o.warning)

    def __str__(self) -> str:
        return "\n".join(map(str, self.outputs)) or "FAIL there are no outputs to compare"


def compare(
    actual: Mapping[str, Array],
    reference: Mapping[str, Array],
    tolerance: float = TOLERANCES["float32"],
    top_k: int = 5,
) -> Comparison:
    """Compare every output of ``reference`` with the one of the same name in ``actual``.

    An output passes when max |error| <= ``tolerance`` * max |reference|. A missing or extra
    output, another shape or dtype, and a NaN or infinity that the reference has not in the
    same place fail at any tolerance. Where the whole reference is subnormal, subnormal numbers
    and zero are equal: a CPU may flush them.
    """
    outputs = [
        _compare_output(name, actual[name], expected, tolerance, top_k)
        if name in actual
        else OutputComparison(name, tolerance, problem="missing from the actual outputs")
        for name, expected in reference.items()
    ]
    outputs += [
        OutputComparison(name, tolerance, problem="not an output of the reference")
        for name in actual
        if name not in reference
    ]
    return Comparison(tuple(outputs), tolerance)


def _compare_output(
    name: str, actual: Array, reference: Array, tolerance: float, top_k: int
) -> OutputComparison:
    if actual.shape != reference.shape:
        problem = f"shape {list(actual.shape)}, the reference has {list(reference.shape)}"
        return OutputComparison(name, tolerance, problem=problem)
    if actual.dtype != reference.dtype:
        problem = f"dtype {actual.dtype}, the reference has {reference.dtype}"
        return OutputComparison(name, tolerance, problem=problem)

    # Differences of float32 values are exact in float64.
    a, r = actual.astype(np.float64), reference.astype(np.float64)
    finite = np.isfinite(a) & np.isfinite(r)
    in_place = np.array_equal(a[~finite], r[~finite], equal_nan=True)
    smallest = float(np.finfo(reference.dtype).tiny) if reference.dtype.kind == "f" else 0.0
    scale, absolute, error, relative, cosine = _errors(a[finite], r[finite], smallest)
    a_count, r_count = _non_finite(a), _non_finite(r)
    misplaced = (
        f"{a_count.nan} NaN and {a_count.inf} Inf of {a.size} elements, the reference has "
        f"{r_count.nan} and {r_count.inf}, or has them elsewhere"
    )
    return OutputComparison(
        name=name,
        tolerance=tolerance,
        shape=reference.shape,
        dtype=str(reference.dtype),
        error=error if in_place else math.inf,
        absolute_error=absolute,
        relative_error=relative,
        scale=scale,
        cosine=cosine,
        actual_non_finite=a_count,
        reference_non_finite=r_count,
        agreement=agree(a, r, top_k) if finite.all() else None,
        problem=None if in_place else misplaced,
        warning=_says_nothing(r[np.isfinite(r)], reference.size, tolerance, smallest),
    )


def finite_or_none(value: float) -> float | None:
    """``value`` as JSON can have it: None where it is NaN or infinite."""
    return value if math.isfinite(value) else None


def _non_finite(values: Array) -> NonFinite:
    return NonFinite(int(np.isnan(values).sum()), int(np.isinf(values).sum()))


def _errors(a: Array, r: Array, smallest: float) -> tuple[float, float, float, float, float]:
    """Scale, max absolute error, error of the scale, max relative error and cosine.

    ``smallest`` is the smallest normal number of the dtype.
    """
    if a.size == 0:
        return 0.0, 0.0, 0.0, 0.0, 1.0
    difference = np.abs(a - r)
    absolute = float(difference.max())
    scale = float(np.abs(r).max())
    wrong = difference > 0
    with np.errstate(divide="ignore", over="ignore"):
        relative = float((difference[wrong] / np.abs(r[wrong])).max(initial=0.0))
        error = float(np.divide(absolute, scale)) if absolute else 0.0
    if scale < smallest and absolute < smallest:
        error = 0.0
    norms = float(np.linalg.norm(a) * np.linalg.norm(r))
    cosine = float(np.vdot(a, r)) / norms if norms else float(absolute == 0)
    return scale, absolute, error, relative, cosine


def _says_nothing(finite: Array, size: int, tolerance: float, smallest: float) -> str | None:
    """Why agreement with this reference would prove nothing, or None."""
    if finite.size == 0:
        return "says nothing: the reference has no finite element"
    low, high = float(finite.min()), float(finite.max())
    scale = max(abs(low), abs(high))
    if scale == 0:
        return "says nothing: the reference is all zero"
    if scale < smallest:
        return "says nothing: the reference is all subnormal numbers, which a CPU may flush to zero"
    # Then the mean of the two passes everywhere, whatever the network computes.
    if size > 1 and high - low <= 2 * tolerance * scale:
        return "says nothing: the reference is one constant, which passes by itself"
    return None
