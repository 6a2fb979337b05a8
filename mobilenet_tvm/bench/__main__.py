"""``python -m mobilenet_tvm.bench``: time artifacts side by side, and against other runtimes."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mobilenet_tvm import targets
from mobilenet_tvm.bench.alternate import DEFAULT_ROUNDS, Contender, check_threads, compare
from mobilenet_tvm.bench.gpu import compare_on_gpu, require_gpu
from mobilenet_tvm.bench.gpu_peers import PEERS, installed_version
from mobilenet_tvm.bench.gpu_results import GpuBenchResult, gpu_table
from mobilenet_tvm.bench.layer_table import print_layers
from mobilenet_tvm.bench.layers import profile_layers
from mobilenet_tvm.bench.protocol import ContenderKind
from mobilenet_tvm.bench.reference import reference_model
from mobilenet_tvm.bench.results import BenchResult, table
from mobilenet_tvm.bench.untuned import build_untuned
from mobilenet_tvm.build.manifest import Manifest, read_manifest
from mobilenet_tvm.cli.frame import Output, run_verb
from mobilenet_tvm.errors import UsageError
from mobilenet_tvm.targets import physical_cores

# Runtimes on the CPU that a model can be held against: as PEERS and whoever uses them call them.
CPU_PEERS: dict[ContenderKind, str] = {"onnxruntime": "ONNX Runtime"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's options."""
    parser.add_argument("artifacts", nargs="+", type=Path, metavar="ARTIFACT", help="a .so")
    parser.add_argument(
        "--target",
        metavar="PRESET",
        help="refuse artifacts for anything else, e.g. cuda (default: what they were compiled for)",
    )
    parser.add_argument(
        "--against",
        metavar="PEER,...",
        help="other runtimes to run the same ONNX model in: onnxruntime, and on a GPU tensorrt "
        "and torch as well (default: on a GPU all, else none)",
    )
    parser.add_argument(
        "--untuned",
        action="store_true",
        help="compile the model without records, too: our schedules and TVM's",
    )
    parser.add_argument(
        "--cuda-graph",
        action="store_true",
        help="on a GPU, time each contender that can launch an inference at once that way, too",
    )
    parser.add_argument(
        "--onnx",
        type=Path,
        metavar="FILE",
        help="the model's file, where the artifact's manifest no longer leads to it",
    )
    parser.add_argument(
        "--layers",
        action="store_true",
        help="instead: time each kernel of one artifact, and say how far it is from what its "
        "FLOPs and bytes take at least; for the CPU",
    )
    parser.add_argument("--threads", metavar="N,...", help="default: 1 and all cores; not on a GPU")
    parser.add_argument(
        "--rounds", type=int, default=DEFAULT_ROUNDS, metavar="N", help="default: %(default)s"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the input and the order of turns")


def run(args: argparse.Namespace, out: Output) -> dict[str, Any]:
    """Time what was asked for, print the table, return the result as plain values."""
    peers, threads = parse_peers(args.against), parse_threads(args.threads)
    if args.layers:
        return _profile(args, threads, out)
    contenders, manifest = artifact_contenders(args.artifacts)
    on_gpu = _on_gpu(args.artifacts, args.target)
    if on_gpu:
        require_gpu()
        if args.threads is not None:
            raise UsageError("--threads is for the CPU: leave it out")
        peers = list(PEERS) if peers is None else peers
    else:
        if args.cuda_graph:
            raise UsageError(f"--cuda-graph: {args.artifacts[0]} is for the CPU")
        peers = peers or []
        for peer in peers:
            if peer not in CPU_PEERS:
                raise UsageError(f"--against {peer}: on the CPU there is {', '.join(CPU_PEERS)}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        try:
            model, mult_adds = reference_model(manifest, args.onnx, folder)
        except UsageError as error:
            if args.untuned or (peers and args.against):
                raise
            out.warn(f"no GFLOP/s{' and no other runtime' if peers else ''}: {error}")
            model, mult_adds = None, None
        if args.untuned and model is not None:
            with out.working("compiling the untuned modules to compare with"):
                built = build_untuned(manifest, model, folder)
            contenders += [Contender(label, "artifact", str(path)) for label, path in built]
        time_them = _time_on_gpu if on_gpu else _time_on_cpu
        with out.console.status("starting the workers", refresh_per_second=1) as status:
            result = time_them(args, contenders, peers, threads, model, mult_adds, status.update)
    out.console.print(gpu_table(result) if isinstance(result, GpuBenchResult) else table(result))
    for warning in result.warnings:
        out.warn(warning)
    return result.as_dict()


def _profile(args: argparse.Namespace, threads: Sequence[int], out: Output) -> dict[str, Any]:
    """``--layers``: a table for each number of threads, all of them in the payload."""
    others = ("against", "untuned", "cuda_graph", "onnx")
    for option in others:
        if getattr(args, option):
            raise UsageError(f"--{option.replace('_', '-')}: --layers looks at one artifact alone")
    if len(args.artifacts) > 1:
        raise UsageError(f"--layers: {len(args.artifacts)} artifacts are named, give it one")
    path = args.artifacts[0]
    if _on_gpu([path], args.target):
        raise UsageError(f"--layers is for the CPU, and {path} is for a GPU")
    profiles = []
    for count in threads:
        with out.console.status("starting the worker", refresh_per_second=1) as status:

            def say(done: int) -> None:
                status.update(f"round {done} of {args.rounds} ({count} threads)")  # noqa: B023

            profile = profile_layers(
                path, threads=count, rounds=args.rounds, seed=args.seed, on_round=say
            )
        print_layers(out.console, profile)
        for warning in profile.warnings:
            out.warn(warning)
        profiles.append(profile.as_dict())
    return {"profiles": profiles}


def _time_on_cpu(
    args: argparse.Namespace,
    contenders: list[Contender],
    peers: Sequence[str],
    threads: Sequence[int],
    model: Path | None,
    mult_adds: int | None,
    say: Callable[[str], None],
) -> BenchResult:
    if model is not None:
        contenders = contenders + [
            Contender(f"{title} {installed_version(PEERS[peer])}".strip(), peer, str(model))
            for peer, title in CPU_PEERS.items()
            if peer in peers
        ]
    total = len(threads) * args.rounds

    def on_round(count: int, done: int) -> None:
        finished = threads.index(count) * args.rounds + done
        say(f"round {finished} of {total} ({count} threads)")

    return compare(
        contenders,
        threads=threads,
        rounds=args.rounds,
        mult_adds=mult_adds,
        seed=args.seed,
        on_round=on_round,
    )


def _time_on_gpu(
    args: argparse.Namespace,
    contenders: list[Contender],
    peers: Sequence[str],
    threads: Sequence[int],
    model: Path | None,
    mult_adds: int | None,
    say: Callable[[str], None],
) -> GpuBenchResult:
    return compare_on_gpu(
        [(one.label, Path(one.path)) for one in contenders],
        onnx=model,
        peers=peers,
        graphs=args.cuda_graph,
        rounds=args.rounds,
        mult_adds=mult_adds,
        seed=args.seed,
        on_round=lambda done: say(f"round {done} of {args.rounds}"),
    )


def _on_gpu(paths: Sequence[Path], target: str | None) -> bool:
    """Whether the artifacts' kernels run on a GPU.

    Raises:
        UsageError: some do and some do not, or they are not for ``--target``.
    """
    presets = [targets.resolve(read_manifest(path).target.preset) for path in paths]
    on_gpu = presets[0].gpu is not None
    wanted = None if target is None else targets.resolve(target)
    for path, preset in zip(paths, presets, strict=True):
        if wanted is not None and (wanted.gpu is None) != (preset.gpu is None):
            raise UsageError(f"--target {target}: {path} is for {preset.name}")
        # Any GPU's code that this machine runs is code for its GPU.
        if wanted is not None and target != "cuda" and preset.name != wanted.name:
            raise UsageError(f"--target {target}: {path} is for {preset.name}")
        if (preset.gpu is not None) != on_gpu:
            raise UsageError(
                f"{path} is for {preset.name} and {paths[0]} for {presets[0].name}: compare builds "
                "for a GPU and for the CPU one kind at a time"
            )
    return on_gpu


def parse_peers(text: str | None) -> list[str] | None:
    """``"onnxruntime"`` -> ``["onnxruntime"]``; UsageError names the known ones."""
    if text is None:
        return None
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
