"""Seeded weights keep the network alive: parity on it must be able to fail."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from PIL import Image

from mobilenet_tvm import zoo
from mobilenet_tvm.zoo.moments import relu6_moments
from mobilenet_tvm.zoo.weights import BatchNorm, taps_seen


def outputs(model: onnx.ModelProto, images: list[np.ndarray], *, optimize: bool = True):
    """Each image's logits, and every Clip's output."""
    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    clips = [n.output[0] for n in model.graph.node if n.op_type == "Clip"]
    watched.graph.output.extend(onnx.helper.make_empty_tensor_value_info(c) for c in clips)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    if not optimize:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(
        watched.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    runs = [session.run(["logits", *clips], {"input": image}) for image in images]
    return np.stack([r[0][0] for r in runs]), [r[1:] for r in runs]


def random_images(resolution: int, kind: str) -> list[np.ndarray]:
    rng = np.random.default_rng(1)
    shape = (3, 1, 3, resolution, resolution)
    images = rng.uniform(-1, 1, shape) if kind == "uniform" else rng.standard_normal(shape)
    return list(images.astype(np.float32))


@pytest.mark.parametrize("kind", ["uniform", "normal"])
@pytest.mark.parametrize(
    ("alpha", "resolution"), [(1.0, 224), (0.5, 160), (0.25, 128), (0.25, 32), (1.0, 32)]
)
def test_activations_and_logits_are_alive(alpha, resolution, kind):
    model = zoo.build(alpha=alpha, resolution=resolution)
    logits, activations = outputs(model, random_images(resolution, kind))
    for clips in activations:
        for number, values in enumerate(clips):
            assert 0.05 < np.mean(values == 0) < 0.5, number
            assert np.mean(values == 6) < 0.2, number
        # The upper bound is in use too, nearly everywhere.
        assert np.mean([np.mean(values == 6) > 0.005 for values in clips]) > 0.9
    assert (np.std(logits, axis=1) > 1).all()
    assert (np.abs(logits) < 60).all()
    assert np.mean(np.std(logits, axis=0)) > 0.5  # they depend on the input
    assert len(set(np.argmax(logits, axis=1).tolist())) > 1


def test_photos_get_different_answers(shared_images):
    photos = []
    for path in sorted(shared_images.iterdir()):
        if path.suffix.lower() in (".png", ".jpg", ".jpeg"):
            pixels = np.asarray(Image.open(path).convert("RGB").resize((224, 224)), np.float32)
            photos.append(pixels.transpose(2, 0, 1)[None] / 127.5 - 1)
    logits, _ = outputs(zoo.build(), photos)
    assert len(set(np.argmax(logits, axis=1).tolist())) > 1
    assert np.corrcoef(logits)[np.triu_indices(len(photos), 1)].max() < 0.9


def test_rounding_does_not_grow_beyond_the_parity_gate():
    """Two float32 evaluations in different order stay ten times inside 1e-4 of max |logit|."""
    model = zoo.build(alpha=0.25, resolution=128)
    images = random_images(128, "uniform")
    fused, _ = outputs(model, images)
    plain, _ = outputs(model, images, optimize=False)
    assert np.abs(fused - plain).max() < 1e-5 * np.abs(plain).max()


def test_relu6_moments_agree_with_sampling():
    norm = BatchNorm(
        scale=np.array([1.5, 2.5, 2.0, 0.5]),
        offset=np.array([0.0, 2.0, 5.0, -1.0]),
        mean=np.zeros(4),
        variance=np.ones(4),
    )
    samples = np.random.default_rng(0).standard_normal((200_000, 4)) * norm.scale + norm.offset
    clipped = np.clip(samples, 0, 6)
    moments = relu6_moments(norm)
    np.testing.assert_allclose(moments.mean, clipped.mean(axis=0), atol=0.02)
    np.testing.assert_allclose(moments.variance, clipped.var(axis=0), atol=0.03)


@pytest.mark.parametrize(("size", "stride", "pad"), [(1, 1, 1), (2, 2, 0), (7, 1, 1), (8, 2, 0)])
def test_taps_seen_counts_what_padding_hides(size, stride, pad):
    from mobilenet_tvm.zoo.graph import same_pads

    assert same_pads(size, 3, stride)[0] == pad
    out = -(-size // stride)
    counted = np.zeros((3, 3))
    for row in range(out):
        for column in range(out):
            for i in range(3):
                for j in range(3):
                    y, x = row * stride - pad + i, column * stride - pad + j
                    counted[i, j] += 0 <= y < size and 0 <= x < size
    np.testing.assert_allclose(taps_seen(size, 3, stride, pad), counted / out**2, atol=1 / 512)
