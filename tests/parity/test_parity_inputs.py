from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from mobilenet_tvm.build.manifest import TensorSpec
from mobilenet_tvm.errors import UsageError
from mobilenet_tvm.parity.inputs import find_images, photo_feed, photo_names

SPEC = TensorSpec("x", (1, 3, 8, 8), "float32")


@pytest.fixture
def photo(tmp_path):
    path = tmp_path / "photo.png"
    Image.new("RGB", (64, 48), (255, 0, 127)).save(path)
    return path


def test_a_photo_fills_the_batch(make_manifest, photo):
    manifest = make_manifest(inputs=(TensorSpec("input", (3, 3, 32, 32), "float32"),))
    batch = photo_feed(photo, manifest)["input"]
    assert batch.shape == (3, 3, 32, 32)
    assert np.array_equal(batch[0], batch[2])
    assert batch[0, :, 16, 16] == pytest.approx([1, -1, 0], abs=0.01)


@pytest.mark.parametrize(
    "changes",
    [
        {"preprocessing": None},
        {"inputs": (SPEC, TensorSpec("y", (1,), "float32"))},
        {"inputs": (TensorSpec("input", (1, 3, 64, 32), "float32"),)},
        {"inputs": (TensorSpec("input", (1, 3, 32, 32), "uint8"),)},
    ],
)
def test_a_model_that_takes_no_photos_says_so(make_manifest, photo, changes):
    with pytest.raises(UsageError, match="tiny does not take photos"):
        photo_feed(photo, make_manifest(**changes))


def test_the_photos_of_a_folder(tmp_path, photo):
    (tmp_path / "notes.txt").write_text("no photo")
    (tmp_path / "another.JPG").touch()
    assert find_images(tmp_path) == (tmp_path / "another.JPG", photo)
    assert find_images(photo) == (photo,)


def test_a_folder_without_photos_is_refused(tmp_path):
    with pytest.raises(UsageError, match="no photos in"):
        find_images(tmp_path)
    with pytest.raises(UsageError, match="no folder of photos at"):
        find_images(tmp_path / "nowhere")


def test_photos_of_class_folders_are_named_by_their_path(tmp_path, photo):
    for where in ("cat/a.png", "dog/deep/a.JPEG", ".thumbnails/a.png", "cat/._a.png"):
        (tmp_path / where).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / where).touch()
    images = find_images(tmp_path)
    assert photo_names(images) == ("cat/a.png", "dog/deep/a.JPEG", "photo.png")
    assert photo_names(find_images(tmp_path / "cat")) == ("a.png",)
    assert photo_names([]) == ()


def test_a_linked_folder_is_followed_once(tmp_path):
    data = tmp_path / "data" / "cat"
    data.mkdir(parents=True)
    (data / "a.png").touch()
    (data / "back").symlink_to(tmp_path / "data", target_is_directory=True)
    folder = tmp_path / "photos"
    folder.mkdir()
    (folder / "cat").symlink_to(data, target_is_directory=True)
    assert [path.name for path in find_images(folder)] == ["a.png"]
