"""What the examples run on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mobilenet_tvm import frontend
from mobilenet_tvm.build.manifest import Preprocessing
from mobilenet_tvm.devices import qemu
from tests.conftest import REPO

EXAMPLES = REPO / "examples"


@pytest.fixture(scope="session")
def board() -> qemu.QemuRuntime:
    """The emulated aarch64 board; the network is not for tests to use."""
    if not qemu.is_set_up():
        pytest.skip(f"the emulated board is {qemu.why_not()}")
    return qemu.runtime(set_up=False)


def ppm_of(photo: Path, folder: Path) -> Path:
    """The photo as the C example reads it, by the command in examples/README.md."""
    from PIL import Image

    path = folder / f"{photo.stem}.ppm"
    Image.open(photo).convert("RGB").save(path)
    return path


def tensor_of(photo: Path, how: Preprocessing, folder: Path) -> tuple[Path, np.ndarray]:
    """The photo as the model's input: raw float32, and as an array."""
    image = frontend.load_image(photo, how)
    path = folder / f"{photo.stem}.f32"
    image.tofile(path)
    return path, image
