"""Export torchvision's and timm's MobileNets with both of torch's exporters.

Runs in an environment of its own (the package's has no torch), and ``exports.py`` reads what it
writes:

    python3.11 -m venv /tmp/exportenv
    /tmp/exportenv/bin/pip install torch==2.14.1 torchvision==0.29.1 timm onnx==1.18.0 onnxscript
    /tmp/exportenv/bin/python benchmarks/export_models.py -o /tmp/exports [--all] [NAME ...]
    .venv/bin/python benchmarks/exports.py /tmp/exports

No trained weights are loaded. The seeded ones are kept alive: BatchNorm's statistics are those
that its layer really has on blurred noise, so activations neither die out nor explode and the
outputs differ from image to image.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import re
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm
import torch
import torchvision

SEED = 0
CALIBRATION_IMAGES = 8


class LrasppOutput(torch.nn.Module):
    """The segmentation map alone: the exporters' outputs are tensors, not a dictionary."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.model(image)["out"]


class SsdliteHeads(torch.nn.Module):
    """SSDLite without its post-processing: boxes and scores of every anchor."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.backbone, self.head = model.backbone, model.head

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        found = self.head(list(self.backbone(image).values()))
        return found["bbox_regression"], found["cls_logits"]


class SsdliteWhole(torch.nn.Module):
    """SSDLite with NonMaxSuppression: its outputs have as many rows as there are objects."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        found = self.model([image[0]])[0]
        return found["boxes"], found["scores"], found["labels"]


def _vision(name: str, **options: Any) -> Callable[[], torch.nn.Module]:
    return lambda: getattr(torchvision.models, name)(weights=None, **options)


def _timm(name: str, **options: Any) -> Callable[[], torch.nn.Module]:
    return lambda: timm.create_model(name, pretrained=False, **options)


def _lraspp() -> torch.nn.Module:
    build = torchvision.models.segmentation.lraspp_mobilenet_v3_large
    return LrasppOutput(build(weights=None, weights_backbone=None))


def _ssdlite(wrap: type[torch.nn.Module]) -> Callable[[], torch.nn.Module]:
    build = torchvision.models.detection.ssdlite320_mobilenet_v3_large
    return lambda: wrap(build(weights=None, weights_backbone=None))


# name -> (make, resolution)
MODELS: dict[str, tuple[Callable[[], torch.nn.Module], int]] = {
    "torchvision.mobilenet_v2": (_vision("mobilenet_v2"), 224),
    "torchvision.mobilenet_v3_large": (_vision("mobilenet_v3_large"), 224),
    "torchvision.mobilenet_v3_small": (_vision("mobilenet_v3_small"), 224),
    "torchvision.lraspp_mobilenet_v3_large": (_lraspp, 224),
    "torchvision.ssdlite320_mobilenet_v3_large.heads": (_ssdlite(SsdliteHeads), 320),
    "torchvision.ssdlite320_mobilenet_v3_large.whole": (_ssdlite(SsdliteWhole), 320),
    "timm.mobilenetv1_100": (_timm("mobilenetv1_100"), 224),
    "timm.mobilenetv2_050": (_timm("mobilenetv2_050"), 224),
    "timm.mobilenetv2_100": (_timm("mobilenetv2_100"), 224),
    "timm.mobilenetv2_140": (_timm("mobilenetv2_140"), 224),
    "timm.mobilenetv3_small_050": (_timm("mobilenetv3_small_050"), 224),
    "timm.mobilenetv3_small_100": (_timm("mobilenetv3_small_100"), 224),
    "timm.mobilenetv3_large_100": (_timm("mobilenetv3_large_100"), 224),
    "timm.mobilenetv3_rw": (_timm("mobilenetv3_rw"), 224),
    "timm.tf_mobilenetv3_small_100": (_timm("tf_mobilenetv3_small_100"), 224),
    "timm.tf_mobilenetv3_large_minimal_100": (_timm("tf_mobilenetv3_large_minimal_100"), 224),
    "timm.mobilenetv4_conv_small": (_timm("mobilenetv4_conv_small"), 224),
    "timm.mobilenetv4_conv_medium": (_timm("mobilenetv4_conv_medium"), 224),
    "timm.mobilenetv4_hybrid_medium": (_timm("mobilenetv4_hybrid_medium"), 224),
    "timm.mobilenetv4_conv_blur_medium": (_timm("mobilenetv4_conv_blur_medium"), 224),
    "timm.mobilenet_edgetpu_100": (_timm("mobilenet_edgetpu_100"), 224),
    "timm.efficientnet_lite0": (_timm("efficientnet_lite0"), 224),
    "timm.mobilenetv3_small_100.features_only": (
        _timm("mobilenetv3_small_100", features_only=True),
        224,
    ),
    "timm.mobilenetv3_small_100.no_classifier": (
        _timm("mobilenetv3_small_100", num_classes=0),
        224,
    ),
    "timm.mobilenetv2_100.no_pooling": (
        _timm("mobilenetv2_100", num_classes=0, global_pool=""),
        224,
    ),
}
# (exporter, opset, batch): what every model is exported as, and with --all.
USUAL = [
    ("dynamo", 18, "dynamic"),
    ("dynamo", 20, "static"),
    ("torchscript", 13, "static"),
    ("torchscript", 17, "dynamic"),
]
ALL = [
    (exporter, opset, batch)
    for exporter, opsets in (
        ("dynamo", (None, 13, 17, 18, 20, 21, 22, 23)),
        ("torchscript", (9, 11, 13, 17, 18, 20)),
    )
    for opset in opsets
    for batch in ("static", "dynamic")
]


def images(count: int, size: int) -> torch.Tensor:
    """Blurred noise ``[count, 3, size, size]``, of mean 0 and deviation 1: neighbours are alike."""
    noise = torch.randn(count, 3, size // 8, size // 8)
    smooth = torch.nn.functional.interpolate(noise, size=(size, size), mode="bilinear")
    return (smooth - smooth.mean()) / smooth.std() + 0.1 * torch.randn_like(smooth)


def keep_alive(model: torch.nn.Module, size: int) -> None:
    """Random affine parts for every BatchNorm, and the statistics that its input has."""
    norms = [m for m in model.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        torch.nn.init.uniform_(norm.weight, 0.5, 1.5)
        torch.nn.init.normal_(norm.bias, 0, 0.3)
        norm.momentum = 1.0
        norm.train()
    with torch.no_grad():
        model(images(CALIBRATION_IMAGES, size))
    model.eval()


def export(
    model: torch.nn.Module, size: int, path: Path, exporter: str, opset: int | None, batch: str
) -> None:
    """Write ``path`` (and ``path``.data) as a user of torch would."""
    # Of size 2: torch.export takes a dynamic dimension of 1 for a constant.
    example = images(2 if batch == "dynamic" else 1, size)
    options: dict[str, Any] = {"input_names": ["input"], "opset_version": opset}
    if exporter == "dynamo":
        options["dynamo"] = True
        if batch == "dynamic":
            options["dynamic_shapes"] = ({0: torch.export.Dim("batch")},)
    else:
        options["dynamo"] = False
        if batch == "dynamic":
            options["dynamic_axes"] = {"input": {0: "batch"}}
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(model, (example,), str(path), **options)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help=f"of {', '.join(MODELS)} (default: all)")
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--all", action="store_true", help="every opset and batch")
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    versions = (
        f"torch {torch.__version__}, torchvision {torchvision.__version__}, timm {timm.__version__}"
    )
    for name in args.names or MODELS:
        make, size = MODELS[name]
        torch.manual_seed(SEED)
        with torch.no_grad():
            model = make().eval()
            if not name.endswith(".whole"):
                keep_alive(model, size)
        for exporter, opset, batch in ALL if args.all else USUAL:
            path = args.output / f"{name}.{exporter}.{opset or 'default'}.{batch}.onnx"
            note = {
                "model": name,
                "exporter": exporter,
                "asked_opset": opset,
                "batch": batch,
                "versions": versions,
                "failed": None,
            }
            if path.with_suffix(".json").exists():
                continue
            started = time.time()
            try:
                export(model, size, path, exporter, opset, batch)
            except Exception as error:
                line = (str(error).strip().splitlines() or [traceback.format_exc()])[0]
                # Without the colours that it would have on a screen.
                plain = re.sub(r"\x1b\[\d*m", "", line)
                note["failed"] = f"{type(error).__name__}: {plain}"
            path.with_suffix(".json").write_text(json.dumps(note))
            print(
                f"{path.name}: {note['failed'] or 'written'}, {time.time() - started:.0f} s",
                flush=True,
            )


if __name__ == "__main__":
    main()
