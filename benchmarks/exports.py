"""Other tools' exports: does each import, build and compute what ONNX Runtime computes?

    .venv/bin/python benchmarks/exports.py DIR [--only TEXT] [--import-only] [--results]

``DIR`` is what ``export_models.py`` wrote, in an environment of its own. Each file goes through
``frontend.read -> clean -> to_relay``, is compiled for this CPU untuned, and run on two images
beside ONNX Runtime (unoptimised). Files that become the same Relay module share one build.
``--results`` puts the table into RESULTS.md; what was checked
before is kept beside the files, so ``--only`` renews a part of it.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from results import write

import mobilenet_tvm
from mobilenet_tvm import frontend, targets, toolchain
from mobilenet_tvm.build import compile_model
from mobilenet_tvm.build.manifest import ModelInfo
from mobilenet_tvm.errors import UsageError
from mobilenet_tvm.frontend.model import opset

TOLERANCE = 1e-4
IMAGES = 2


@dataclass
class Result:
    """What became of one file; all zero when torch did not export it.

    ``error`` is the largest difference over the largest absolute reference value, of the worst
    output; ``alive`` is how far outputs of two images are apart, on the same scale.
    """

    note: dict[str, Any]
    opset: int = 0
    refused: str | None = None
    error: float | None = None
    alive: float | None = None
    convolutions: int = 0
    pads: int = 0
    import_s: float = 0.0


class Checker:
    """Builds each distinct module once."""

    def __init__(self, import_only: bool) -> None:
        self.import_only = import_only
        self.preset = targets.resolve("x86")
        self.built: dict[tuple[int, tuple[Any, ...]], tuple[Any, Any]] = {}
        self.folder = tempfile.TemporaryDirectory()

    def check(self, path: Path, note: dict[str, Any]) -> Result:
        result = Result(note)
        started = time.time()
        model = frontend.read(path)
        result.opset = opset(model.proto)
        try:
            clean = frontend.clean(model)
            relay = frontend.to_relay(clean)
        except UsageError as error:
            result.refused = str(error)
            return result
        result.import_s = time.time() - started
        result.convolutions, result.pads = count(relay.module)
        if not self.import_only:
            self.run(relay, clean, result)
        return result

    def run(self, relay: frontend.RelayModel, clean: frontend.CleanModel, result: Result) -> None:
        import tvm

        key = (tvm.ir.structural_hash(relay.module), tuple(s.name for s in relay.inputs))
        if key not in self.built:
            so = Path(self.folder.name) / f"{len(self.built)}.{self.preset.name}.so"
            info = ModelInfo(clean.original.name, clean.original.digest)
            compile_model(relay, self.preset, so, info=info)
            self.built[key] = (mobilenet_tvm.load(so, threads=1), so)
        module = self.built[key][0]
        (spec,) = relay.inputs
        pairs = []
        for seed in range(IMAGES):
            image = smooth_noise(spec.shape, seed)
            got = list(module.run({spec.name: image}).values())
            pairs.append((reference(clean.original.path, spec.name, image), got))
        errors, spreads = [], []
        for index, first in enumerate(pairs[0][0]):
            scale = max(float(np.abs(first).max()), 1e-30)
            errors += [np.abs(w[index] - g[index]).max() / scale for w, g in pairs]
            spreads.append(np.abs(first - pairs[1][0][index]).max() / scale)
        result.error, result.alive = float(max(errors)), float(min(spreads))


def count(module: Any) -> tuple[int, int]:
    """Convolutions and separate pads of a Relay module."""
    import tvm
    from tvm import relay

    names: list[str] = []

    def visit(node: Any) -> None:
        if isinstance(node, relay.Call) and isinstance(node.op, tvm.ir.Op):
            names.append(node.op.name)

    relay.analysis.post_order_visit(module["main"], visit)
    return names.count("nn.conv2d"), names.count("nn.pad")


def smooth_noise(shape: Sequence[int], seed: int) -> Any:
    """One image of blurred noise, ``[N, 3, H, W] float32``."""
    random = np.random.default_rng(seed)
    batch, channels, height, width = shape
    coarse = random.normal(size=(batch, channels, -(-height // 8), -(-width // 8)))
    fine = coarse.repeat(8, axis=2).repeat(8, axis=3)[:, :, :height, :width]
    return (fine + 0.1 * random.normal(size=fine.shape)).astype(np.float32)


def reference(path: Path | None, name: str, image: Any) -> list[Any]:
    """ONNX Runtime's outputs of the file as it is."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return session.run(None, {name: image})


def section(results: list[Result]) -> str:
    """The table as Markdown: a row a model, all its files in it."""
    failed = [r for r in results if r.note["failed"]]
    done = [r for r in results if not r.note["failed"]]
    parity = [r.error for r in done if r.error is not None]
    machine = f"ONNX Runtime {onnxruntime.__version__}, {platform.machine()}"
    imported = sum(r.refused is None for r in done)
    lines = [
        f"`python benchmarks/exports.py DIR --results`, {datetime.date.today()}. "
        f"{results[0].note['versions']}; {machine}. {len(done)} files: {imported} import, "
        f"{len(parity)} were run, worst error {max(parity, default=0):.1e} of the largest "
        f"reference value (tolerance {TOLERANCE:.0e}). Seeded weights; `alive` is how far apart "
        "the outputs of two images are at least, on the same scale.",
        "",
        "| model | exporter and opset | convolutions | imports | parity error | alive |",
        "|---|---|---|---|---|---|",
    ]
    groups: dict[tuple[Any, ...], list[Result]] = defaultdict(list)
    for r in done:
        groups[r.note["model"], r.refused].append(r)
    for (name, refused), members in groups.items():
        # An exporter may write another opset than it was asked for.
        written = {(r.note["exporter"], r.opset, r.note["batch"]) for r in members}
        forms = ", ".join(
            f"{exporter} {number} {batch}" for exporter, number, batch in sorted(written)
        )
        counts = sorted({r.convolutions for r in members})
        errors = [r.error for r in members if r.error is not None]
        alive = [r.alive for r in members if r.alive is not None]
        row = [
            name,
            forms,
            "-".join(map(str, counts)) if refused is None else "",
            "yes" if refused is None else f"no: {refused}",
            f"{max(errors):.1e}" if errors else "",
            f"{min(alive):.2f}" if alive else "",
        ]
        lines.append("| " + " | ".join(row) + " |")
    if failed:
        lines += ["", "Not exported at all, by torch's own word:", ""]
        lines += [
            f"- {r.note['model']}, {r.note['exporter']} {r.note['asked_opset'] or 'default'} "
            f"{r.note['batch']}: {r.note['failed'][:200]}"
            for r in failed
        ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", default="", help="files whose name has this text")
    parser.add_argument("--import-only", action="store_true", help="build and run nothing")
    parser.add_argument("--results", action="store_true", help="write RESULTS.md")
    args = parser.parse_args()
    toolchain.activate()
    checker = Checker(args.import_only)
    notes = sorted(args.folder.glob("*.json"))
    for path in notes:
        note = json.loads(path.read_text())
        if args.only not in path.name:
            continue
        onnx_path = path.with_suffix(".onnx")
        result = Result(note) if note["failed"] else checker.check(onnx_path, note)
        path.with_suffix(".result").write_text(json.dumps(asdict(result)))
        print(
            f"{path.stem} (opset {result.opset}, {result.import_s:.0f} s): {told(result)}",
            flush=True,
        )
    if args.results:
        saved = [path.with_suffix(".result") for path in notes]
        results = [Result(**json.loads(path.read_text())) for path in saved if path.exists()]
        write("Exports of torchvision and timm", section(results))


def told(result: Result) -> str:
    """One line for the screen."""
    if result.note["failed"] or result.refused:
        return str(result.note["failed"] or result.refused)
    text = f"{result.convolutions} convolutions, {result.pads} pads"
    if result.error is None:
        return text
    verdict = "" if result.error <= TOLERANCE else "  FAILED"
    return f"{text}, error {result.error:.1e}, alive {result.alive:.2f}{verdict}"


if __name__ == "__main__":
    main()
