"""Where the tests find real models and photos."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

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
