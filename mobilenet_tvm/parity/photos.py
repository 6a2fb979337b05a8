"""How the photos of a folder agree: counts, and the few photos that need a look, named."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from mobilenet_tvm.parity.agreement import Disagreement
from mobilenet_tvm.parity.case import Case

# Of each list so many photos are named; all are counted. A broken artifact differs on every one.
NAMED: Final = 1000


@dataclass(frozen=True)
class Unreadable:
    """A picture that could not be opened, and why."""

    photo: str
    reason: str


@dataclass(frozen=True)
class Confusion:
    """A photo of which the artifact says another best class than the reference.

    ``near_tie``: the reference is as good as undecided between the two (see ``comparison``).
    ``verdict`` says who stands alone, where several references were asked.
    """

    photo: str
    output: str
    classes: Disagreement
    near_tie: bool
    expected_label: str | None = None
    found_label: str | None = None
    verdict: str | None = None

    def __str__(self) -> str:
        one = self.classes
        expected = _called(one.expected, self.expected_label)
        found = _called(one.found, self.found_label)
        said = (
            f"{self.photo}: the reference says {expected} {one.expected_probability:.1%}, the "
            f"artifact {found} {one.found_probability:.1%}; the reference's margin is "
            f"{one.margin:.1e} of max |reference|{', a near tie' if self.near_tie else ''}"
        )
        return f"{said}; {self.verdict}" if self.verdict else said

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        one = self.classes
        return {
            "photo": self.photo,
            "output": self.output,
            "near_tie": self.near_tie,
            "margin": one.margin,
            "reference": {
                "class": one.expected,
                "label": self.expected_label,
                "score": one.expected_score,
                "probability": one.expected_probability,
            },
            "artifact": {
                "class": one.found,
                "label": self.found_label,
                "score": one.found_score,
                "probability": one.found_probability,
            },
            "verdict": self.verdict,
        }


@dataclass(frozen=True)
class PhotoAgreement:
    """All photos together. Falsy when one failed, or none could be compared.

    ``top1`` and ``top_k`` are means over the photos of models with class scores, else None.
    Lists hold the first ``NAMED`` by name; the counts are of all.
    """

    photos: int = 0
    failed: int = 0
    top1: float | None = None
    top_k: float | None = None
    k: int = 5
    disagreed: int = 0
    near_ties: int = 0
    unreadable_count: int = 0
    worst: Case | None = None
    confusions: tuple[Confusion, ...] = ()
    failed_cases: tuple[Case, ...] = ()
    warnings: tuple[str, ...] = ()
    unreadable: tuple[Unreadable, ...] = ()

    def __bool__(self) -> bool:
        return self.photos > 0 and self.failed == 0

    @property
    def failures(self) -> tuple[str, ...]:
        """What is wrong with the photos in ``failed_cases``, in words."""
        found = []
        for case in self.failed_cases:
            verdicts = "".join(f"; {standing}" for standing in case.standings)
            found += [failure + verdicts for failure in case.failures]
        return tuple(found)

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "compared": self.photos,
            "failed": self.failed,
            "failed_photos": [case.as_dict() for case in self.failed_cases],
            "top1_agreement": self.top1,
            "top_k_agreement": self.top_k,
            "k": self.k,
            "disagreed": self.disagreed,
            "near_ties": self.near_ties,
            "confusions": [one.as_dict() for one in self.confusions],
            "unreadable": self.unreadable_count,
            "unreadable_photos": [
                {"photo": one.photo, "reason": one.reason} for one in self.unreadable
            ],
        }


@dataclass
class PhotoTally:
    """Adds photos up as they come, in any order, in memory that does not grow with them."""

    labels: Sequence[str] | None = None
    top_k: int = 5
    photos: int = 0
    failed: int = 0
    disagreed: int = 0
    near_ties: int = 0
    unreadable_count: int = 0
    worst: Case | None = None
    _top1: float = 0.0
    _top_k: float = 0.0
    _scored: int = 0
    _ranked: int = 0
    _confusions: list[Confusion] = field(default_factory=list)
    _failed: list[Case] = field(default_factory=list)
    _warnings: list[str] = field(default_factory=list)
    _unreadable: list[Unreadable] = field(default_factory=list)

    def add(self, case: Case) -> None:
        """One photo more."""
        self.photos += 1
        self.failed += not case
        if self.worst is None or (
            case.comparison.would_pass_at > self.worst.comparison.would_pass_at
        ):
            self.worst = case
        for output in case.comparison.outputs:
            if output.agreement is not None:
                self._scored += 1
                self._top1 += output.agreement.top1
                if output.agreement.top_k is not None:
                    self._ranked += 1
                    self._top_k += output.agreement.top_k
        if not case.top1_equal:
            self.disagreed += 1
            self.near_ties += case.near_tie
            _keep(self._confusions, self._confused(case))
        if not case:
            _keep(self._failed, [case])
        _keep(self._warnings, case.warnings)

    def add_unreadable(self, one: Unreadable) -> None:
        """One picture that could not be opened."""
        self.unreadable_count += 1
        _keep(self._unreadable, [one])

    def result(self) -> PhotoAgreement:
        """What has come together."""
        return PhotoAgreement(
            photos=self.photos,
            failed=self.failed,
            top1=self._top1 / self._scored if self._scored else None,
            top_k=self._top_k / self._ranked if self._ranked else None,
            k=self.top_k,
            disagreed=self.disagreed,
            near_ties=self.near_ties,
            unreadable_count=self.unreadable_count,
            worst=self.worst,
            confusions=tuple(sorted(self._confusions, key=lambda one: one.photo)),
            failed_cases=tuple(sorted(self._failed, key=lambda case: case.name)),
            warnings=tuple(self._warnings),
            unreadable=tuple(sorted(self._unreadable, key=lambda one: one.photo)),
        )

    def _confused(self, case: Case) -> Iterable[Confusion]:
        verdicts = {one.output: one.verdict for one in case.standings}
        for output in case.comparison.outputs:
            if output.disagreement is not None:
                yield Confusion(
                    case.name,
                    output.name,
                    output.disagreement,
                    output.near_tie,
                    self._label(output.disagreement.expected),
                    self._label(output.disagreement.found),
                    verdicts.get(output.name),
                )

    def _label(self, index: int) -> str | None:
        return self.labels[index] if self.labels and index < len(self.labels) else None


def _keep(kept: list[Any], more: Iterable[Any]) -> None:
    kept.extend(list(more)[: max(0, NAMED - len(kept))])


def _called(index: int, label: str | None) -> str:
    return f"class {index}" if label is None else f"class {index} ({label})"
