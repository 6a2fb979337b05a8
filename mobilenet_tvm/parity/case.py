"""One input of a parity check: run on the artifact and the references, and what came of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mobilenet_tvm import cuda
from mobilenet_tvm.parity.comparison import Comparison, compare
from mobilenet_tvm.parity.kinds import MAY_OVERFLOW, Feed
from mobilenet_tvm.parity.references import Reference
from mobilenet_tvm.parity.standing import ARTIFACT, Standing, stand

Arrays = Mapping[str, NDArray[Any]]
Runner = Callable[[Feed], Arrays]

PHOTO = "photo"
NPZ = "npz"


@dataclass(frozen=True)
class Again:
    """One more run, which must give the same bits; ``how`` it runs, in words."""

    run: Runner
    how: str = "on a second run"


def again_of(module: object) -> Again | None:
    """How a loaded module is run again where that is not simply a second time: on the emulator
    with a block's threads in the other order."""
    from mobilenet_tvm.runtime.cuda import CudaModule

    if not isinstance(module, CudaModule) or not cuda.emulated():
        return None
    how = "with a block's threads in the other order (is a barrier missing?)"
    return Again(module.run_in_other_order, how)


@dataclass(frozen=True)
class Case:
    """One input and what came of it.

    ``unrepeatable`` names the outputs that had other bits ``again``. ``kind`` is one of
    ``kinds.KINDS``, ``npz`` or ``photo``. ``standings`` say who stands alone, an output on which
    the artifact and a reference differ each, where there are several references.
    """

    name: str
    is_photo: bool
    comparison: Comparison
    unrepeatable: tuple[str, ...] = ()
    kind: str = ""
    standings: tuple[Standing, ...] = ()
    again: str = "on a second run"

    @property
    def top1_equal(self) -> bool:
        """Whether every output of class scores has the reference's best class first."""
        return all(o.agreement is None or o.agreement.top1 == 1 for o in self.comparison.outputs)

    @property
    def near_tie(self) -> bool:
        """Whether the best class differs, and only where the reference is as good as undecided."""
        return not self.top1_equal and all(
            o.near_tie for o in self.comparison.outputs if o.disagreement is not None
        )

    @property
    def conclusive(self) -> bool:
        """Whether the reference can judge: not where an input meant to be huge overflows it."""
        return self.kind not in MAY_OVERFLOW or not any(
            o.reference_non_finite.nan or o.reference_non_finite.inf
            for o in self.comparison.outputs
        )

    @property
    def failures(self) -> tuple[str, ...]:
        """Each thing wrong here, in words."""
        found = [
            f"output {name} of input {self.name} has other bits {self.again}"
            for name in self.unrepeatable
        ]
        if not self.conclusive:
            return tuple(found)
        wrong = [
            f"output {o.name} of input {self.name} is off by {o.error:.1e} of max |reference| "
            f"(tolerance {o.tolerance:.1e}, would pass at {o.would_pass_at:.1e})"
            if o.problem is None
            else f"output {o.name} of input {self.name}: {o.problem}"
            for o in sorted(self.comparison.outputs, key=lambda o: -o.error)
            if not o
        ]
        if not self.comparison.outputs:
            wrong.append(f"input {self.name} has no output to compare")
        found = wrong + found
        if self.is_photo and not self.top1_equal and not self.near_tie:
            found.append(f"the best class of photo {self.name} is not the reference's")
        return tuple(found)

    @property
    def warnings(self) -> tuple[str, ...]:
        """Why a pass of this input would prove nothing, and where the references part."""
        found = [f"input {self.name}: {warning}" for warning in self.comparison.warnings]
        if not self.conclusive:
            found.append(
                f"input {self.name}: the reference overflows, so this input proves nothing and "
                "is not judged"
            )
        if not self.failures and self.conclusive:
            found += [f"input {self.name}: the references differ: {one}" for one in self.standings]
        return tuple(found)

    def __bool__(self) -> bool:
        return not self.failures

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON; a number that is NaN or infinite is None."""
        return {
            "input": self.name,
            "kind": self.kind,
            "photo": self.is_photo,
            "passed": bool(self),
            "conclusive": self.conclusive,
            "same_bits_on_second_run": not self.unrepeatable,
            "outputs": [output.as_dict() for output in self.comparison.outputs],
            "standings": [standing.as_dict() for standing in self.standings],
        }


@dataclass(frozen=True)
class Subject:
    """What is checked, against whom: ``reference`` decides, ``others`` are asked who is wrong."""

    run: Runner
    reference: Runner
    others: tuple[Reference, ...]
    tolerance: float
    top_k: int
    again: Again | None = None

    def examine(
        self, name: str, kind: str, feed: Feed, *, twice: bool = True, ask_always: bool = True
    ) -> tuple[Case, Arrays]:
        """Run ``feed`` on all and compare; also the deciding reference's outputs.

        ``twice`` runs it a second time (``again``), which must give the same bits; ``ask_always``
        asks the other references even where the artifact agrees with the first.
        """
        expected = self.reference(feed)
        once_more = self.again or Again(self.run)
        # A module may hand out its own buffers: keep the first run's bits from the second.
        actual = {output: np.array(value) for output, value in self.run(feed).items()}
        unrepeatable: tuple[str, ...] = ()
        if twice:
            second = once_more.run(feed)
            unrepeatable = tuple(
                o for o in actual if o not in second or _differ(actual[o], second[o])
            )
        comparison = compare(actual, expected, self.tolerance, self.top_k)
        case = Case(name, kind == PHOTO, comparison, unrepeatable, kind, again=once_more.how)
        differs = not comparison or (case.is_photo and not case.top1_equal)
        if self.others and (ask_always or differs):
            standings = self._standings(feed, actual, expected, comparison)
            case = dataclasses.replace(case, standings=standings)
        return case, expected

    def _standings(
        self, feed: Feed, actual: Arrays, expected: Arrays, comparison: Comparison
    ) -> tuple[Standing, ...]:
        """One for each output on which not all agree, or of another best class."""
        parties = {ARTIFACT: actual, reference_name(self.reference): expected}
        parties |= {other.short: other(feed) for other in self.others}
        told = []
        for output in comparison.outputs:
            standing = stand(output.name, parties, self.tolerance)
            apart = any(d.share > self.tolerance for d in standing.distances)
            if apart or output.disagreement is not None:
                told.append(standing)
        return tuple(told)


def reference_name(reference: Runner) -> str:
    """The short name of a reference, of any function."""
    return reference.short if isinstance(reference, Reference) else "reference"


def count_kinds(cases: Sequence[Case]) -> dict[str, int]:
    """How many inputs of each kind, photos and files left out."""
    found: dict[str, int] = {}
    for case in cases:
        if case.kind not in (PHOTO, NPZ, ""):
            found[case.kind] = found.get(case.kind, 0) + 1
    return found


def _differ(first: NDArray[Any], second: NDArray[Any]) -> bool:
    # Bits, not values: NaN equals itself here, and -0.0 is not 0.0.
    return first.tobytes() != np.asarray(second).tobytes()
