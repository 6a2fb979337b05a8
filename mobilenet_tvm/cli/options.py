"""Option groups that verbs share: which model, how long."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any

from mobilenet_tvm import frontend
from mobilenet_tvm.build.manifest import ModelInfo
from mobilenet_tvm.errors import UsageError

DEFAULT_MODEL = "mobilenet_v1"

# Options that mean something for zoo models alone; their defaults are the model's own.
_ZOO_OPTIONS = ("alpha", "resolution", "classes", "seed_weights")


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Add the MODEL group: a zoo model by name, or an ONNX file."""
    group = parser.add_argument_group(
        "model", "a MobileNet from the zoo (--model), or any of your own (--onnx)"
    )
    which = group.add_mutually_exclusive_group()
    which.add_argument("--model", metavar="NAME", help=f"zoo model (default: {DEFAULT_MODEL})")
    which.add_argument("--onnx", metavar="FILE", type=Path, help="ONNX file to take instead")
    # Defaults are None, so that an option that was given can be told from one that was not.
    group.add_argument("--alpha", type=float, metavar="A", help="zoo: width (default: 1.0)")
    group.add_argument("--resolution", type=int, metavar="N", help="zoo: pixels (mostly 224)")
    group.add_argument("--classes", type=int, metavar="N", help="zoo: classes (mostly 1000)")
    group.add_argument("--seed-weights", type=int, metavar="N", help="zoo: seed (default: 0)")
    group.add_argument("--batch", type=int, metavar="N", help="images a run (default: 1)")
    group.add_argument(
        "--shape",
        type=parse_shape,
        metavar="N,C,H,W",
        help="ONNX: the input's shape, where the file leaves it open",
    )


def resolve_model(args: argparse.Namespace) -> frontend.CleanModel:
    """Build or read the model that ``add_model_options`` asks for, and clean it.

    Raises:
        UsageError: options contradict each other, or the model cannot be used.
    """
    if args.onnx is None:
        if args.shape is not None:
            raise UsageError("--shape goes with --onnx: use --resolution and --batch with --model")
        from mobilenet_tvm import zoo

        arguments = _zoo_arguments(args)
        proto = zoo.build(**arguments)
        return frontend.clean(frontend.from_proto(proto, zoo_name(**arguments)))
    given = [name for name in _ZOO_OPTIONS if getattr(args, name) is not None]
    if given:
        options = ", ".join("--" + name.replace("_", "-") for name in given)
        raise UsageError(f"{options}: only for zoo models (--model), not with --onnx")
    return frontend.clean(frontend.read(args.onnx), shape=args.shape, batch=args.batch)


def model_info(args: argparse.Namespace, clean: frontend.CleanModel) -> ModelInfo:
    """What a manifest says about the model; ``name`` is fit for file names."""
    original = clean.original
    return ModelInfo(
        name=file_name(original.name),
        digest=original.digest,
        path=None if original.path is None else str(original.path.resolve()),
        zoo=_zoo_arguments(args) if original.path is None else None,
        batch=args.batch,
        shape=args.shape,
    )


def zoo_name(
    name: str, *, alpha: float, resolution: int, batch: int, classes: int, seed: int
) -> str:
    """``mobilenet_v1_0.5_160``, and ``_b4``, ``_c10``, ``_s1`` for what is not the default."""
    from mobilenet_tvm import zoo

    parts = [name, f"{float(alpha)}", f"{resolution}"]
    if batch != 1:
        parts.append(f"b{batch}")
    if classes != zoo.defaults(name)["classes"]:
        parts.append(f"c{classes}")
    if seed != 0:
        parts.append(f"s{seed}")
    return "_".join(parts)


def file_name(text: str) -> str:
    """``text`` with everything but letters, digits, ``.``, ``-`` and ``_`` made ``_``."""
    return re.sub(r"[^A-Za-z0-9._-]+", "_", text).strip("._") or "model"


def parse_shape(text: str) -> tuple[int, ...]:
    """``1,3,224,224`` or ``1x3x224x224`` as a tuple: a type for argparse."""
    try:
        shape = tuple(int(part) for part in re.split("[,x]", text.strip(" []()")))
    except ValueError:
        shape = ()
    if not shape or min(shape) < 1:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no shape: give positive numbers, e.g. 1,3,224,224"
        )
    return shape


def parse_duration(text: str) -> float:
    """``90s``, ``20m``, ``1h30m``, ``1.5h`` or plain seconds, in seconds: a type for argparse."""
    number = r"(\d+(?:\.\d+)?)"
    plain = re.fullmatch(number, text)
    parts = re.fullmatch(f"(?:{number}h)?(?:{number}m)?(?:{number}s)?", text.lower())
    found = (None, None, plain[1]) if plain else parts.groups() if parts else ()
    seconds = sum(float(n) * unit for n, unit in zip(found, (3600, 60, 1), strict=False) if n)
    if seconds <= 0:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no duration: give seconds or e.g. 90s, 20m, 1h30m"
        )
    return seconds


def positive(text: str) -> int:
    """An integer above zero: a type for argparse."""
    value = int(text)
    if value < 1:
        raise ValueError
    return value


# argparse names the type by it: "invalid positive number value: '0'".
positive.__name__ = "positive number"


def _zoo_arguments(args: argparse.Namespace) -> dict[str, Any]:
    from mobilenet_tvm import zoo

    name = args.model or DEFAULT_MODEL
    given = {
        "alpha": args.alpha,
        "resolution": args.resolution,
        "batch": args.batch,
        "classes": args.classes,
        "seed": args.seed_weights,
    }
    known = {key: value for key, value in given.items() if value is not None}
    return {"name": name, **zoo.defaults(name), **known}
