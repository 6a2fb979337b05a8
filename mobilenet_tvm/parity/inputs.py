"""Photos as inputs of a parity check; what is made up is in ``kinds``, files are in ``npz``."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from mobilenet_tvm.build.manifest import Manifest, Preprocessing, TensorSpec
from mobilenet_tvm.errors import UsageError
from mobilenet_tvm.parity.kinds import Feed

IMAGE_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")


def photo_input(manifest: Manifest) -> tuple[TensorSpec, Preprocessing]:
    """The one input that a photo goes to, and how.

    Raises:
        UsageError: the model takes no photos, or the manifest does not say how.
    """
    preprocessing = manifest.preprocessing
    if preprocessing is None or len(manifest.inputs) != 1:
        raise UsageError(
            f"{manifest.name} does not take photos: its manifest has no preprocessing for "
            f"{', '.join(spec.name for spec in manifest.inputs)}"
        )
    (spec,) = manifest.inputs
    made = (*spec.shape[:1], 3, preprocessing.height, preprocessing.width)
    if made != spec.shape or not spec.dtype.startswith("float"):
        raise UsageError(
            f"{manifest.name} does not take photos: {spec.name} is {list(spec.shape)} "
            f"{spec.dtype}, its preprocessing makes {list(made)} float"
        )
    return spec, preprocessing


def photo_feed(path: Path, manifest: Manifest) -> Feed:
    """The photo at ``path`` as the model's input, repeated to fill the batch.

    Raises:
        UsageError: the file is no picture, or the model takes no photos.
    """
    from mobilenet_tvm.frontend import load_image

    spec, preprocessing = photo_input(manifest)
    photo = load_image(path, preprocessing)  # [1, 3, H, W] float32
    return {spec.name: np.repeat(photo, spec.shape[0], axis=0).astype(spec.dtype)}


def find_images(folder: Path) -> tuple[Path, ...]:
    """The pictures of a folder and of all folders in it; a single file is taken as it is.

    Sorted by path. What is hidden (its name begins with a dot) is left out: thumbnails, and
    the ``._x.jpg`` that macOS leaves beside a picture.

    Raises:
        UsageError: there is no such folder, or no picture in it.
    """
    if folder.is_file():
        return (folder,)
    if not folder.is_dir():
        raise UsageError(f"no folder of photos at {folder}")
    found: list[str] = []
    seen: set[tuple[int, int]] = set()
    # Class folders are often links to where a data set lies; one that leads back is not followed.
    for where, folders, files in os.walk(folder, followlinks=True):
        status = os.stat(where)
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [
            os.path.join(where, name)
            for name in files
            if name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith(".")
        ]
    if not found:
        raise UsageError(f"no photos in {folder}: it has no {', '.join(IMAGE_SUFFIXES)} file")
    return tuple(map(Path, sorted(found)))


def photo_names(images: Sequence[Path]) -> tuple[str, ...]:
    """A name for each picture: its path below the folder that all are in."""
    if not images:
        return ()
    common = Path(os.path.commonpath([path.parent for path in images]))
    return tuple(str(path.relative_to(common)) for path in images)


def shapes_of(manifest: Manifest) -> Mapping[str, tuple[int, ...]]:
    """Input names and shapes, as the reference runners take them."""
    return {spec.name: spec.shape for spec in manifest.inputs}
