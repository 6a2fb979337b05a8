"""``python -m mobilenet_tvm.models``: the zoo's models, what they cost, and one as ONNX."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

from mobilenet_tvm import zoo
from mobilenet_tvm.build.manifest import sha256_bytes
from mobilenet_tvm.cli import Output, run_verb
from mobilenet_tvm.errors import UsageError
from mobilenet_tvm.zoo import paper
from mobilenet_tvm.zoo.tables import FAMILIES

DESCRIPTION = (
    "List the zoo's models; --costs counts Mult-Adds and parameters beside the papers' figures "
    "and says why where they differ (with a model's options: layer by layer); -o writes one model "
    "as ONNX."
)
MODEL_OPTIONS = {
    "model": (str, "NAME", "a model of the zoo; without any option all are listed (mobilenet_v1)"),
    "alpha": (float, "A", "width multiplier, in the model's own range (1.0)"),
    "resolution": (int, "R", "input height and width (the model's own, mostly 224)"),
    "batch": (int, "N", "images a run (1)"),
    "classes": (int, "N", "number of logits (1000; a detector's scores a box: 91)"),
    "seed": (int, "S", "seed of the weights (0)"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's own options."""
    parser.add_argument("--costs", action="store_true", help="count Mult-Adds and parameters")
    group = parser.add_argument_group("one model")
    for name, (kind, metavar, text) in MODEL_OPTIONS.items():
        group.add_argument(f"--{name}", type=kind, metavar=metavar, help=text)
    group.add_argument("-o", "--output", type=Path, metavar="FILE.onnx", help="write it here")


def run(args: argparse.Namespace, out: Output) -> dict[str, Any]:
    """List, count or write; see ``DESCRIPTION``.

    Raises:
        UsageError: an option is outside its range, or the file cannot be written.
    """
    given = {n: getattr(args, n) for n in MODEL_OPTIONS if getattr(args, n) is not None}
    if not given and args.output is None:
        return _family_costs(out) if args.costs else _listing(out)
    if args.output is None and not args.costs:
        raise UsageError("say what to do with that model: -o FILE.onnx writes it, --costs counts")
    name = given.pop("model", "mobilenet_v1")
    if args.output is None:
        seed = given.pop("seed", 0)
        zoo.validate(name, **given, seed=seed)
        model = zoo.outline(name, **given)  # counting needs no weights
    else:
        model = zoo.build(name, **given)
    totals = zoo.costs(model)
    payload: dict[str, Any] = {
        "model": {"name": name, **given},
        "mult_adds": totals.mult_adds,
        "parameters": totals.parameters,
    }
    if args.costs:
        layers = zoo.layer_costs(model)
        _print_layers(layers, totals, out)
        payload["layers"] = layers
    if args.output is not None:
        data = model.SerializeToString()
        _write(args.output, data)
        payload |= {"path": str(args.output), "digest": sha256_bytes(data)}
        out.line(
            f"{args.output}: {model.graph.name}, {totals.mult_adds / 1e6:.1f} M Mult-Adds, "
            f"{totals.parameters / 1e6:.2f} M parameters, {payload['digest']}"
        )
    return payload


def _listing(out: Output) -> dict[str, Any]:
    width = max(map(len, FAMILIES))
    for family in FAMILIES.values():
        out.line(f"{family.name:<{width}}  {family.title}, {family.source}")
    return {
        "models": [
            {
                "name": f.name,
                "title": f.title,
                "source": f.source,
                "alphas": f.alphas,
                "resolution": f.resolution,
                "classes": f.classes,
            }
            for f in FAMILIES.values()
        ]
    }


def _family_costs(out: Output) -> dict[str, Any]:
    papers = ", ".join(f"{short}: {source}" for source, short in paper.PAPERS.items())
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), caption=f"in millions; {papers}")
    table.add_column("model", overflow="fold")
    for title in ("Mult-Adds", "paper", "params", "paper"):
        table.add_column(title, justify="right")
    table.add_column("source", overflow="fold")
    table.add_column("note", justify="right")
    rows: list[dict[str, Any]] = []
    remarks: list[str] = []
    for figure in paper.FIGURES:
        counted = figure.count()
        model = f"{figure.name} {figure.alpha:g}-{figure.resolution}"
        notes = figure.remarks(counted)
        if notes:
            remarks.append(f"({len(remarks) + 1}) {model}: {'; '.join(notes)}")
        table.add_row(
            model,
            f"{counted.mult_adds / 1e6:.1f}",
            str(figure.mult_adds_millions),
            f"{counted.parameters / 1e6:.{figure.decimals + 1}f}",
            f"{figure.parameters_millions:.{figure.decimals}f}",
            figure.where,
            f"({len(remarks)})" if notes else "",
        )
        rows.append(
            {
                "name": figure.name,
                "alpha": figure.alpha,
                "resolution": figure.resolution,
                "mult_adds": counted.mult_adds,
                "parameters": counted.parameters,
                "paper_mult_adds_millions": figure.mult_adds_millions,
                "paper_parameters_millions": figure.parameters_millions,
                "source": f"{figure.source}, {figure.table}".removesuffix(", "),
                "agrees": figure.agrees(counted.mult_adds, counted.parameters),
                "explained": figure.explained(counted),
                "notes": notes,
            }
        )
    out.console.print(table)
    for remark in remarks:
        out.line(remark)
    return {"costs": rows}


def _print_layers(layers: Sequence[zoo.LayerCost], totals: zoo.Costs, out: Output) -> None:
    table = Table(box=box.SIMPLE_HEAD, show_footer=True)
    table.add_column("layer", "total")
    table.add_column("kind")
    table.add_column("output")
    table.add_column("M Mult-Adds", f"{totals.mult_adds / 1e6:.2f}", justify="right")
    table.add_column("%", "100.0", justify="right")
    table.add_column("parameters", f"{totals.parameters:,}", justify="right")
    for layer in layers:
        table.add_row(
            layer.node,
            layer.kind,
            "x".join(map(str, layer.output_shape)),
            f"{layer.mult_adds / 1e6:.2f}",
            f"{100 * layer.mult_adds / totals.mult_adds:.1f}",
            f"{layer.parameters:,}",
        )
    out.console.print(table)


def _write(path: Path, data: bytes) -> None:
    """Write ``path`` whole or not at all."""
    if path.is_dir() or not path.parent.is_dir():
        raise UsageError(f"cannot write {path}: give -o a file in a folder that exists")
    temporary = path.with_name(path.name + ".tmp")
    try:
        temporary.write_bytes(data)
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise UsageError(
            f"cannot write {path} ({error.strerror}): give -o a file in a folder you can write to"
        ) from None


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    return run_verb("models", DESCRIPTION, add_arguments, run, argv)


if __name__ == "__main__":
    sys.exit(main())
