"""A small network, its manifest, and ways to break it."""

from __future__ import annotations

from collections.abc import Callable

import onnx
import pytest

from mobilenet_tvm import zoo
from mobilenet_tvm.build.manifest import (
    FORMAT_VERSION,
    Manifest,
    ModelInfo,
    Preprocessing,
    TargetInfo,
    TensorSpec,
    ToolchainInfo,
    TuningInfo,
    sha256_bytes,
)

ZOO = {"name": "mobilenet_v1", "alpha": 0.25, "resolution": 32, "classes": 10}
SHAPE = (1, 3, 32, 32)


@pytest.fixture
def tiny_model() -> onnx.ModelProto:
    """MobileNet V1 0.25-32 with 10 classes; a fresh copy, free to be broken."""
    return zoo.build(**ZOO)


@pytest.fixture
def make_manifest() -> Callable[..., Manifest]:
    """Makes a manifest of ``tiny_model``; keyword arguments replace its fields."""

    def make(**changes: object) -> Manifest:
        data = zoo.build(**ZOO).SerializeToString()
        fields: dict[str, object] = {
            "format_version": FORMAT_VERSION,
            "name": "tiny",
            "model": ModelInfo(name="tiny", digest=sha256_bytes(data), zoo=ZOO),
            "inputs": (TensorSpec("input", SHAPE, "float32"),),
            "outputs": (TensorSpec("logits", (1, 10), "float32"),),
            "target": TargetInfo("x86", "llvm", "x86_64", ()),
            "toolchain": ToolchainInfo("0", "0", "0"),
            "tuning": TuningInfo(1, 0),
            "so_sha256": "",
            "preprocessing": Preprocessing(32, 32, 32),
        }
        return Manifest(**{**fields, **changes})

    return make
