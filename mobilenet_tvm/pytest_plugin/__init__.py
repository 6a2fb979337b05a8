"""A pytest plug-in: ``pytest --mobilenet-artifact model.so`` runs our parity tests anywhere.

Items for each artifact, and fixtures for a project's own tests; docs/ci.md shows both. Every
pytest run of an environment that has this package imports this module, so it imports nothing
of the package, and not the package itself, before an artifact is given (see
``_mobilenet_tvm_pytest.py``): here is what pytest must see in every run, and ``options`` and
``items`` follow then.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from mobilenet_tvm.parity import Comparison, Reference
    from mobilenet_tvm.parity.checks import Subject
    from mobilenet_tvm.pytest_plugin.items import Artifact
    from mobilenet_tvm.pytest_plugin.options import Settings
    from mobilenet_tvm.runtime import Module

# The names this plug-in may be registered under: the entry point's, and that of ``-p``.
_NAMES = ("mobilenet_tvm", "mobilenet_tvm.pytest_plugin")

_NONE_GIVEN = (
    "no artifact was given: pytest --mobilenet-artifact FILE, or mobilenet_artifacts in the "
    "pytest settings"
)

# None: no artifact is given.
_SETTINGS = pytest.StashKey["Settings | None"]()


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
    add(
        "inputs",
        "string",
        "how many made-up inputs, of the kinds in turn (default: one of each)",
        metavar="N",
    )
    add(
        "kinds",
        "linelist",
        "kinds of made-up inputs, or families, as check --kinds takes them (default: as there)",
        metavar="KIND[,KIND]",
    )
    add("images", "string", "photos to check as well: a folder or a file", metavar="DIR")
    add(
        "device",
        "string",
        "emulated: kernels for a GPU run on an emulated one (default: local, this machine's)",
        metavar="DEVICE",
    )
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
    config = session.config
    if config.getoption("mobilenet_artifact") or config.getini("mobilenet_artifacts"):
        from mobilenet_tvm.pytest_plugin import options

        config.stash[_SETTINGS] = options.read(config)


# --- items


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> Artifact | None:
    """An artifact or a check that is named as an argument: ``pytest 'out/x.so::manifest'``."""
    settings = _settings(parent.config)
    if settings is None or file_path not in settings.subjects:
        return None
    if not parent.session.isinitpath(file_path):
        return None
    from mobilenet_tvm.pytest_plugin.items import Artifact

    return Artifact.of(parent, file_path, settings)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(session: pytest.Session, items: list[pytest.Item]) -> None:
    """Add the items of all other artifacts, before ``-k`` and ``--lf`` choose among them.

    They cannot come as arguments: pytest drops an argument that lies in a folder which is one
    too, and then does not look into ``build``, ``dist`` and their like.
    """
    settings = _settings(session.config)
    if settings is not None and settings.show:
        from mobilenet_tvm.pytest_plugin.items import add_items

        add_items(session, items, settings)


def _settings(config: pytest.Config) -> Settings | None:
    return config.stash.get(_SETTINGS, None)


# --- fixtures


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test that uses one of the fixtures runs once for each artifact."""
    settings = _settings(metafunc.config)
    if "_mobilenet_subject" in metafunc.fixturenames and settings is not None:
        subjects = settings.subjects
        names = [path.name for path in subjects]
        ids = names if len(set(names)) == len(names) else [str(path) for path in subjects]
        metafunc.parametrize("_mobilenet_subject", list(subjects.values()), ids=ids, indirect=True)


@pytest.fixture(scope="session")
def _mobilenet_subject(request: pytest.FixtureRequest) -> Subject:
    if not hasattr(request, "param"):
        pytest.skip(_NONE_GIVEN)
    subject: Subject = request.param
    return subject


def _told(config: pytest.Config, call: Callable[[], Any]) -> Any:
    from mobilenet_tvm.pytest_plugin.items import told

    settings = _settings(config)
    assert settings is not None  # else there was no subject
    return told(settings, call)


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
