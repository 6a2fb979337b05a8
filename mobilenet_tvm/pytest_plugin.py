"""A pytest plug-in: ``pytest --mobilenet-artifact model.so`` runs our parity tests anywhere.

Items for each artifact, and fixtures for a project's own tests; docs/ci.md shows both. Every
pytest run of an environment that has this package imports this module, so it imports nothing
of the package, and not the package itself, before an artifact is given (see
``_mobilenet_tvm_pytest.py``).
"""

from __future__ import annotations

import glob
import math
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from mobilenet_tvm.parity import Comparison, ParityResult, Reference
    from mobilenet_tvm.parity.checks import Subject
    from mobilenet_tvm.runtime import Module

# The names this plug-in may be registered under: the entry point's, and that of ``-p``.
_NAMES = ("mobilenet_tvm", "mobilenet_tvm.pytest_plugin")

_INPUTS = 5

_NONE_GIVEN = (
    "no artifact was given: pytest --mobilenet-artifact FILE, or mobilenet_artifacts in the "
    "pytest settings"
)


@dataclass(frozen=True)
class _Settings:
    """The options, looked at. ``show`` says whether the artifacts bring their own items."""

    subjects: dict[Path, Subject] = field(default_factory=dict)
    show: bool = False
    inputs: int = 0
    photos: tuple[Path, ...] = ()
    skip_foreign: bool = False


_SETTINGS = pytest.StashKey[_Settings]()


# --- options


def pytest_addoption(parser: pytest.Parser, pluginmanager: pytest.PytestPluginManager) -> None:
    """The options and their twins in the ini file."""
    # With the entry point installed, ``-p`` would register this module a second time, which
    # pytest takes for a mistake; its xdist workers do so in the other order.
    mine = pluginmanager.get_name(sys.modules[__name__])
    for name in _NAMES:
        if name != mine:
            pluginmanager.set_blocked(name)

    group = parser.getgroup("mobilenet_tvm", "parity of compiled MobileNets")

    def add(name: str, kind: Any, text: str, ini: str | None = None, **how: Any) -> None:
        group.addoption(f"--mobilenet-{name}", default=None, help=text, **how)
        ini = ini or f"mobilenet_{name.replace('-', '_')}"
        parser.addini(ini, f"{text} (--mobilenet-{name})", type=kind, default=None)

    add(
        "artifact",
        "paths",
        "check this .so: a file, a folder of them or a glob; repeatable",
        ini="mobilenet_artifacts",
        action="append",
        metavar="PATH",
    )
    add(
        "onnx",
        "paths",
        "a model that an artifact was made from, where its manifest's own source is not here; "
        "a file or a glob; repeatable",
        action="append",
        metavar="PATH",
    )
    add("reference", "string", "who computes the right answer (default: onnxruntime)")
    add(
        "tolerance",
        "string",
        "largest error as a share of max |reference| of an output (default: by dtype, 1e-4 for "
        "float32)",
    )
    add("inputs", "string", f"how many random inputs (default: {_INPUTS})", metavar="N")
    add("images", "string", "photos to check as well: a folder or a file", metavar="DIR")
    add(
        "skip-foreign",
        "bool",
        "skip what this machine cannot run, instead of failing",
        action="store_true",
    )


@pytest.hookimpl(tryfirst=True)
def pytest_load_initial_conftests(early_config: pytest.Config) -> None:
    """Prepare TVM's environment before a conftest can import TVM."""
    given = early_config.known_args_namespace.mobilenet_artifact
    if not given and not early_config.getini("mobilenet_artifacts"):
        return
    import mobilenet_tvm  # noqa: F401

    # Else TVM binds this thread, and all that the other tests start, to the first core.
    os.environ.setdefault("TVM_BIND_THREADS", "0")
    if "PYTEST_XDIST_WORKER" in os.environ:  # the workers are the threads
        os.environ.setdefault("TVM_NUM_THREADS", "1")


@pytest.hookimpl(tryfirst=True)
def pytest_sessionstart(session: pytest.Session) -> None:
    """Look at the options: what is wrong with them is told before anything is collected."""
    session.config.stash[_SETTINGS] = _settings(session.config)


def _settings(config: pytest.Config) -> _Settings:
    artifacts, where = _paths(config, "artifact", "mobilenet_artifacts")
    if not artifacts:
        return _Settings()

    from mobilenet_tvm.errors import UsageError
    from mobilenet_tvm.parity import RUNNERS
    from mobilenet_tvm.parity.checks import Subject
    from mobilenet_tvm.parity.inputs import find_images

    found = dict.fromkeys(path for text in artifacts for path in _expand(text, where, ".so"))
    models, where = _paths(config, "onnx", "mobilenet_onnx")
    onnx = dict.fromkeys(path for text in models for path in _expand(text, where, ".onnx"))
    reference = _text(config, "reference") or "onnxruntime"
    if reference not in RUNNERS:
        raise pytest.UsageError(
            f"mobilenet reference {reference}: it is one of {', '.join(RUNNERS)}"
        )
    tolerance = _number(config, "tolerance", float)
    inputs = _number(config, "inputs", int)
    images = _text(config, "images")
    try:
        photos = find_images(_base(config, "images") / images) if images else ()
    except UsageError as error:
        raise pytest.UsageError(f"mobilenet images: {error}") from None
    if inputs == 0 and not photos:
        raise pytest.UsageError("mobilenet inputs 0 and no images: parity needs an input")
    # As with testpaths: what the ini file names is for a run that names nothing itself.
    named = config.args_source is pytest.Config.ArgsSource.ARGS
    return _Settings(
        subjects={path: Subject(path, tuple(onnx), reference, tolerance) for path in found},
        show=bool(config.getoption("mobilenet_artifact")) or not named,
        inputs=_INPUTS if inputs is None else int(inputs),
        photos=photos,
        skip_foreign=bool(
            config.getoption("mobilenet_skip_foreign") or config.getini("mobilenet_skip_foreign")
        ),
    )


def _paths(config: pytest.Config, name: str, ini: str) -> tuple[list[str], str]:
    """Absolute paths, maybe globs, and the name of what gave them."""
    given = config.getoption(f"mobilenet_{name}")
    if given:
        base = config.invocation_params.dir
        return [str(base / text) for text in given], f"--mobilenet-{name}"
    return [str(path) for path in config.getini(ini) or ()], ini


def _expand(text: str, where: str, suffix: str) -> Iterator[Path]:
    """The files that a path, a folder or a glob means, by name."""
    matches = [text] if os.path.exists(text) else sorted(glob.glob(text, recursive=True))
    files: list[Path] = []
    for match in matches:
        path = Path(os.path.abspath(match))
        files += sorted(path.glob(f"*{suffix}")) if path.is_dir() else [path]
    if not files:
        what = f"no {suffix} in the folder" if matches else "no file at"
        make = ", or make it with python -m mobilenet_tvm.tune" if suffix == ".so" else ""
        raise pytest.UsageError(f"{where}: {what} {text}: correct the path{make}")
    yield from files


def _base(config: pytest.Config, name: str) -> Path:
    """The folder that a relative path is relative to."""
    if config.getoption(f"mobilenet_{name}") is not None or config.inipath is None:
        return config.invocation_params.dir
    return config.inipath.parent


def _text(config: pytest.Config, name: str) -> str | None:
    given = config.getoption(f"mobilenet_{name}")
    return str(given) if given is not None else config.getini(f"mobilenet_{name}") or None


def _number(config: pytest.Config, name: str, kind: Callable[[str], float]) -> float | None:
    text = _text(config, name)
    if text is None:
        return None
    try:
        value = kind(text)
    except ValueError:
        value = math.nan
    if not (value >= 0 and math.isfinite(value)):
        what = "a whole number" if kind is int else "a number"
        raise pytest.UsageError(f"mobilenet {name} {text}: it must be {what}, 0 or more")
    return value


# --- items


class Artifact(pytest.File):
    """An artifact, as pytest collects it."""

    @classmethod
    def of(cls, parent: pytest.Collector, path: Path) -> Artifact:
        """The node of ``path``, with a node id that ``--lf`` finds again."""
        # pytest would write `../x.so`, and compare that with the whole path.
        inside = path.is_relative_to(parent.config.rootpath)
        nodeid = None if inside else path.as_posix()
        node: Artifact = cls.from_parent(parent, path=path, nodeid=nodeid)
        return node

    def collect(self) -> Iterator[Check]:
        """One item a check: nothing is read or loaded for it."""
        settings = _known(self.config)
        subject = settings.subjects[self.path]
        checks: dict[str, Callable[[], Any]] = {
            "manifest": lambda: subject.manifest,
            "machine": subject.check_machine,
            "checked": subject.check_mark,
        }
        for seed in range(settings.inputs):
            checks[f"parity[uniform {seed}]"] = partial(subject.check_input, seed)
        for photo in settings.photos:
            checks[f"photo[{photo.name}]"] = partial(subject.check_photo, photo)
        checks["repeatable"] = subject.check_repeatable
        for name, call in checks.items():
            # pytest 9.2 would take the brackets for a part of the name, and --lf find nothing.
            nodeid = f"{self.nodeid}::{name}"
            yield Check.from_parent(self, name=name, nodeid=nodeid, call=call)


class Check(pytest.Item):
    """One check of an artifact."""

    def __init__(self, *, call: Callable[[], Any], **how: Any) -> None:
        super().__init__(**how)
        self._call = call

    def runtest(self) -> None:
        """Run the check; what is wrong is told in its own words, with no traceback."""
        result = _told(self.config, self._call, self._show)
        for warning in getattr(result, "warnings", ()):
            # Not self.warn: that wants a line number.
            warnings.warn(pytest.PytestWarning(warning), stacklevel=1)

    def _show(self, result: ParityResult) -> None:
        for case in result.cases:
            self.add_report_section("call", "figures", str(case.comparison))

    def reportinfo(self) -> tuple[Path, None, str]:
        """Where it is from, and its heading in a report."""
        return self.path, None, f"{self.path.name} {self.name}"


def _told(
    config: pytest.Config,
    call: Callable[[], Any],
    show: Callable[[ParityResult], None] = lambda _: None,
) -> Any:
    """``call()``; an error of this package becomes pytest's failure, or skip, of one line."""
    from mobilenet_tvm.errors import MobilenetTvmError
    from mobilenet_tvm.parity.checks import ParityFailedError
    from mobilenet_tvm.runtime import ForeignArtifactError

    try:
        return call()
    except MobilenetTvmError as caught:
        error = caught  # raised from here, the failure would tell of both
    told = str(error)
    if isinstance(error, ParityFailedError):
        show(error.result)
    if isinstance(error, ForeignArtifactError):
        if _known(config).skip_foreign:
            pytest.skip(told)
        told += ", or skip it with --mobilenet-skip-foreign"
    pytest.fail(told, pytrace=False)


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> Artifact | None:
    """An artifact or a check that is named as an argument: ``pytest 'out/x.so::manifest'``."""
    if not parent.session.isinitpath(file_path):
        return None
    known = file_path in _known(parent.config).subjects
    return Artifact.of(parent, file_path) if known else None


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(session: pytest.Session, items: list[pytest.Item]) -> None:
    """Add the items of all other artifacts, before ``-k`` and ``--lf`` choose among them.

    They cannot come as arguments: pytest drops an argument that lies in a folder which is one
    too, and then does not look into ``build``, ``dist`` and their like.
    """
    settings = _known(session.config)
    if not settings.show:
        return
    named = {item.path for item in items if isinstance(item, Check)}
    for path in settings.subjects:
        if path in named:
            continue
        artifact = Artifact.of(session, path)
        found = list(artifact.collect())
        report = pytest.CollectReport(artifact.nodeid, "passed", None, [*found])
        artifact.ihook.pytest_collectreport(report=report)
        for item in found:
            item.ihook.pytest_itemcollected(item=item)
        items += found


def _known(config: pytest.Config) -> _Settings:
    return config.stash.get(_SETTINGS, _Settings())


# --- fixtures


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test that uses one of the fixtures runs once for each artifact."""
    subjects = _known(metafunc.config).subjects
    if "_mobilenet_subject" in metafunc.fixturenames and subjects:
        names = [path.name for path in subjects]
        ids = names if len(set(names)) == len(names) else [str(path) for path in subjects]
        metafunc.parametrize("_mobilenet_subject", list(subjects.values()), ids=ids, indirect=True)


@pytest.fixture(scope="session")
def _mobilenet_subject(request: pytest.FixtureRequest) -> Subject:
    if not hasattr(request, "param"):
        pytest.skip(_NONE_GIVEN)
    subject: Subject = request.param
    return subject


@pytest.fixture(scope="session")
def mobilenet_artifact(_mobilenet_subject: Subject, pytestconfig: pytest.Config) -> Module:
    """The loaded artifact, each of those given in turn: ``.run({...})`` and ``.manifest``."""
    module: Module = _told(pytestconfig, lambda: _mobilenet_subject.module)
    return module


@pytest.fixture(scope="session")
def mobilenet_reference(_mobilenet_subject: Subject, pytestconfig: pytest.Config) -> Reference:
    """The reference on the artifact's own ONNX model: call it with the artifact's inputs."""
    runner: Reference = _told(pytestconfig, lambda: _mobilenet_subject.runner)
    return runner


@pytest.fixture(scope="session")
def mobilenet_compare(
    _mobilenet_subject: Subject, pytestconfig: pytest.Config
) -> Callable[..., Comparison]:
    """``mobilenet_compare(actual, expected, tolerance=None)``: assert that outputs agree.

    Both are dicts of arrays by output name; ``tolerance`` is a share of max |expected|, by
    default ``--mobilenet-tolerance``, else that of the outputs' dtypes.
    """
    _told(pytestconfig, lambda: _mobilenet_subject.manifest)

    def compare(actual: Any, expected: Any, tolerance: float | None = None) -> Comparison:
        __tracebackhide__ = True
        comparison = _mobilenet_subject.compare(actual, expected, tolerance)
        if not comparison:
            raise AssertionError(str(comparison))
        return comparison

    return compare
