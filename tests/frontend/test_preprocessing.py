"""Photos become inputs: the real V1 recognises them with the figures that come with it."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
from PIL import Image

from mobilenet_tvm import frontend
from mobilenet_tvm.build.manifest import Preprocessing, TensorSpec
from mobilenet_tvm.errors import UsageError

# ImageNet index + 1 (class 0 is the background): probability.
EXPECTED = {
    "chelsea.png": {286: 0.53, 282: 0.29, 283: 0.16},  # Egyptian cat, tabby, tiger cat
    "coffee.png": {968: 0.97},  # espresso
    "rocket.jpg": {658: 0.53},  # missile
    "camera.png": {873: 1.00},  # tripod, from a greyscale photo
}
SMALL = Preprocessing(height=4, width=4, resize_shorter=4)


@pytest.mark.parametrize("photo", EXPECTED)
def test_real_v1_on_photos(photo, shared_models, shared_images, reference):
    path = shared_models / "mobilenet_v1_1.0_224_imagenet1001.onnx"
    clean = frontend.clean(frontend.read(path))
    preprocessing = frontend.guess_preprocessing(clean.inputs)
    assert preprocessing is not None
    data = frontend.load_image(shared_images / photo, preprocessing)
    assert data.shape == (1, 3, 224, 224)
    logits = reference(clean.proto, data)[0][0].astype(np.float64)
    probabilities = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
    expected = EXPECTED[photo]
    assert int(probabilities.argmax()) == next(iter(expected))
    for index, probability in expected.items():
        assert probabilities[index] == pytest.approx(probability, abs=0.02)


def test_guess():
    spec = TensorSpec("input", (2, 3, 160, 128), "float32")
    assert frontend.guess_preprocessing([spec]) == Preprocessing(160, 128, 160)
    for other in (
        TensorSpec("input", (1, 1, 28, 28), "float32"),
        TensorSpec("input", (1, 224, 224, 3), "float32"),
        TensorSpec("input", (1, 3, 224), "float32"),
        TensorSpec("input", (1, 3, 224, 224), "uint8"),
    ):
        assert frontend.guess_preprocessing([other]) is None
    assert frontend.guess_preprocessing([spec, spec]) is None
    assert frontend.guess_preprocessing([]) is None


def save(path, pixels, mode=None, **options):
    image = Image.fromarray(np.asarray(pixels, np.uint8))
    (image.convert(mode) if mode else image).save(path, **options)
    return path


def test_range_order_and_layout(tmp_path):
    pixels = np.zeros((4, 4, 3))
    pixels[..., 0] = 255
    pixels[..., 1] = 51
    pixels[0, 0, 2] = 255
    path = save(tmp_path / "a.png", pixels)
    data = frontend.load_image(path, SMALL)
    assert data.dtype == np.float32
    assert data.flags.c_contiguous
    assert data.shape == (1, 3, 4, 4)
    np.testing.assert_allclose(data[0, :, 1, 1], [1, -0.6, -1], atol=1e-6)
    assert data[0, 2, 0, 0] == 1
    turned = frontend.load_image(path, msgspec.structs.replace(SMALL, color="BGR"))
    np.testing.assert_array_equal(turned, data[:, ::-1])


def test_mean_and_std_by_channel(tmp_path):
    path = save(tmp_path / "a.png", np.full((4, 4, 3), 255))
    options = msgspec.structs.replace(SMALL, mean=(0.0, 0.5, 0.75), std=(1.0, 0.25, 0.5))
    np.testing.assert_allclose(frontend.load_image(path, options)[0, :, 0, 0], [1, 2, 0.5])


@pytest.mark.parametrize("turn", [False, True])
def test_the_centre_is_cut(tmp_path, turn):
    pixels = np.zeros((8, 20, 3))
    pixels[:, 6:14] = 255  # the central square is white
    path = save(tmp_path / "a.png", pixels.transpose(1, 0, 2) if turn else pixels)
    assert (frontend.load_image(path, SMALL) == 1).all()


def test_a_larger_shorter_side_cuts_closer(tmp_path):
    pixels = np.zeros((8, 8, 3))
    pixels[2:6, 2:6] = 255
    path = save(tmp_path / "a.png", pixels)
    closer = msgspec.structs.replace(SMALL, resize_shorter=8)
    assert (frontend.load_image(path, closer) == 1).all()
    assert (frontend.load_image(path, SMALL) < 1).any()


def test_photos_smaller_than_the_input(tmp_path):
    path = save(tmp_path / "a.png", np.full((1, 3, 3), 255))
    assert (frontend.load_image(path, SMALL) == 1).all()


def test_oblong_input(tmp_path):
    preprocessing = frontend.guess_preprocessing([TensorSpec("x", (1, 3, 48, 192), "float32")])
    path = save(tmp_path / "a.png", np.full((100, 300, 3), 255))
    data = frontend.load_image(path, preprocessing)
    assert data.shape == (1, 3, 48, 192)
    assert (data == 1).all()


def test_exif_orientation(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    pixels = np.zeros((4, 4, 3))
    pixels[:2] = 255  # white above: on the right once upright
    data = frontend.load_image(save(tmp_path / "a.png", pixels, exif=exif), SMALL)
    assert (data[0, :, :, 2:] == 1).all()
    assert (data[0, :, :, :2] == -1).all()


@pytest.mark.parametrize("mode", ["L", "1", "P", "LA", "RGBA", "CMYK"])
def test_modes(tmp_path, mode):
    suffix = ".tiff" if mode == "CMYK" else ".png"
    path = save(tmp_path / f"a{suffix}", np.full((4, 4, 3), 255), mode)
    assert (frontend.load_image(path, SMALL) == 1).all()


def test_transparent_is_white(tmp_path):
    path = save(tmp_path / "a.png", np.zeros((4, 4, 4)))
    assert (frontend.load_image(path, SMALL) == 1).all()


def test_sixteen_bit_greyscale(tmp_path):
    Image.fromarray(np.full((4, 4), 0x8000, np.uint16)).save(tmp_path / "a.png")
    data = frontend.load_image(tmp_path / "a.png", SMALL)
    np.testing.assert_allclose(data, 128 / 127.5 - 1, atol=1e-6)


@pytest.mark.parametrize("content", [b"", b"no image at all", "cut"])
def test_no_image(tmp_path, content):
    path = tmp_path / "photo.png"
    if content == "cut":
        noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3))
        content = save(path, noise).read_bytes()[:4000]
    path.write_bytes(content)
    with pytest.raises(UsageError) as caught:
        frontend.load_image(path, SMALL)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_image_and_folder(tmp_path):
    for path in (tmp_path / "none.png", tmp_path):
        with pytest.raises(UsageError, match=str(path)):
            frontend.load_image(path, SMALL)
