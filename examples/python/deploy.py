"""Classifies pictures with a .so of mobilenet_tvm's and nothing but TVM's runtime and numpy.

python deploy.py MODEL.so PHOTO ...     a photo (with Pillow), or the input tensor as .npy
"""

import json
import os
import sys
from pathlib import Path

# The runtime library of the wheel alone: it loads faster and needs no LLVM.
os.environ["TVM_USE_RUNTIME_LIB"] = "1"

import numpy as np
import tvm
from tvm.contrib import graph_executor


def load_photo(path: Path, how: dict) -> np.ndarray:
    """A photo as the model's input [1, 3, H, W], as the manifest's ``preprocessing`` says."""
    if path.suffix == ".npy":
        return np.load(path)
    from PIL import Image

    image = Image.open(path).convert("RGB")
    scale = min(image.size) / how["resize_shorter"]
    cut = [round(how[side] * scale) for side in ("width", "height")]
    left, top = ((have - want) // 2 for have, want in zip(image.size, cut, strict=True))
    box = (left, top, left + cut[0], top + cut[1])
    image = image.crop(box).resize((how["width"], how["height"]), Image.Resampling.BILINEAR)
    pixels = np.asarray(image, np.float32) / 255
    if how["color"] == "BGR":
        pixels = pixels[..., ::-1]
    pixels = (pixels - np.float32(how["mean"])) / np.float32(how["std"])
    return np.ascontiguousarray(pixels.transpose(2, 0, 1)[None])


def main() -> None:
    """Print the best class of every picture."""
    artifact, *photos = map(Path, sys.argv[1:])
    name = artifact.name.removesuffix(".so")
    manifest = json.loads(artifact.with_name(f"{name}.manifest.json").read_text())
    library = tvm.runtime.load_module(str(artifact.resolve()))
    module = graph_executor.GraphModule(library["default"](tvm.cpu(0)))
    for photo in photos:
        image = load_photo(photo, manifest["preprocessing"])
        module.set_input(manifest["inputs"][0]["name"], image)
        module.run()
        scores = module.get_output(0).numpy()[0]
        best = int(scores.argmax())
        label = manifest["labels"][best] if manifest["labels"] else ""
        print(f"{photo.name}: class {best}, score {scores[best]:.4f} {label}".rstrip())


if __name__ == "__main__":
    main()
