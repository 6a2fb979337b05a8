"""How a photo becomes the input of an image classifier."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from mobilenet_tvm.build.manifest import Preprocessing, TensorSpec
from mobilenet_tvm.errors import UsageError


def guess_preprocessing(inputs: Sequence[TensorSpec]) -> Preprocessing | None:
    """What TF-slim MobileNets take, for a single float image input [N, 3, H, W].

    RGB, pixels to -1 ... 1, the largest central square scaled to the input's size (for an
    oblong input, the largest square is scaled to its longer side and cut). None for any
    other input.
    """
    if len(inputs) != 1:
        return None
    spec = inputs[0]
    if len(spec.shape) != 4 or spec.shape[1] != 3 or not spec.dtype.startswith("float"):
        return None
    height, width = spec.shape[2:]
    return Preprocessing(height=height, width=width, resize_shorter=max(height, width))


def load_image(path: Path, preprocessing: Preprocessing) -> npt.NDArray[np.float32]:
    """A photo as [1, 3, H, W] float32, upright, in the colour order asked for.

    The centre is cut from the full-size photo and scaled once (bilinear): the crop and the
    scale of ``Preprocessing``, with no rounding to whole pixels between the two. Greyscale
    is repeated in the three channels, transparent pixels count as white.

    Raises:
        UsageError: the file is missing, or is no image that Pillow reads.
    """
    try:
        with Image.open(path) as opened:
            image = _rgb(ImageOps.exif_transpose(opened))
    except FileNotFoundError:
        raise UsageError(f"there is no image {path}") from None
    except (UnidentifiedImageError, SyntaxError, ValueError):
        raise UsageError(f"{path} is no image: give a PNG, JPEG, WebP or the like") from None
    except (OSError, Image.DecompressionBombError) as error:
        raise UsageError(f"{path} cannot be read as an image: {error}") from None
    size = (preprocessing.width, preprocessing.height)
    per_pixel = min(image.size) / preprocessing.resize_shorter
    # Whole pixels of the photo: what is cut is what is shown, and nothing is blurred twice.
    cut = [max(1, round(length * per_pixel)) for length in size]
    left, top = ((have - want) // 2 for have, want in zip(image.size, cut, strict=True))
    image = image.crop((left, top, left + cut[0], top + cut[1]))
    pixels = np.asarray(image.resize(size, Image.Resampling.BILINEAR), np.float32) / 255
    if preprocessing.color == "BGR":
        pixels = pixels[..., ::-1]
    mean, std = (np.array(c, np.float32) for c in (preprocessing.mean, preprocessing.std))
    scaled = (pixels - mean) / std
    return np.ascontiguousarray(scaled.transpose(2, 0, 1)[None], np.float32)


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):  # Pillow would clip 16-bit greyscale at 255
        grey = np.asarray(image, np.uint16) >> 8
        return Image.fromarray(grey.astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")
