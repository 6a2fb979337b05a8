"""Real, trained models: built untuned, they see in a photo what ONNX Runtime sees."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest

import mobilenet_tvm
from mobilenet_tvm import frontend, targets
from mobilenet_tvm.build import compile_model
from mobilenet_tvm.build.manifest import ModelInfo

# Shape, and how many kernels may change a layout: the last one, for a dense output.
REAL: dict[str, tuple[int, ...] | None] = {
    "mobilenet_v1_1.0_224_imagenet1001": None,
    "mobilenet_v2_1.0_160_dogs19": None,
    "mobilenet_v3_small_0.35_textangle": (1, 3, 48, 192),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", REAL)
def test_outputs_for_a_photo(
    name: str, shared_models: Path, shared_images: Path, tmp_path: Path
) -> None:
    source = shared_models / f"{name}.onnx"
    clean = frontend.clean(frontend.read(source), shape=REAL[name])
    relay = frontend.to_relay(clean)
    path = tmp_path / f"{name}.x86.so"
    info = ModelInfo(name, clean.original.digest)
    manifest = compile_model(relay, targets.resolve("x86"), path, info=info)
    assert manifest.tuning.layout_transforms is not None
    assert manifest.tuning.layout_transforms <= 1

    preprocessing = frontend.guess_preprocessing(relay.inputs)
    assert preprocessing is not None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(source), options)
    module = mobilenet_tvm.load(path, threads=1)
    (given,) = relay.inputs
    for photo in ("chelsea.png", "coffee.png"):
        image = frontend.load_image(shared_images / photo, preprocessing)
        got = module.run({given.name: image})
        wanted = session.run(None, {given.name: image})
        for one, other in zip(got.values(), wanted, strict=True):
            np.testing.assert_allclose(one, other, rtol=0, atol=1e-4 * np.abs(other).max())
