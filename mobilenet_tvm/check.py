"""``python -m mobilenet_tvm.check ARTIFACT``: does it compute what its ONNX model computes?"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mobilenet_tvm.cli.alone import add_build_options, build_alone, given_build_options
from mobilenet_tvm.cli.bisection import bisect_result, feed_again
from mobilenet_tvm.cli.device_options import (
    add_cuda_graph_option,
    add_device_options,
    device_name,
    open_session,
    refuse_cuda_graph,
)
from mobilenet_tvm.cli.frame import Output, VerbFailedError, run_verb
from mobilenet_tvm.cli.options import positive
from mobilenet_tvm.cli.parity_report import print_result, unreadable_message
from mobilenet_tvm.cli.photo_progress import photo_progress
from mobilenet_tvm.errors import MobilenetTvmError, UsageError
from mobilenet_tvm.parity import DEFAULT_KINDS, FAMILIES, KINDS, RUNNERS, check_artifact
from mobilenet_tvm.parity.artifact import MANY_PHOTOS
from mobilenet_tvm.parity.inputs import find_images
from mobilenet_tvm.parity.kinds import resolve
from mobilenet_tvm.parity.npz import find_npz

if TYPE_CHECKING:
    from mobilenet_tvm.devices.rpc import BoardSession


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


# argparse names the type by its __name__: "invalid tolerance value: '-1'".
_tolerance.__name__ = "tolerance"
_count.__name__ = "count"


def _references(text: str) -> list[str]:
    """``onnxruntime,onnx``: a type for argparse."""
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if name not in RUNNERS:
            raise argparse.ArgumentTypeError(f"no reference {name!r}: take {', '.join(RUNNERS)}")
    return names


def _kinds(text: str) -> tuple[str, ...]:
    """``huge,denormal`` or a family: a type for argparse."""
    try:
        return resolve([name.strip() for name in text.split(",")])
    except UsageError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's own arguments."""
    parser.add_argument(
        "artifact",
        type=Path,
        nargs="?",
        metavar="ARTIFACT",
        help="the .so to check (default: the model --onnx, compiled for just this)",
    )
    _add_reference_options(parser.add_argument_group("reference"))
    _add_input_options(parser.add_argument_group("inputs"))
    _add_photo_options(parser.add_argument_group("photos"))
    _add_bisection_options(parser.add_argument_group("bisection"))
    add_cuda_graph_option(add_device_options(parser))
    add_build_options(parser.add_argument_group("with no ARTIFACT, how --onnx is compiled"))


def _add_reference_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--reference",
        type=_references,
        action="extend",
        metavar="NAME[,NAME]",
        help=f"who computes the right answer, of {', '.join(RUNNERS)} (default: onnxruntime; "
        "onnx is ONNX's evaluator, in float64). With several the first decides, and the others "
        "tell who stands alone",
    )
    group.add_argument(
        "--onnx",
        type=Path,
        metavar="FILE",
        help="the model that the artifact was made from, where it is not found by itself",
    )
    group.add_argument(
        "--rtol",
        type=_tolerance,
        metavar="TOLERANCE",
        help="largest error as a share of max |reference| of an output "
        "(default: by dtype, 1e-4 for float32)",
    )


def _add_input_options(group: argparse._ArgumentGroup) -> None:
    families = ", ".join(name for name in FAMILIES if name != "default")
    group.add_argument(
        "--inputs",
        type=_count,
        metavar="N",
        help="how many made-up inputs, of the kinds in turn (default: one of each)",
    )
    group.add_argument(
        "--kinds",
        type=_kinds,
        default=DEFAULT_KINDS,
        metavar="KIND[,KIND]",
        help=f"{', '.join(KINDS)}, or {families} (default: {','.join(DEFAULT_KINDS)})",
    )
    group.add_argument("--seed", type=_count, default=0, help="seed of these (default: 0)")
    group.add_argument(
        "--npz",
        type=Path,
        action="extend",
        nargs="+",
        metavar="PATH",
        help=".npz files, or folders of them: each is one feed, arrays by input name",
    )


def _add_photo_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--images",
        type=Path,
        metavar="DIR",
        help="photos, those in sub-folders too; their best class must be the reference's",
    )
    group.add_argument(
        "--agreement",
        action="store_true",
        help="sum the photos up and name those that differ, on all cores, in place of a line each "
        f"(by itself with more than {MANY_PHOTOS})",
    )
    group.add_argument(
        "--jobs",
        type=positive,
        metavar="N",
        help="processes that --agreement runs (default: one for each core)",
    )
    group.add_argument(
        "--top-k",
        type=positive,
        default=5,
        metavar="K",
        help="report the agreement of the K best classes (default: 5)",
    )


def _add_bisection_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--bisect",
        action="store_true",
        help="run the artifact kernel by kernel and name the first layer that is wrong",
    )
    group.add_argument(
        "--bisect-output",
        type=Path,
        metavar="DIR",
        help="folder for that layer's model, inputs and records (default: ARTIFACT.bisect)",
    )


def run(args: argparse.Namespace, out: Output) -> dict[str, Any]:
    """Check, mark the manifest, print one line an output and the verdict.

    Raises:
        UsageError: the artifact, its model or an input cannot be used.
        VerbFailedError: parity failed, or passed beside pictures that cannot be read; it carries
            the payload.
    """
    device_name(args)  # a contradiction is told before anything is built
    if args.artifact is not None:
        if given := given_build_options(args):
            raise UsageError(f"{', '.join(given)}: only with no ARTIFACT, to compile --onnx")
        return _check(args, args.artifact, args.artifact.with_suffix(".bisect"), out)
    if args.onnx is None:
        raise UsageError("name an ARTIFACT, or a model with --onnx to compile it for just this")
    with tempfile.TemporaryDirectory(prefix="mobilenet_tvm-") as folder:
        artifact = build_alone(args, Path(folder), out)
        return _check(args, artifact, args.onnx.with_suffix(".bisect"), out)


def _check(args: argparse.Namespace, artifact: Path, folder: Path, out: Output) -> dict[str, Any]:
    npz = find_npz(args.npz or ())
    images = find_images(args.images) if args.images else ()
    with open_session(args, artifact) as session:
        return _check_on(session, args, artifact, folder, npz, images, out)


def _check_on(
    session: BoardSession | None,
    args: argparse.Namespace,
    artifact: Path,
    folder: Path,
    npz: Sequence[Path],
    images: Sequence[Path],
    out: Output,
) -> dict[str, Any]:
    """On a board, or here."""
    if session is not None:
        refuse_cuda_graph(args)
        out.line(f"board     {session.cpu_name()} at {session.board}")
    with photo_progress(out.console) as progress:
        result = check_artifact(
            artifact,
            reference=args.reference or ("onnxruntime",),
            onnx=args.onnx,
            inputs=args.inputs,
            kinds=args.kinds,
            npz=npz,
            images=images,
            agreement=args.agreement or None,
            jobs=args.jobs,
            progress=progress,
            tolerance=args.rtol,
            top_k=args.top_k,
            seed=args.seed,
            warn=out.warn,
            session=session,
            cuda_graph=args.cuda_graph,
        )
    print_result(result, out)
    payload = {"artifact": str(args.artifact or args.onnx), **result.as_dict()}
    if args.bisect:
        again = feed_again(
            kinds=args.kinds, inputs=args.inputs, seed=args.seed, npz=npz, images=images
        )
        try:
            payload["bisect"] = bisect_result(
                result,
                artifact,
                again,
                out,
                onnx=args.onnx,
                tolerance=args.rtol,
                folder=args.bisect_output or folder,
                session=session,
            )
        except MobilenetTvmError as error:  # the verdict is there, and counts
            payload["bisect"] = {"error": str(error)}
            out.warn(f"no bisection: {error}")
    if not result:
        raise VerbFailedError(result.summary(), payload)
    out.line(result.summary())
    if payload.get("bisect", {}).get("culprit"):
        raise VerbFailedError("the outputs pass, and a layer is wrong all the same", payload)
    if result.photo_agreement.unreadable_count:
        raise VerbFailedError(unreadable_message(result), payload, UsageError.exit_code)
    return payload


def main(argv: Sequence[str] | None = None) -> int:
    """Run the verb; the exit status is 1 when parity fails."""
    return run_verb(
        "check",
        "Check an artifact against its ONNX model, on made-up inputs, files and photos, and mark "
        "its manifest with the result.",
        add_arguments,
        run,
        argv,
    )


if __name__ == "__main__":
    sys.exit(main())
