"""The gate: does a module compute what its ONNX model computes, on random inputs and photos?"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mobilenet_tvm.build.manifest import Manifest, ParityInfo
from mobilenet_tvm.errors import UsageError
from mobilenet_tvm.parity.comparison import Comparison, OutputComparison, compare
from mobilenet_tvm.parity.inputs import Feed, photo_feed, random_feeds
from mobilenet_tvm.parity.references import Reference
from mobilenet_tvm.parity.tolerances import tolerance_for

Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class Case:
    """One input and what came of it.

    ``unrepeatable`` names the outputs that had other bits on a second run.
    """

    name: str
    is_photo: bool
    comparison: Comparison
    unrepeatable: tuple[str, ...] = ()

    @property
    def top1_equal(self) -> bool:
        """Whether every output of class scores has the reference's best class first."""
        return all(o.agreement is None or o.agreement.top1 == 1 for o in self.comparison.outputs)

    @property
    def failures(self) -> tuple[str, ...]:
        """Each thing wrong here, in words."""
        found = [
            f"output {o.name} of input {self.name} is off by {o.error:.1e} of max |reference| "
            f"(tolerance {o.tolerance:.1e}, would pass at {o.would_pass_at:.1e})"
            if o.problem is None
            else f"output {o.name} of input {self.name}: {o.problem}"
            for o in sorted(self.comparison.outputs, key=lambda o: -o.error)
            if not o
        ]
        if not self.comparison.outputs:
            found.append(f"input {self.name} has no output to compare")
        found += [
            f"output {name} of input {self.name} has other bits on a second run"
            for name in self.unrepeatable
        ]
        if self.is_photo and not self.top1_equal:
            found.append(f"the best class of photo {self.name} is not the reference's")
        return tuple(found)

    def __bool__(self) -> bool:
        return not self.failures


@dataclass(frozen=True)
class ParityResult:
    """Outcome of ``check``. Falsy when any input failed, or there was none."""

    reference: str
    tolerance: float
    cases: tuple[Case, ...]
    warnings: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.cases) and all(self.cases)

    @property
    def worst(self) -> tuple[Case, OutputComparison] | None:
        """The input and the output with the largest error, or None without any."""
        pairs = [(case, output) for case in self.cases for output in case.comparison.outputs]
        return max(pairs, key=lambda pair: pair[1].error, default=None)

    @property
    def would_pass_at(self) -> float:
        """The smallest tolerance at which every error passes; infinite when none does."""
        return max((case.comparison.would_pass_at for case in self.cases), default=math.inf)

    @property
    def failures(self) -> tuple[str, ...]:
        """All that is wrong, in words, the largest error first."""
        cases = sorted(self.cases, key=lambda case: -case.comparison.would_pass_at)
        return tuple(failure for case in cases for failure in case.failures)

    @property
    def photos(self) -> tuple[Case, ...]:
        """The photos among the inputs."""
        return tuple(case for case in self.cases if case.is_photo)

    def agreement(self, k: int) -> float | None:
        """Mean top-``k`` agreement, on the photos where there are any, else on all inputs.

        None where no output is one of class scores, or ``k`` was not looked at.
        """
        shares = [
            output.agreement.top1 if k == 1 else output.agreement.top_k
            for case in self.photos or self.cases
            for output in case.comparison.outputs
            if output.agreement is not None and k in (1, output.agreement.k)
        ]
        known = [share for share in shares if share is not None]
        return sum(known) / len(known) if known else None

    def summary(self) -> str:
        """One line: the verdict, and the worst error and where it is."""
        photos = len(self.photos)
        ran = f"{len(self.cases) - photos} random inputs and {photos} photos"
        if not self:
            first, *others = self.failures or ("nothing was compared",)
            more = f", and {len(others)} more" if others else ""
            return f"parity with {self.reference} failed on {ran}: {first}{more}"
        case, output = self.worst or (None, None)
        at = f", at {output.name} of {case.name}" if case and output else ""
        top1 = self.agreement(1)
        same = "" if top1 is None else f", top-1 agreement {top1:.2f}"
        return (
            f"parity with {self.reference} passed on {ran}: max error {self.would_pass_at:.1e} "
            f"of max |reference| (tolerance {self.tolerance:.1e}{at}){same}"
        )

    def info(self) -> ParityInfo:
        """What the manifest keeps."""
        return ParityInfo(
            passed=bool(self),
            reference=self.reference,
            tolerance=self.tolerance,
            # JSON has no infinity, and the manifest wants a number here.
            max_error=min(self.would_pass_at, sys.float_info.max),
            inputs=len(self.cases) - len(self.photos),
            images=len(self.photos),
            top1_agreement=self.agreement(1),
            top5_agreement=self.agreement(5),
        )

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON; a number that is NaN or infinite is None."""
        worst = self.worst
        return {
            "passed": bool(self),
            "summary": self.summary(),
            "reference": self.reference,
            "tolerance": self.tolerance,
            "would_pass_at": _number(self.would_pass_at),
            "worst": worst and {"input": worst[0].name, "output": worst[1].name},
            "top1_agreement": self.agreement(1),
            "failures": list(self.failures),
            "warnings": list(self.warnings),
            "cases": [
                {
                    "input": case.name,
                    "photo": case.is_photo,
                    "passed": bool(case),
                    "same_bits_on_second_run": not case.unrepeatable,
                    "outputs": [_output_as_dict(output) for output in case.comparison.outputs],
                }
                for case in self.cases
            ],
        }


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _output_as_dict(output: OutputComparison) -> dict[str, Any]:
    agreement = output.agreement
    return {
        "output": output.name,
        "passed": bool(output),
        "problem": output.problem,
        "shape": list(output.shape),
        "dtype": output.dtype,
        "error": _number(output.error),
        "absolute_error": _number(output.absolute_error),
        "relative_error": _number(output.relative_error),
        "scale": _number(output.scale),
        "cosine": _number(output.cosine),
        "nan": output.actual_non_finite.nan,
        "inf": output.actual_non_finite.inf,
        "reference_nan": output.reference_non_finite.nan,
        "reference_inf": output.reference_non_finite.inf,
        "probability_error": agreement and agreement.probability_error,
        "top1_agreement": agreement and agreement.top1,
        "top_k_agreement": agreement and agreement.top_k,
        "k": agreement and agreement.k,
    }


def check(
    run: Callable[[Feed], Arrays],
    manifest: Manifest,
    reference: Callable[[Feed], Arrays],
    *,
    inputs: int = 5,
    images: Sequence[Path] = (),
    tolerance: float | None = None,
    top_k: int = 5,
    seed: int = 0,
) -> ParityResult:
    """Run both on ``inputs`` random inputs and every photo, and compare all outputs.

    It passes when on every input max |error| <= ``tolerance`` * max |reference| for every
    output, a second run gives the same bits, and on every photo the best class is the
    reference's. ``tolerance`` is that of the outputs' dtypes where it is not given.

    Raises:
        UsageError: there is nothing to compare, or a photo cannot be the model's input.
    """
    if inputs + len(images) < 1:
        raise UsageError("parity needs an input: ask for random inputs or give photos")
    if tolerance is None:
        tolerance = tolerance_for(spec.dtype for spec in manifest.outputs)
    cases: list[Case] = []
    warnings: list[str] = []
    # Outputs whose reference has been the same, within the tolerance, on every input so far.
    unmoved: dict[str, NDArray[Any]] = {}
    for name, is_photo, feed in _feeds(manifest, inputs, images, seed):
        expected = reference(feed)
        # A module may hand out its own buffers: keep the first run's bits from the second.
        actual = {output: np.array(value) for output, value in run(feed).items()}
        again = run(feed)
        unrepeatable = tuple(o for o in actual if o not in again or _differ(actual[o], again[o]))
        comparison = compare(actual, expected, tolerance, top_k)
        unmoved = (
            {o: v for o, v in unmoved.items() if compare({o: expected[o]}, {o: v}, tolerance)}
            if cases
            else {o: np.array(v) for o, v in expected.items()}
        )
        cases.append(Case(name, is_photo, comparison, unrepeatable))
        warnings += [f"input {name}: {warning}" for warning in comparison.warnings]
    if len(cases) > 1:
        warnings += [
            f"{output}: the reference is the same on every input, so parity says nothing of the "
            "layers before it"
            for output in unmoved
        ]
    title = reference.name if isinstance(reference, Reference) else "a given function"
    return ParityResult(title, tolerance, tuple(cases), tuple(warnings))


def _feeds(
    manifest: Manifest, inputs: int, images: Sequence[Path], seed: int
) -> Iterator[tuple[str, bool, Feed]]:
    for name, feed in random_feeds(manifest.inputs, inputs, seed):
        yield name, False, feed
    for path in images:
        yield path.name, True, photo_feed(path, manifest)


def _differ(first: NDArray[Any], second: NDArray[Any]) -> bool:
    # Bits, not values: NaN equals itself here, and -0.0 is not 0.0.
    return first.tobytes() != np.asarray(second).tobytes()
