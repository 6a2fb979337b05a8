"""``python -m mobilenet_tvm.bench``: time artifacts side by side, and against other runtimes."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from mobilenet_tvm import targets
from mobilenet_tvm.bench.alternate import DEFAULT_ROUNDS, Contender, check_threads, compare
from mobilenet_tvm.bench.cpu_peers import CPU_PEERS, TVM_PEERS, Field, find_cpu_peers
from mobilenet_tvm.bench.elsewhere import VARIABLE
from mobilenet_tvm.bench.gpu import compare_on_gpu, require_gpu
from mobilenet_tvm.bench.gpu_peers import PEERS
from mobilenet_tvm.bench.gpu_results import GpuBenchResult, gpu_table
from mobilenet_tvm.bench.layer_table import print_layers
from mobilenet_tvm.bench.layers import profile_layers
from mobilenet_tvm.bench.reference import reference_model
from mobilenet_tvm.bench.results import BenchResult, table
from mobilenet_tvm.bench.stock_tuned import build_stock_tuned
from mobilenet_tvm.bench.untuned import build_untuned
from mobilenet_tvm.build.manifest import Manifest, read_manifest
from mobilenet_tvm.cli.frame import Output, run_verb
from mobilenet_tvm.errors import UsageError
from mobilenet_tvm.targets import physical_cores

# Whom a model can be held against on the CPU, in the order of the table: ONNX Runtime, which
# speeds are relative to, last.
ON_CPU = (*(name for name in CPU_PEERS if name != "onnxruntime"), *TVM_PEERS, "onnxruntime")
ALL = "all"
KNOWN_PEERS = (*ON_CPU, *(name for name in PEERS if name not in ON_CPU))


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
        help=f"whom to run the same ONNX model in, too: on the CPU {', '.join(ON_CPU)} or all; on "
        f"a GPU {', '.join(PEERS)} (default: on a GPU all, else none). Others than onnxruntime "
        f"run in the Python that ${VARIABLE} names, by default this one: see docs/peers.md",
    )
    parser.add_argument(
        "--tvm-logs",
        type=Path,
        metavar="PATH",
        help="records of stock searches for tvm-autotvm and tvm-ansor: a log, or a folder of them",
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
        peers = list(PEERS) if peers is None or _all(args.against) else peers
    else:
        if args.cuda_graph:
            raise UsageError(f"--cuda-graph: {args.artifacts[0]} is for the CPU")
        peers = [peer for peer in peers or [] if peer in ON_CPU or not _all(args.against)]
    _require_known(peers, PEERS if on_gpu else ON_CPU, "a GPU" if on_gpu else "the CPU")
    if args.tvm_logs is not None and not set(TVM_PEERS).intersection(peers):
        raise UsageError(f"--tvm-logs is for --against {','.join(TVM_PEERS)}")
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
        others = Field((), ())
        if model is not None and not on_gpu:
            what = "preparing the other runtimes"
            with out.console.status(what, refresh_per_second=1) as status:
                others = _others(args, manifest, model, peers, folder, threads, out, status.update)
        result: BenchResult | GpuBenchResult
        with out.console.status("starting the workers", refresh_per_second=1) as status:
            say = status.update
            if on_gpu:
                result = _time_on_gpu(args, contenders, peers, model, mult_adds, say)
            else:
                result = _time_on_cpu(args, contenders, others, threads, mult_adds, say)
    out.console.print(gpu_table(result) if isinstance(result, GpuBenchResult) else table(result))
    for warning in result.warnings:
        out.warn(warning)
    return result.as_dict()


def _profile(args: argparse.Namespace, threads: Sequence[int], out: Output) -> dict[str, Any]:
    """``--layers``: a table for each number of threads, all of them in the payload."""
    others = ("against", "untuned", "cuda_graph", "onnx", "tvm_logs")
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


def _others(
    args: argparse.Namespace,
    manifest: Manifest,
    model: Path,
    peers: Sequence[str],
    folder: Path,
    threads: Sequence[int],
    out: Output,
    say: Callable[[str], None],
) -> Field:
    """The peers' rows in the table's order, and who is missing; ``say`` is told of each step."""
    stock = build_stock_tuned(
        [peer for peer in peers if peer in TVM_PEERS],
        manifest,
        model,
        args.tvm_logs,
        folder,
        threads=threads,
        warn=out.warn,
        on_step=say,
    )
    runtimes = find_cpu_peers(
        [peer for peer in peers if peer in CPU_PEERS], model, manifest.model, on_step=say
    )
    rows = sorted(
        (*runtimes.contenders, *stock.contenders), key=lambda row: peers.index(row.peer or "")
    )
    return Field(tuple(rows), (*runtimes.absent, *stock.absent))


def _time_on_cpu(
    args: argparse.Namespace,
    contenders: list[Contender],
    others: Field,
    threads: Sequence[int],
    mult_adds: int | None,
    say: Callable[[str], None],
) -> BenchResult:
    total = len(threads) * args.rounds

    def on_round(count: int, done: int) -> None:
        finished = threads.index(count) * args.rounds + done
        say(f"round {finished} of {total} ({count} threads)")

    return compare(
        [*contenders, *others.contenders],
        threads=threads,
        rounds=args.rounds,
        mult_adds=mult_adds,
        seed=args.seed,
        on_round=on_round,
        absent=others.absent,
    )


def _time_on_gpu(
    args: argparse.Namespace,
    contenders: list[Contender],
    peers: Sequence[str],
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
    """``"onnxruntime"`` -> ``["onnxruntime"]``, in the table's order; ``"all"`` is every one.
    UsageError names the known ones."""
    if text is None:
        return None
    wanted = set(_names(text))
    if ALL in wanted:
        return list(KNOWN_PEERS)
    for peer in sorted(wanted.difference(KNOWN_PEERS)):
        raise UsageError(f"--against {peer}: unknown, the known ones are {', '.join(KNOWN_PEERS)}")
    return [peer for peer in KNOWN_PEERS if peer in wanted]


def _names(text: str) -> list[str]:
    return [peer.strip() for peer in text.split(",") if peer.strip()]


def _all(text: str | None) -> bool:
    return text is not None and ALL in _names(text)


def _require_known(peers: Sequence[str], known: Iterable[str], where: str) -> None:
    """UsageError for a peer that does not run there."""
    for peer in peers:
        if peer not in known:
            raise UsageError(f"--against {peer}: on {where} there is {', '.join(known)}")


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
