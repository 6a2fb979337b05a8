"""What a parity check feeds to both sides: seeded random inputs and photos."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mobilenet_tvm.build.manifest import Manifest, TensorSpec
from mobilenet_tvm.errors import UsageError

Feed = dict[str, NDArray[Any]]

IMAGE_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")

# In this order, then uniform and normal in turn.
_KINDS = ("uniform", "normal", "zeros", "large")

# A photo that was never scaled to [-1, 1]: it drives most ReLU6 into saturation.
_LARGE = 255.0


def random_feeds(specs: Sequence[TensorSpec], count: int, seed: int) -> Iterator[tuple[str, Feed]]:
    """``count`` named feeds: uniform in [-1, 1], normal, all zeros, uniform in [-255, 255], ...

    Feed ``i`` depends on ``seed`` and ``i`` alone, so a failing one is found again by number.
    """
    for index in range(count):
        kind = _KINDS[index] if index < len(_KINDS) else _KINDS[index % 2]
        rng = np.random.default_rng((seed, index))
        yield (
            f"random {index} ({kind})",
            {spec.name: _random(rng, kind, spec.shape, np.dtype(spec.dtype)) for spec in specs},
        )


def _random(
    rng: np.random.Generator, kind: str, shape: tuple[int, ...], dtype: np.dtype[Any]
) -> NDArray[Any]:
    if kind == "zeros":
        return np.zeros(shape, dtype)
    if dtype.kind == "b":
        return rng.integers(0, 2, shape).astype(dtype)
    if dtype.kind in "iu":
        limits = np.iinfo(dtype)
        return rng.integers(limits.min, limits.max, shape, dtype=dtype, endpoint=True)
    if kind == "normal":
        return rng.normal(size=shape).astype(dtype)
    limit = _LARGE if kind == "large" else 1.0
    return rng.uniform(-limit, limit, shape).astype(dtype)


def photo_feed(path: Path, manifest: Manifest) -> Feed:
    """The photo at ``path`` as the model's input, repeated to fill the batch.

    Raises:
        UsageError: the file is no picture, or the manifest does not say how a photo becomes
            the input.
    """
    from mobilenet_tvm.frontend import load_image

    if manifest.preprocessing is None or len(manifest.inputs) != 1:
        raise UsageError(
            f"{manifest.name} does not take photos: its manifest has no preprocessing for "
            f"{', '.join(spec.name for spec in manifest.inputs)}"
        )
    (spec,) = manifest.inputs
    photo = load_image(path, manifest.preprocessing)  # [1, 3, H, W] float32
    batch = np.repeat(photo, spec.shape[0], axis=0)
    if batch.shape != spec.shape or not spec.dtype.startswith("float"):
        raise UsageError(
            f"{manifest.name} does not take photos: {spec.name} is {list(spec.shape)} "
            f"{spec.dtype}, its preprocessing makes {list(batch.shape)} float"
        )
    return {spec.name: batch.astype(spec.dtype)}


def find_images(folder: Path) -> tuple[Path, ...]:
    """The pictures of a folder, by name, not of folders in it; a single file is taken as it is.

    Raises:
        UsageError: there is no such folder, or no picture in it.
    """
    if folder.is_file():
        return (folder,)
    if not folder.is_dir():
        raise UsageError(f"no folder of photos at {folder}")
    found = sorted(path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)
    if not found:
        raise UsageError(f"no photos in {folder}: it has no {', '.join(IMAGE_SUFFIXES)} file")
    return tuple(found)


def shapes_of(manifest: Manifest) -> Mapping[str, tuple[int, ...]]:
    """Input names and shapes, as the reference runners take them."""
    return {spec.name: spec.shape for spec in manifest.inputs}
