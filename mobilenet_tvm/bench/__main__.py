"""``python -m mobilenet_tvm.bench``: time artifacts side by side, and against other runtimes."""

from __future__ import annotations

import argparse
import importlib.metadata
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mobilenet_tvm.bench.alternate import DEFAULT_ROUNDS, Contender, check_threads, compare
from mobilenet_tvm.bench.protocol import ContenderKind
from mobilenet_tvm.bench.reference import reference_model
from mobilenet_tvm.bench.results import table
from mobilenet_tvm.build.manifest import Manifest, read_manifest
from mobilenet_tvm.cli.frame import Output, run_verb
from mobilenet_tvm.errors import UsageError
from mobilenet_tvm.targets import physical_cores

# Runtimes that a model can be held against: the distribution's name, and its own.
PEERS: dict[ContenderKind, str] = {"onnxruntime": "ONNX Runtime"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's options."""
    parser.add_argument("artifacts", nargs="+", type=Path, metavar="ARTIFACT", help="a .so")
    parser.add_argument(
        "--against",
        default="",
        metavar="PEER,...",
        help=f"other runtimes to run the same ONNX model in: {', '.join(PEERS)}",
    )
    parser.add_argument(
        "--onnx",
        type=Path,
        metavar="FILE",
        help="the model's file, where the artifact's manifest no longer leads to it",
    )
    parser.add_argument("--threads", metavar="N,...", help="default: 1 and all cores")
    parser.add_argument(
        "--rounds", type=int, default=DEFAULT_ROUNDS, metavar="N", help="default: %(default)s"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the input and the order of turns")


def run(args: argparse.Namespace, out: Output) -> dict[str, Any]:
    """Time what was asked for, print the table, return the result as plain values."""
    peers = parse_peers(args.against)
    threads = parse_threads(args.threads)
    contenders, manifest = artifact_contenders(args.artifacts)
    with tempfile.TemporaryDirectory() as folder:
        try:
            model, mult_adds = reference_model(manifest, args.onnx, Path(folder))
        except UsageError as error:
            if peers:
                raise
            out.warn(f"no GFLOP/s: {error}")
            mult_adds = None
        else:
            contenders += [Contender(_peer_label(peer), peer, str(model)) for peer in peers]
        total = len(threads) * args.rounds
        with out.console.status("starting the workers", refresh_per_second=1) as status:

            def on_round(count: int, done: int) -> None:
                finished = threads.index(count) * args.rounds + done
                status.update(f"round {finished} of {total} ({count} threads)")

            result = compare(
                contenders,
                threads=threads,
                rounds=args.rounds,
                mult_adds=mult_adds,
                seed=args.seed,
                on_round=on_round,
            )
    out.console.print(table(result))
    for warning in result.warnings:
        out.warn(warning)
    return result.as_dict()


def parse_peers(text: str) -> list[ContenderKind]:
    """``"onnxruntime"`` -> ``["onnxruntime"]``; UsageError names the known ones."""
    wanted = {peer.strip() for peer in text.split(",") if peer.strip()}
    for peer in sorted(wanted.difference(PEERS)):
        raise UsageError(f"--against {peer}: unknown, the known ones are {', '.join(PEERS)}")
    return [peer for peer in PEERS if peer in wanted]


def parse_threads(text: str | None) -> list[int]:
    """``"1,2"`` -> ``[1, 2]``; None is 1 and all cores. UsageError for what cannot be run."""
    if text is None:
        return sorted({1, physical_cores()})
    try:
        threads = [int(part) for part in text.split(",")]
    except ValueError:
        raise UsageError(f"--threads {text}: give whole numbers, e.g. --threads 1,2") from None
    check_threads(threads)
    return threads


def artifact_contenders(paths: Sequence[Path]) -> tuple[list[Contender], Manifest]:
    """A contender for each artifact, labelled by its file, and the first one's manifest.

    Raises:
        UsageError: an artifact cannot be used, is named twice, or is of another model.
    """
    manifests = [read_manifest(path) for path in paths]
    if len({path.resolve() for path in paths}) < len(paths):
        raise UsageError("an artifact is named twice")
    for path, manifest in zip(paths, manifests, strict=True):
        if manifest.model.digest != manifests[0].model.digest:
            raise UsageError(
                f"{path} is of another model than {paths[0]}: compare builds of one model at a time"
            )
    stems = [path.stem for path in paths]
    unique = len(set(stems)) == len(stems)
    labels = stems if unique else [str(path) for path in paths]
    contenders = [
        Contender(label, "artifact", str(path)) for label, path in zip(labels, paths, strict=True)
    ]
    return contenders, manifests[0]


def _peer_label(peer: ContenderKind) -> str:
    return f"{PEERS[peer]} {importlib.metadata.version(peer)}"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the verb; the exit status is the frame's."""
    return run_verb(
        "bench",
        "Time artifacts side by side, and against other runtimes, in alternating rounds.",
        add_arguments,
        run,
        argv,
    )


if __name__ == "__main__":
    sys.exit(main())
