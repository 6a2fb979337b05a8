"""``python -m mobilenet_tvm.run ARTIFACT IMAGE ...``: what is in the photo?"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from mobilenet_tvm.build.manifest import Manifest
from mobilenet_tvm.cli.device_options import (
    add_cuda_graph_option,
    add_device_options,
    open_session,
    refuse_cuda_graph,
)
from mobilenet_tvm.cli.frame import Output, run_verb
from mobilenet_tvm.errors import UsageError
from mobilenet_tvm.parity.inputs import photo_feed
from mobilenet_tvm.parity.scores import Scores, as_scores, best, probabilities

if TYPE_CHECKING:
    from mobilenet_tvm.runtime import Module

TOP_K = 5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's own arguments."""
    parser.add_argument("artifact", type=Path, metavar="ARTIFACT", help="the .so to run")
    parser.add_argument("images", type=Path, nargs="+", metavar="IMAGE", help="photos")
    parser.add_argument(
        "--labels",
        type=Path,
        metavar="FILE",
        help="names of the classes, one a line (default: those in the manifest)",
    )
    add_cuda_graph_option(add_device_options(parser))


def run(args: argparse.Namespace, out: Output) -> dict[str, Any]:
    """Print the five best classes of each photo.

    Raises:
        UsageError: the artifact, a photo or the labels cannot be used.
        DeviceError: the board cannot be had, or was lost.
    """
    from mobilenet_tvm.runtime import load, load_remote
    from mobilenet_tvm.runtime.gpus import device_info

    labels = read_labels(args.labels) if args.labels else None
    with open_session(args, args.artifact) as session:
        if session is None:
            module = load(args.artifact, cuda_graph=args.cuda_graph)
            if (device := device_info(module.manifest)) is not None:
                out.line(f"on {device.cpu}")
        else:
            refuse_cuda_graph(args)
            module = load_remote(session, args.artifact)
            out.line(f"on {session.cpu_name()} at {session.board}")
        return _classify(args, module, labels, out)


def _classify(
    args: argparse.Namespace, module: Module, labels: tuple[str, ...] | None, out: Output
) -> dict[str, Any]:
    labels = labels or module.manifest.labels
    images = []
    for path in args.images:
        scores = class_scores(module.run(photo_feed(path, module.manifest)), module.manifest)
        top = top_classes(scores, labels)
        images.append({"image": str(path), "top": top})
        out.line(str(path))
        for entry in top:
            name = f"  {entry['label']}" if entry["label"] is not None else ""
            out.line(f"  {entry['probability']:6.1%}  class {entry['index']}{name}")
    return {"artifact": str(args.artifact), "images": images}


def read_labels(path: Path) -> tuple[str, ...]:
    """The labels in a text file, line ``i`` that of class ``i``.

    Raises:
        UsageError: the file cannot be read, is no text, or is empty.
    """
    try:
        labels = path.read_text(encoding="utf-8-sig").rstrip().splitlines()
    except OSError as error:
        raise UsageError(f"cannot read the labels in {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UsageError(f"{path} is no text file: --labels wants one label a line") from None
    if not labels:
        raise UsageError(f"{path} is empty: --labels wants one label a line")
    return tuple(label.strip() for label in labels)


def class_scores(outputs: Mapping[str, NDArray[Any]], manifest: Manifest) -> Scores:
    """The first output of class scores, its first row: ``[1, C] float64``.

    Raises:
        UsageError: no output is one of class scores.
    """
    for spec in manifest.outputs:
        scores = as_scores(outputs[spec.name])
        if scores is not None:
            return scores[:1]  # the photo was repeated to fill the batch
    shapes = ", ".join(f"{spec.name} {list(spec.shape)}" for spec in manifest.outputs)
    raise UsageError(
        f"{manifest.name} has no class scores [N, C] among its outputs ({shapes}): "
        "use mobilenet_tvm.load(...).run"
    )


def top_classes(scores: Scores, labels: Sequence[str] | None) -> list[dict[str, Any]]:
    """The best classes of ``[1, C]`` as ``{"index", "label", "probability"}``, best first.

    Raises:
        UsageError: there is not one label for each class.
    """
    count = scores.shape[1]
    if labels is not None and len(labels) != count:
        raise UsageError(
            f"{len(labels)} labels for {count} classes: give one label a class"
            + (" (class 0 is the background here?)" if len(labels) == count - 1 else "")
        )
    chances = probabilities(scores)[0]
    return [
        {
            "index": int(index),
            "label": labels[index] if labels is not None else None,
            "probability": float(chances[index]),
        }
        for index in best(scores, TOP_K)[0]
    ]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the verb."""
    return run_verb(
        "run",
        "Run an artifact on photos and print the five best classes of each.",
        add_arguments,
        run,
        argv,
    )


if __name__ == "__main__":
    sys.exit(main())
