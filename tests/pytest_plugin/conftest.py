"""A small project with an artifact, one with a planted fault, and pytest runs in it.

What loads an artifact runs in a process of its own, as TVM cannot be imported twice in one; what
does not runs in this one, in a tenth of the time.
"""

from __future__ import annotations

import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mobilenet_tvm import frontend, targets, toolchain, zoo
from mobilenet_tvm.build import compile_model
from mobilenet_tvm.build.manifest import (
    ModelInfo,
    Preprocessing,
    read_manifest,
    sha256_file,
    write_manifest,
)
from mobilenet_tvm.parity import check_artifact, checks  # loaded before a run in this process

REPO = Path(__file__).resolve().parents[2]
NAME = "flowers.x86-avx2.so"

# It imports, and rewrites, all of hypothesis at the end of every run.
WITHOUT = "-p no:hypothesispytest"

__all__ = ["NAME", "REPO", "WITHOUT", "Built", "built", "checks", "edit", "project", "verdicts"]


@dataclass(frozen=True)
class Built:
    """Built once: a model and its artifact, and one that does not compute what its model does."""

    onnx: Path
    artifact: Path
    broken_onnx: Path
    broken: Path


def negate_a_channel(model: Any) -> None:
    """One channel of the first convolution gets the wrong sign."""
    from onnx import numpy_helper

    weight = next(w for w in model.graph.initializer if len(w.dims) == 4)
    values = numpy_helper.to_array(weight).copy()
    values[0] *= -1
    weight.CopyFrom(numpy_helper.from_array(values, weight.name))


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    import onnx

    folder = tmp_path_factory.mktemp("built")
    paths = Built(
        folder / "models" / "flowers.onnx",
        folder / "artifacts" / NAME,
        folder / "broken_models" / "flowers.onnx",
        folder / "broken" / NAME,
    )
    for path in (paths.onnx, paths.artifact, paths.broken_onnx):
        path.parent.mkdir()
    model = zoo.build("mobilenet_v1", alpha=0.25, resolution=32, classes=10)
    onnx.save(model, paths.onnx)
    compile_model(
        frontend.to_relay(frontend.clean(frontend.from_proto(model, "flowers"))),
        targets.resolve("x86-avx2"),
        paths.artifact,
        info=ModelInfo("flowers", sha256_file(paths.onnx), path="/gone/flowers.onnx"),
        preprocessing=Preprocessing(32, 32, 32),
    )
    assert check_artifact(paths.artifact, onnx=paths.onnx, inputs=1)

    # The fault: its manifest names a model that has other weights, and says that it passed. (A
    # build from those weights would be the same thing the other way round, 8 s later.)
    negate_a_channel(model)
    onnx.save(model, paths.broken_onnx)
    shutil.copytree(paths.artifact.parent, paths.broken.parent)
    info = ModelInfo("flowers", sha256_file(paths.broken_onnx), path="/gone/flowers.onnx")
    edit(paths.broken, model=info)
    return paths


def edit(artifact: Path, **changes: Any) -> None:
    """Change fields of a manifest."""
    import msgspec

    write_manifest(artifact, msgspec.structs.replace(read_manifest(artifact), **changes))


@pytest.fixture
def project(built: Built, pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A project with ``models/``, ``photos/`` and ``artifacts/``; a run finds the plug-in."""
    # pytester gives its runs another $HOME, where no helper is compiled yet.
    monkeypatch.setenv(toolchain.CACHE_VARIABLE, str(toolchain.cache_dir()))
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.delenv("CI", raising=False)  # pytest prints whole lines there
    # Where the package is installed, this process has loaded the plug-in before its own runs do.
    quiet = "-W ignore::pytest.PytestAssertRewriteWarning"
    monkeypatch.setenv("PYTEST_ADDOPTS", f"{WITHOUT} {quiet} -p mobilenet_tvm.pytest_plugin")
    found = [str(REPO), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, found)))
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)
    monkeypatch.setenv("TVM_BIND_THREADS", "0")  # a run in this process sets it for good
    for folder in (built.onnx.parent, built.artifact.parent):
        shutil.copytree(folder, pytester.path / folder.name)
    (pytester.path / "photos").mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    Image.fromarray(pixels).save(pytester.path / "photos" / "rose.png")
    return pytester


def verdicts(result: pytest.RunResult) -> list[str]:
    """The first line below each heading of a failure."""
    pairs = zip(result.outlines, result.outlines[1:], strict=False)
    return [below for heading, below in pairs if re.fullmatch("_+ .+ _+", heading)]
