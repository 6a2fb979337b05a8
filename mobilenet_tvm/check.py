"""``python -m mobilenet_tvm.check ARTIFACT``: does it compute what its ONNX model computes?"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mobilenet_tvm.cli.frame import Output, VerbFailedError, run_verb
from mobilenet_tvm.parity import RUNNERS, check_artifact
from mobilenet_tvm.parity.inputs import find_images


def _tolerance(text: str) -> float:
    value = float(text)
    if not (value >= 0 and math.isfinite(value)):
        raise ValueError
    return value


def _count(text: str) -> int:
    value = int(text)
    if value < 0:
        raise ValueError
    return value


def _positive_count(text: str) -> int:
    value = _count(text)
    if value == 0:
        raise ValueError
    return value


# argparse names the type by its __name__: "invalid tolerance value: '-1'".
_tolerance.__name__ = "tolerance"
_count.__name__ = "count"
_positive_count.__name__ = "count"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's own arguments."""
    parser.add_argument("artifact", type=Path, metavar="ARTIFACT", help="the .so to check")
    parser.add_argument(
        "--reference",
        choices=tuple(RUNNERS),
        default="onnxruntime",
        help="who computes the right answer (default: onnxruntime; onnx is slow, in float64)",
    )
    parser.add_argument(
        "--rtol",
        type=_tolerance,
        metavar="TOLERANCE",
        help="largest error as a share of max |reference| of an output "
        "(default: by dtype, 1e-4 for float32)",
    )
    parser.add_argument(
        "--top-k",
        type=_positive_count,
        default=5,
        metavar="K",
        help="report the agreement of the K best classes (default: 5)",
    )
    parser.add_argument(
        "--images",
        type=Path,
        metavar="DIR",
        help="photos to check as well; their best class must be the reference's",
    )
    parser.add_argument(
        "--onnx",
        type=Path,
        metavar="FILE",
        help="the model that the artifact was made from, where it is not found by itself",
    )
    parser.add_argument(
        "--seed", type=_count, default=0, help="seed of the random inputs (default: 0)"
    )
    parser.add_argument(
        "--inputs",
        type=_count,
        default=5,
        metavar="N",
        help="how many random inputs (default: 5)",
    )


def run(args: argparse.Namespace, out: Output) -> dict[str, Any]:
    """Check, mark the manifest, print one line an output and the verdict.

    Raises:
        UsageError: the artifact, its model or a photo cannot be used.
        VerbFailedError: parity failed; it carries the payload.
    """
    result = check_artifact(
        args.artifact,
        reference=args.reference,
        onnx=args.onnx,
        inputs=args.inputs,
        images=find_images(args.images) if args.images else (),
        tolerance=args.rtol,
        top_k=args.top_k,
        seed=args.seed,
        warn=out.warn,
    )
    for case in result.cases:
        for line in str(case.comparison).splitlines():
            out.line(f"{case.name}: {line}")
    for warning in result.warnings:
        out.warn(warning)
    payload = {"artifact": str(args.artifact), **result.as_dict()}
    if not result:
        for failure in result.failures[1:]:  # the summary says the first
            out.line(failure)
        raise VerbFailedError(result.summary(), payload)
    out.line(result.summary())
    return payload


def main(argv: Sequence[str] | None = None) -> int:
    """Run the verb; the exit status is 1 when parity fails."""
    return run_verb(
        "check",
        "Check an artifact against its ONNX model, on random inputs and on photos, and mark "
        "its manifest with the result.",
        add_arguments,
        run,
        argv,
    )


if __name__ == "__main__":
    sys.exit(main())
