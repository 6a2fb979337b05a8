"""The plug-in's options, looked at: what is wrong with one is told in a line."""

from __future__ import annotations

import glob
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from mobilenet_tvm.cuda import CudaError, emulator, switch
from mobilenet_tvm.errors import UsageError
from mobilenet_tvm.parity import DEFAULT_KINDS, RUNNERS
from mobilenet_tvm.parity.checks import Subject
from mobilenet_tvm.parity.inputs import find_images
from mobilenet_tvm.parity.kinds import MadeUp, plan, resolve


@dataclass(frozen=True)
class Settings:
    """What to check. ``show`` says whether the artifacts bring their own items."""

    subjects: dict[Path, Subject]
    show: bool
    inputs: tuple[MadeUp, ...]
    photos: tuple[Path, ...]
    skip_foreign: bool


def read(config: pytest.Config) -> Settings | None:
    """The options and their twins in the ini file; None where no artifact is given.

    Raises:
        pytest.UsageError: one of them cannot be used.
    """
    artifacts, where = _paths(config, "artifact", "mobilenet_artifacts")
    if not artifacts:
        return None
    found = dict.fromkeys(path for text in artifacts for path in _expand(text, where, ".so"))
    models, where = _paths(config, "onnx", "mobilenet_onnx")
    onnx = dict.fromkeys(path for text in models for path in _expand(text, where, ".onnx"))
    reference = _text(config, "reference") or "onnxruntime"
    if reference not in RUNNERS:
        raise pytest.UsageError(
            f"mobilenet reference {reference}: it is one of {', '.join(RUNNERS)}"
        )
    _use_device(_text(config, "device") or "local")
    tolerance = _number(config, "tolerance", float)
    images = _text(config, "images")
    try:
        photos = find_images(_base(config, "images") / images) if images else ()
    except UsageError as error:
        raise pytest.UsageError(f"mobilenet images: {error}") from None
    inputs = _inputs(config)
    if not inputs and not photos:
        raise pytest.UsageError("mobilenet inputs 0 and no images: parity needs an input")
    # As with testpaths: what the ini file names is for a run that names nothing itself.
    named = config.args_source is pytest.Config.ArgsSource.ARGS
    return Settings(
        subjects={
            path: Subject(path, tuple(onnx), reference, tolerance, "--mobilenet-onnx")
            for path in found
        },
        show=bool(config.getoption("mobilenet_artifact")) or not named,
        inputs=inputs,
        photos=photos,
        skip_foreign=bool(
            config.getoption("mobilenet_skip_foreign") or config.getini("mobilenet_skip_foreign")
        ),
    )


def _use_device(name: str) -> None:
    """Make the emulator this process's GPU, where it is asked for; each artifact says which one."""
    if name not in ("local", "emulated"):
        raise pytest.UsageError(f"mobilenet device {name}: it is local or emulated")
    if name == "emulated":
        try:
            switch.emulate(emulator.DEFAULT_ARCH)
        except CudaError as error:
            raise pytest.UsageError(f"mobilenet device emulated: {error}") from None


def _inputs(config: pytest.Config) -> tuple[MadeUp, ...]:
    given = config.getoption("mobilenet_kinds")
    texts = config.getini("mobilenet_kinds") if given is None else [given]
    names = [name.strip() for text in texts or () for name in text.split(",")]
    count = _number(config, "inputs", int)
    try:
        kinds = resolve(names) if names else DEFAULT_KINDS
    except UsageError as error:
        raise pytest.UsageError(f"mobilenet kinds: {error}") from None
    try:
        return plan(kinds, None if count is None else int(count))
    except UsageError as error:
        raise pytest.UsageError(f"mobilenet inputs: {error}") from None


def _paths(config: pytest.Config, name: str, ini: str) -> tuple[list[str], str]:
    """Absolute paths, maybe globs, and the name of what gave them."""
    given = config.getoption(f"mobilenet_{name}")
    if given:
        base = config.invocation_params.dir
        return [str(base / text) for text in given], f"--mobilenet-{name}"
    return [str(path) for path in config.getini(ini) or ()], ini


def _expand(text: str, where: str, suffix: str) -> Iterator[Path]:
    """The files that a path, a folder or a glob means, by name."""
    matches = [text] if os.path.exists(text) else sorted(glob.glob(text, recursive=True))
    files: list[Path] = []
    for match in matches:
        path = Path(os.path.abspath(match))
        files += sorted(path.glob(f"*{suffix}")) if path.is_dir() else [path]
    if not files:
        what = f"no {suffix} in the folder" if matches else "no file at"
        make = ", or make it with python -m mobilenet_tvm.tune" if suffix == ".so" else ""
        raise pytest.UsageError(f"{where}: {what} {text}: correct the path{make}")
    yield from files


def _base(config: pytest.Config, name: str) -> Path:
    """The folder that a relative path is relative to."""
    if config.getoption(f"mobilenet_{name}") is not None or config.inipath is None:
        return config.invocation_params.dir
    return config.inipath.parent


def _text(config: pytest.Config, name: str) -> str | None:
    given = config.getoption(f"mobilenet_{name}")
    return str(given) if given is not None else config.getini(f"mobilenet_{name}") or None


def _number(config: pytest.Config, name: str, kind: Callable[[str], float]) -> float | None:
    text = _text(config, name)
    if text is None:
        return None
    try:
        value = kind(text)
    except ValueError:
        value = math.nan
    if not (value >= 0 and math.isfinite(value)):
        what = "a whole number" if kind is int else "a number"
        raise pytest.UsageError(f"mobilenet {name} {text}: it must be {what}, 0 or more")
    return value
