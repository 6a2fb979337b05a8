"""The checks of one artifact one by one, as a test runner reports them.

``check_artifact`` gives one verdict and marks the manifest; here each check is a call of its
own that returns or raises, and no file is written.
"""

from __future__ import annotations

import functools
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from mobilenet_tvm import cuda
from mobilenet_tvm.build.manifest import Manifest
from mobilenet_tvm.errors import CheckFailedError, UsageError
from mobilenet_tvm.parity.case import again_of
from mobilenet_tvm.parity.comparison import Comparison, compare
from mobilenet_tvm.parity.gate import ParityResult, check, check_feeds
from mobilenet_tvm.parity.inputs import shapes_of
from mobilenet_tvm.parity.kinds import MadeUp
from mobilenet_tvm.parity.references import RUNNERS, Reference, reference_onnx
from mobilenet_tvm.parity.tolerances import tolerance_for
from mobilenet_tvm.runtime import Module, load, verify_checked, verify_file, verify_machine


class ParityFailedError(CheckFailedError):
    """The one line of ``result``'s summary; ``result`` has the figures."""

    def __init__(self, result: ParityResult) -> None:
        super().__init__(result.summary())
        self.result = result


class NotJudgedError(CheckFailedError):
    """The input neither passes nor fails: the reference itself overflows on it."""


@dataclass(frozen=True)
class Subject:
    """An artifact, what it is compared with, and how near it must be.

    ``onnx`` are files of which one must be the artifact's model, by digest; with none the model
    is looked for where the manifest says. ``tolerance`` is a share of max |reference| of an
    output, None for that of the outputs' dtypes. ``onnx_option`` is what the user gives ``onnx``
    with, as errors name it. Every check raises a ``UsageError`` where the
    artifact or its model cannot be used, and its subclass ``ForeignArtifactError`` where only
    this machine cannot run it.
    """

    path: Path
    onnx: tuple[Path, ...] = ()
    reference: str = "onnxruntime"
    tolerance: float | None = None
    onnx_option: str = "--onnx"

    @functools.cached_property
    def manifest(self) -> Manifest:
        """The manifest, whose digest fits the file."""
        return verify_file(self.path)

    @functools.cached_property
    def module(self) -> Module:
        """The artifact, loaded."""
        return load(self.path)

    @property
    def runner(self) -> Reference:
        """Who computes the right answer."""
        return self._opened[0]

    @functools.cached_property
    def _opened(self) -> tuple[Reference, Path | None]:
        """The reference, and which of ``onnx`` it runs."""
        data, path = self._model()
        return RUNNERS[self.reference](data, shapes_of(self.manifest)), path

    def _model(self) -> tuple[bytes, Path | None]:
        read = functools.partial(reference_onnx, self.manifest, option=self.onnx_option)
        if not self.onnx:
            return read(), None
        for path in self.onnx:
            try:
                return read(path), path
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

    def check_input(self, made_up: MadeUp, seed: int = 0) -> ParityResult:
        """Parity on one made-up input: the one that ``check`` makes of this kind and ``seed``.

        Raises:
            ParityFailedError: an output is too far off.
            NotJudgedError: the reference overflows, and only on a kind where it may.
        """
        feed = made_up.feed(self.manifest.inputs, seed)
        result = check_feeds(
            self.module.run,
            self.manifest,
            self.runner,
            [(made_up.name, made_up.kind, feed)],
            tolerance=self.tolerance,
            again=again_of(self.module),
        )
        (case,) = result.cases
        if case and not case.conclusive:
            raise NotJudgedError("; ".join(case.warnings))
        return self._passed(result)

    def again(self, only: MadeUp | Path, base: Path, seed: int = 0) -> str:
        """The command line that checks the same made-up input, or photo, from the folder ``base``.

        Raises:
            UsageError: the model cannot be had.
        """

        def near(path: Path) -> str:
            return str(path.relative_to(base) if path.is_relative_to(base) else path)

        command = ["python", "-m", "mobilenet_tvm.check", near(self.path)]
        _, onnx = self._opened
        if onnx is not None:
            command += ["--onnx", near(onnx)]
        if self.manifest.target.cuda_arch is not None and cuda.emulated():
            command += ["--device", "emulated"]
        if self.reference != "onnxruntime":
            command += ["--reference", self.reference]
        if self.tolerance is not None:
            command += ["--rtol", repr(self.tolerance)]
        if isinstance(only, Path):
            command += ["--inputs", "0", "--images", near(only)]
        else:
            # Those of a kind are counted from 0: the last of so many is this one.
            command += ["--kinds", only.kind, "--seed", str(seed)]
            command += ["--inputs", str(only.number + 1)]
        return shlex.join(command)

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
                again=again_of(self.module),
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
