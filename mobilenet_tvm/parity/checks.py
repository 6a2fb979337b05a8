"""The checks of one artifact one by one, as a test runner reports them.

``check_artifact`` gives one verdict and marks the manifest; here each check is a call of its
own that returns or raises, and no file is written.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from mobilenet_tvm.build.manifest import Manifest
from mobilenet_tvm.errors import CheckFailedError, UsageError
from mobilenet_tvm.parity.comparison import Comparison, compare
from mobilenet_tvm.parity.gate import ParityResult, check
from mobilenet_tvm.parity.inputs import shapes_of
from mobilenet_tvm.parity.references import RUNNERS, Reference, reference_onnx
from mobilenet_tvm.parity.tolerances import tolerance_for
from mobilenet_tvm.runtime import Module, load, verify_checked, verify_file, verify_machine


class ParityFailedError(CheckFailedError):
    """The one line of ``result``'s summary; ``result`` has the figures."""

    def __init__(self, result: ParityResult) -> None:
        super().__init__(result.summary())
        self.result = result


@dataclass(frozen=True)
class Subject:
    """An artifact, what it is compared with, and how near it must be.

    ``onnx`` are files of which one must be the artifact's model, by digest; with none the model
    is looked for where the manifest says. ``tolerance`` is a share of max |reference| of an
    output, None for that of the outputs' dtypes. Every check raises a ``UsageError`` where the
    artifact or its model cannot be used, and its subclass ``ForeignArtifactError`` where only
    this machine cannot run it.
    """

    path: Path
    onnx: tuple[Path, ...] = ()
    reference: str = "onnxruntime"
    tolerance: float | None = None

    @functools.cached_property
    def manifest(self) -> Manifest:
        """The manifest, whose digest fits the file."""
        return verify_file(self.path)

    @functools.cached_property
    def module(self) -> Module:
        """The artifact, loaded."""
        return load(self.path)

    @functools.cached_property
    def runner(self) -> Reference:
        """Who computes the right answer."""
        return RUNNERS[self.reference](self._onnx_bytes(), shapes_of(self.manifest))

    def _onnx_bytes(self) -> bytes:
        if not self.onnx:
            return reference_onnx(self.manifest)
        for path in self.onnx:
            try:
                return reference_onnx(self.manifest, path)
            except UsageError as error:
                first = error
                if len(self.onnx) == 1:
                    raise
        raise UsageError(
            f"none of {', '.join(map(str, self.onnx))} is the model that {self.manifest.name} was "
            f"made from ({first})"
        )

    def check_machine(self) -> None:
        """This machine has the architecture and the CPU features that the artifact needs."""
        verify_machine(self.path, self.manifest)

    def check_mark(self) -> None:
        """The manifest says that a parity check passed.

        Raises:
            CheckFailedError: it was never checked, or failed.
        """
        verify_checked(self.path, self.manifest)

    def check_input(self, seed: int) -> ParityResult:
        """Parity on the first random input of ``seed``: uniform in [-1, 1].

        Raises:
            ParityFailedError: an output is too far off.
        """
        result = check(
            self.module.run,
            self.manifest,
            self.runner,
            inputs=1,
            seed=seed,
            tolerance=self.tolerance,
        )
        # Each seed's first input has the number 0 there.
        cases = tuple(replace(case, name=f"uniform {seed}") for case in result.cases)
        return self._passed(replace(result, cases=cases))

    def check_photo(self, photo: Path) -> ParityResult:
        """Parity on a photo, whose best class must be the reference's.

        Raises:
            ParityFailedError: an output is too far off, or the best class is another.
        """
        return self._passed(
            check(
                self.module.run,
                self.manifest,
                self.runner,
                inputs=0,
                images=[photo],
                tolerance=self.tolerance,
            )
        )

    def check_repeatable(self) -> ParityResult:
        """The same bits on a second run, and from a second load of the file.

        Raises:
            ParityFailedError: other bits.
        """
        again = Reference("itself, loaded again,", load(self.path).run)
        return self._passed(check(self.module.run, self.manifest, again, inputs=1, tolerance=0.0))

    def compare(
        self,
        actual: Mapping[str, NDArray[Any]],
        expected: Mapping[str, NDArray[Any]],
        tolerance: float | None = None,
    ) -> Comparison:
        """``parity.compare`` with this artifact's tolerance where none is given."""
        if tolerance is None:
            tolerance = self.tolerance
        if tolerance is None:
            tolerance = tolerance_for(spec.dtype for spec in self.manifest.outputs)
        return compare(actual, expected, tolerance)

    def _passed(self, result: ParityResult) -> ParityResult:
        if result:
            return result
        raise ParityFailedError(result)
