"""Whole models on the GPU: they compute what ONNX Runtime does, and refuse where they must."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from mobilenet_tvm import cuda, runtime
from mobilenet_tvm.build.manifest import read_manifest, write_manifest

from .conftest import device_options

SMALL = ("mobilenet_v1", "--alpha", 0.25, "--resolution", 128)
TINY = ("mobilenet_v1", "--alpha", 0.25, "--resolution", 32)
Built = Callable[..., tuple[Path, dict[str, Any]]]
Verb = Callable[..., dict[str, Any]]


@pytest.mark.parametrize(
    "model",
    [SMALL, ("mobilenet_v3_small",), ("mobilenet_v1",)],
    ids=["v1-0.25-128", "v3-small", "v1-1.0-224"],
)
def test_an_untuned_model_agrees_with_onnx_runtime(built: Built, model: tuple[object, ...]) -> None:
    artifact, payload = built(*model)
    assert payload["parity"]["passed"]
    manifest = read_manifest(artifact)
    assert manifest.parity is not None
    assert manifest.parity.max_error < 1e-4
    assert manifest.parity.device is not None
    assert manifest.parity.device.emulated is cuda.emulated()


def test_a_cuda_graph_gives_the_same_bits(built: Built) -> None:
    artifact, _ = built(*TINY)
    plain, graph = runtime.load(artifact), runtime.load(artifact, cuda_graph=True)
    draw = np.random.default_rng(0)
    results = []
    for _ in range(3):  # a graph is captured once, and takes what its input holds by then
        data = {
            spec.name: draw.uniform(-1, 1, spec.shape).astype(spec.dtype)
            for spec in plain.manifest.inputs
        }
        wanted, found = plain.run(data), graph.run(data)
        for name in wanted:
            np.testing.assert_array_equal(found[name], wanted[name])
        results.append(next(iter(wanted.values())))
    assert not np.array_equal(results[0], results[1])


def test_check_passes_with_and_without_a_graph(built: Built, verb: Verb) -> None:
    artifact, _ = built(*TINY)
    for more in ([], ["--cuda-graph"]):
        assert verb("check", artifact, *device_options(), *more)["passed"]


def test_an_artifact_for_a_later_gpu_is_refused(built: Built, verb: Verb, tmp_path: Path) -> None:
    artifact, _ = built(*TINY)
    manifest = read_manifest(artifact)
    target = msgspec.structs.replace(manifest.target, cuda_arch="sm_990")
    copy = tmp_path / artifact.name
    copy.write_bytes(artifact.read_bytes())
    write_manifest(copy, msgspec.structs.replace(manifest, target=target))
    # The emulator has any limits: here it is the GPU, or that there is none, which refuses.
    said = verb("check", copy, status=2, MOBILENET_TVM_CUDA="")
    assert "needs an NVIDIA GPU of compute capability 99.0" in said["error"]
    assert "\n" not in said["error"]
