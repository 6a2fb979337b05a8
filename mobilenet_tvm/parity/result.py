"""The outcome of a parity check: the verdict, in words, for the manifest and for JSON."""

from __future__ import annotations

import math
import sys
from collections import Counter
from dataclasses import dataclass
from typing import Any

import msgspec

from mobilenet_tvm.build.manifest import DeviceInfo, NpzInfo, ParityInfo
from mobilenet_tvm.parity.case import NPZ, Case, count_kinds
from mobilenet_tvm.parity.comparison import OutputComparison, finite_or_none
from mobilenet_tvm.parity.photos import PhotoAgreement, PhotoTally, Unreadable


@dataclass(frozen=True)
class ParityResult:
    """Outcome of ``check``. Falsy when any input failed, or there was none to judge.

    ``reference`` decided; ``references`` are all that ran. ``cases`` are the inputs one by one;
    of a large folder of photos, which are not among them, ``folder`` is the sum.
    ``unreadable`` are pictures that could not be opened: they make no verdict. ``device`` is the
    board that ran the artifact, None for this machine.
    """

    reference: str
    tolerance: float
    cases: tuple[Case, ...]
    warnings: tuple[str, ...] = ()
    references: tuple[str, ...] = ()
    seed: int | None = None
    npz: tuple[NpzInfo, ...] = ()
    labels: tuple[str, ...] | None = None
    unreadable: tuple[Unreadable, ...] = ()
    folder: PhotoAgreement | None = None
    device: DeviceInfo | None = None

    def __bool__(self) -> bool:
        if not all(self.cases) or (self.folder is not None and self.folder.failed):
            return False
        judged = any(case.conclusive for case in self.cases)
        return judged or bool(self.folder)

    @property
    def decided_by(self) -> str:
        """The deciding reference as ``RUNNERS`` calls it, without its version."""
        return self.reference.split(maxsplit=1)[0]

    @property
    def photo_agreement(self) -> PhotoAgreement:
        """All photos together."""
        if self.folder is not None:
            return self.folder
        ks = {o.agreement.k for c in self.photos for o in c.comparison.outputs if o.agreement}
        tally = PhotoTally(self.labels, max(ks, default=5))
        for case in self.photos:
            tally.add(case)
        for one in self.unreadable:
            tally.add_unreadable(one)
        return tally.result()

    @property
    def worst(self) -> tuple[Case, OutputComparison] | None:
        """The input and the output with the largest error, or None without any."""
        pairs = [(case, output) for case in self._judged for output in case.comparison.outputs]
        return max(pairs, key=lambda pair: pair[1].error, default=None)

    @property
    def would_pass_at(self) -> float:
        """The smallest tolerance at which every error passes; infinite when none does."""
        return max((case.comparison.would_pass_at for case in self._judged), default=math.inf)

    @property
    def failures(self) -> tuple[str, ...]:
        """All that is wrong, in words, the largest error first."""
        cases = sorted(self.cases, key=lambda case: -case.comparison.would_pass_at)
        found = tuple(failure for case in cases for failure in case.failures)
        return found if self.folder is None else (*found, *self.folder.failures)

    @property
    def photos(self) -> tuple[Case, ...]:
        """The photos among the inputs."""
        return tuple(case for case in self.cases if case.is_photo)

    @property
    def _judged(self) -> list[Case]:
        """Every input that the reference could judge; of a folder the worst."""
        judged = [case for case in self.cases if case.conclusive]
        if self.folder is not None and self.folder.worst is not None:
            judged.append(self.folder.worst)
        return judged

    def agreement(self, k: int) -> float | None:
        """Mean top-``k`` agreement, on the photos where there are any, else on all inputs.

        None where no output is one of class scores, or ``k`` was not looked at.
        """
        if self.folder is not None and self.folder.photos:
            if k == 1:
                return self.folder.top1
            return self.folder.top_k if k == self.folder.k else None
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
        photos = self.photo_agreement
        kinds = Counter(case.kind for case in self.cases)
        made_up = len(self.cases) - len(self.photos) - kinds[NPZ]
        ran = f"{made_up} random inputs"
        if kinds[NPZ]:
            ran += f", {kinds[NPZ]} npz file{'s' if kinds[NPZ] > 1 else ''}"
        ran += f" and {photos.photos} photos"
        if self.device is not None:
            ran += f", run on {self.device.cpu}"
        unread = ""
        if photos.unreadable_count:
            first = f" ({photos.unreadable[0].photo}{', ...' * (photos.unreadable_count > 1)})"
            unread = f"; {photos.unreadable_count} pictures cannot be read{first}"
        if not self:
            first, *others = self.failures or ("nothing was compared",)
            more = f", and {len(others)} more" if others else ""
            return f"parity with {self.reference} failed on {ran}: {first}{more}{unread}"
        case, output = self.worst or (None, None)
        at = f", at {output.name} of {case.name}" if case and output else ""
        top1 = self.agreement(1)
        same = "" if top1 is None else f", top-1 agreement {_share(top1)}"
        ties = f", {photos.near_ties} near ties" if photos.near_ties else ""
        return (
            f"parity with {self.reference} passed on {ran}: max error {self.would_pass_at:.1e} "
            f"of max |reference| (tolerance {self.tolerance:.1e}{at}){same}{ties}{unread}"
        )

    def info(self) -> ParityInfo:
        """What the manifest keeps."""
        photos, worst = self.photo_agreement, self.worst
        return ParityInfo(
            passed=bool(self),
            reference=self.reference,
            tolerance=self.tolerance,
            # JSON has no infinity, and the manifest wants a number here.
            max_error=min(self.would_pass_at, sys.float_info.max),
            inputs=sum(not case.is_photo and case.kind != NPZ for case in self.cases),
            images=photos.photos,
            top1_agreement=self.agreement(1),
            top5_agreement=self.agreement(5),
            references=self.references or (self.reference,),
            kinds=count_kinds(self.cases),
            seed=self.seed,
            npz=self.npz,
            near_ties=photos.near_ties,
            unreadable=photos.unreadable_count,
            worst=worst and worst[0].name,
            device=self.device,
        )

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON; a number that is NaN or infinite is None."""
        worst, photos = self.worst, self.photo_agreement
        return {
            "passed": bool(self),
            "summary": self.summary(),
            "reference": self.reference,
            "references": list(self.references or (self.reference,)),
            "tolerance": self.tolerance,
            "would_pass_at": finite_or_none(self.would_pass_at),
            "worst": worst and {"input": worst[0].name, "output": worst[1].name},
            "top1_agreement": self.agreement(1),
            "device": self.device and msgspec.to_builtins(self.device),
            "seed": self.seed,
            "kinds": count_kinds(self.cases),
            "npz": [{"name": one.name, "digest": one.digest} for one in self.npz],
            "failures": list(self.failures),
            "warnings": list(self.warnings),
            "photos": photos.as_dict(),
            "cases": [case.as_dict() for case in self.cases],
        }


def _share(value: float) -> str:
    """``0.9998`` is not ``1.00``."""
    return f"{value:.2f}" if value in (0, 1) or 0.005 <= value <= 0.995 else f"{value:.6f}"
