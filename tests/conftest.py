"""Where the tests find real models and photos, and what several of them need."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from mobilenet_tvm.records import RunInfo

# For the tests of our plug-in; pytest wants to be told here.
pytest_plugins = ["pytester"]

REPO = Path(__file__).resolve().parents[1]


def _shared(variable: str, name: str) -> Path:
    folder = Path(os.environ.get(variable, REPO.parent / "shared" / name))
    if not folder.is_dir():
        pytest.skip(f"no {name} at {folder}: set ${variable} to a folder that has them")
    return folder


@pytest.fixture(scope="session")
def shared_models() -> Path:
    """Folder of real, trained ONNX MobileNets."""
    return _shared("MOBILENET_TVM_MODELS", "models")


@pytest.fixture(scope="session")
def shared_images() -> Path:
    """Folder of photos."""
    return _shared("MOBILENET_TVM_IMAGES", "images")


def benchmark_script(name: str) -> Any:
    """A module of benchmarks/, whose neighbours are no package."""
    folder = REPO / "benchmarks"
    sys.path.insert(0, str(folder))
    try:
        spec = importlib.util.spec_from_file_location(f"{name}_bench", folder / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(folder))
    return module


def run_here(**changes: object) -> RunInfo:
    """The run file of a tiny log that this machine measured, but for ``changes`` (another CPU)."""
    import msgspec

    from mobilenet_tvm import targets
    from mobilenet_tvm.records import RunInfo

    run = RunInfo(
        format_version=1,
        preset="x86",
        target="llvm",
        cpu=targets.cpu_name(),
        tvm="0.19.0",
        llvm="22.1.8",
        model="tiny",
        model_digest="sha256:0",
        searcher="autotvm",
        seed=0,
        threads=1,
        spent_s=1.0,
        trials=1,
        failures={},
    )
    return msgspec.structs.replace(run, **changes)
