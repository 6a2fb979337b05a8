"""The items of an artifact: one a check, and what it says when it fails."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from mobilenet_tvm.errors import MobilenetTvmError
from mobilenet_tvm.parity.checks import NotJudgedError, ParityFailedError
from mobilenet_tvm.parity.kinds import MadeUp
from mobilenet_tvm.parity.result import ParityResult
from mobilenet_tvm.pytest_plugin.options import Settings
from mobilenet_tvm.runtime import ForeignArtifactError


class Artifact(pytest.File):
    """An artifact, as pytest collects it."""

    def __init__(self, *, settings: Settings, **how: Any) -> None:
        super().__init__(**how)
        self.settings = settings

    @classmethod
    def of(cls, parent: pytest.Collector, path: Path, settings: Settings) -> Artifact:
        """The node of ``path``, with a node id that ``--lf`` finds again."""
        # pytest would write `../x.so`, and compare that with the whole path.
        inside = path.is_relative_to(parent.config.rootpath)
        nodeid = None if inside else path.as_posix()
        node: Artifact = cls.from_parent(parent, path=path, nodeid=nodeid, settings=settings)
        return node

    def collect(self) -> Iterator[Check]:
        """One item a check: nothing is read or loaded for it."""
        subject = self.settings.subjects[self.path]
        yield self._check("manifest", lambda: subject.manifest)
        yield self._check("machine", subject.check_machine)
        yield self._check("checked", subject.check_mark)
        for one in self.settings.inputs:
            yield self._check(f"parity[{one.name}]", partial(subject.check_input, one), one)
        for photo in self.settings.photos:
            yield self._check(f"photo[{photo.name}]", partial(subject.check_photo, photo), photo)
        yield self._check("repeatable", subject.check_repeatable)

    def _check(
        self, name: str, call: Callable[[], Any], only: MadeUp | Path | None = None
    ) -> Check:
        # pytest 9.2 would take the brackets for a part of the name, and --lf find nothing.
        nodeid = f"{self.nodeid}::{name}"
        check: Check = Check.from_parent(self, name=name, nodeid=nodeid, call=call, only=only)
        return check


class Check(pytest.Item):
    """One check of an artifact; ``only`` is the input that it is about."""

    def __init__(self, *, call: Callable[[], Any], only: MadeUp | Path | None, **how: Any) -> None:
        super().__init__(**how)
        self._call = call
        self._only = only
        self._failed = False

    @property
    def _artifact(self) -> Artifact:
        assert isinstance(self.parent, Artifact)
        return self.parent

    def runtest(self) -> None:
        """Run the check; what is wrong is told in its own words, with no traceback."""
        result = told(self._artifact.settings, self._call, self._show)
        for warning in getattr(result, "warnings", ()):
            # Not self.warn: that wants a line number.
            warnings.warn(pytest.PytestWarning(warning), stacklevel=1)

    def _show(self, result: ParityResult) -> None:
        self._failed = True
        for case in result.cases:
            self.add_report_section("call", "figures", str(case.comparison))

    def repr_failure(self, *how: Any, **more: Any) -> Any:
        """The verdict, and below it how to get the same input again."""
        # In a section of its own: the verdict is to stay the one line of pytest's summary.
        shown: Any = super().repr_failure(*how, **more)
        if self._failed and self._only is not None:
            subject = self._artifact.settings.subjects[self.path]
            command = subject.again(self._only, self.config.invocation_params.dir)
            shown.addsection(
                "the same input again; with --bisect it names the layer", command, sep="-"
            )
        return shown

    def reportinfo(self) -> tuple[Path, None, str]:
        """Where it is from, and its heading in a report."""
        return self.path, None, f"{self.path.name} {self.name}"


def told(
    settings: Settings,
    call: Callable[[], Any],
    show: Callable[[ParityResult], None] = lambda _: None,
) -> Any:
    """``call()``; an error of this package becomes pytest's failure, or skip, of one line."""
    try:
        return call()
    except MobilenetTvmError as caught:
        error = caught  # raised from here, the failure would tell of both
    text = str(error)
    if isinstance(error, NotJudgedError):
        pytest.skip(text)
    if isinstance(error, ParityFailedError):
        show(error.result)
    if isinstance(error, ForeignArtifactError):
        if settings.skip_foreign:
            pytest.skip(text)
        text += ", or skip it with --mobilenet-skip-foreign"
    pytest.fail(text, pytrace=False)


def add_items(session: pytest.Session, items: list[pytest.Item], settings: Settings) -> None:
    """Add the items of all artifacts that were not named as arguments."""
    named = {item.path for item in items if isinstance(item, Check)}
    for path in settings.subjects:
        if path in named:
            continue
        artifact = Artifact.of(session, path, settings)
        found = list(artifact.collect())
        report = pytest.CollectReport(artifact.nodeid, "passed", None, [*found])
        artifact.ihook.pytest_collectreport(report=report)
        for item in found:
            item.ihook.pytest_itemcollected(item=item)
        items += found
