from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from mobilenet_tvm.build.manifest import TensorSpec
from mobilenet_tvm.errors import UsageError
from mobilenet_tvm.parity.inputs import find_images, photo_feed, random_feeds

SPEC = TensorSpec("x", (1, 3, 8, 8), "float32")


@pytest.fixture
def photo(tmp_path):
    path = tmp_path / "photo.png"
    Image.new("RGB", (64, 48), (255, 0, 127)).save(path)
    return path


def test_every_kind_of_random_input_within_its_range():
    feeds = [feed["x"] for _, feed in random_feeds([SPEC], 6, seed=0)]
    uniform, normal, zeros, large, again_uniform, again_normal = feeds
    assert {feed.shape for feed in feeds} == {(1, 3, 8, 8)}
    assert {feed.dtype for feed in feeds} == {np.dtype("float32")}
    assert 0.9 < np.abs(uniform).max() <= 1
    assert np.abs(normal).max() > 2
    assert not zeros.any()
    assert 200 < np.abs(large).max() <= 255
    assert not np.array_equal(uniform, again_uniform)
    assert not np.array_equal(normal, again_normal)


def test_an_input_depends_on_seed_and_number_alone():
    five = dict(random_feeds([SPEC], 5, seed=3))
    two = dict(random_feeds([SPEC], 2, seed=3))
    assert all(np.array_equal(two[name]["x"], five[name]["x"]) for name in two)
    (other,) = dict(random_feeds([SPEC], 1, seed=4)).values()
    assert not np.array_equal(other["x"], five["random 0 (uniform)"]["x"])


@pytest.mark.parametrize("dtype", ["int8", "uint8", "bool", "float16"])
def test_other_dtypes_fill_their_range(dtype):
    spec = TensorSpec("x", (1000,), dtype)
    ((_, feed),) = random_feeds([spec], 1, seed=0)
    assert feed["x"].dtype == np.dtype(dtype)
    assert len(np.unique(feed["x"])) == (2 if dtype == "bool" else pytest.approx(1000, rel=0.8))


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
