"""A static C library and its header, for programs and boards that have no TVM runtime.

``lib<name>.a`` holds TVM's kernels, the weights, and a few lines of C that call the ones with the
others (the templates in ``c/``, filled in here). All memory is planned when it is compiled
(``build.aot``), so it needs neither malloc nor threads; from outside come libc's ``memcpy`` and
the like, and libm's functions.
"""

from __future__ import annotations

import contextlib
import importlib.resources
import os
import platform
import re
import shutil
import string
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import mobilenet_tvm
from mobilenet_tvm import toolchain
from mobilenet_tvm.build.aot import ALIGNMENT, KernelCall, Lowered, Place
from mobilenet_tvm.build.link import LinkError, check_objects
from mobilenet_tvm.build.manifest import CLibrary, Preprocessing, TensorSpec
from mobilenet_tvm.errors import DeviceError, UsageError
from mobilenet_tvm.targets import Preset

_TYPES: Final = {
    "float32": "float",
    "float64": "double",
    "bool": "uint8_t",
    **{f"{sign}int{bits}": f"{sign}int{bits}_t" for sign in ("", "u") for bits in (8, 16, 32, 64)},
}
_KEYWORDS: Final = frozenset(
    [
        "auto",
        "break",
        "case",
        "char",
        "class",
        "const",
        "continue",
        "default",
        "delete",
        "do",
        "double",
        "else",
        "enum",
        "extern",
        "float",
        "for",
        "friend",
        "goto",
        "if",
        "inline",
        "int",
        "long",
        "main",
        "namespace",
        "new",
        "operator",
        "private",
        "protected",
        "public",
        "register",
        "restrict",
        "return",
        "short",
        "signed",
        "sizeof",
        "static",
        "struct",
        "switch",
        "template",
        "this",
        "throw",
        "try",
        "typedef",
        "union",
        "unsigned",
        "using",
        "virtual",
        "void",
        "volatile",
        "while",
    ]
)
# Nothing of the compiler's own: no checks that call for a runtime, no unwind tables.
_OPTIONS: Final = (
    *("-std=c99", "-O2", "-ffreestanding", "-fPIC", "-Wall", "-Wextra", "-Werror"),
    *("-fno-stack-protector", "-fno-sanitize=undefined", "-fno-asynchronous-unwind-tables"),
    *("-fno-unwind-tables", "-fno-exceptions", "-g0"),
)


def c_name(name: str) -> str:
    """A model's name as an identifier of C: ``mobilenet_v1_0.25_128`` -> ``..._0_25_128``."""
    plain = re.sub(r"\W+", "_", name, flags=re.ASCII).strip("_")
    if not plain or plain[0].isdigit() or plain in _KEYWORDS:
        plain = f"model_{plain}".rstrip("_")
    return plain


def parse_c_name(text: str) -> str:
    """``--name``: an identifier that names may begin with.

    Raises:
        ValueError: it is none.
    """
    if text != c_name(text):
        raise ValueError(f"no name in C: {text}")
    return text


def zig_target(preset: Preset, *, libc: str = "gnu") -> tuple[str, ...]:
    """Arguments of ``zig cc`` that compile for a preset's machines.

    Args:
        preset: what to compile for.
        libc: ``gnu``, or ``musl`` to link programs that need nothing of the system.
    """
    if preset.arch == "arm64":
        return ("-target", "aarch64-macos")
    if preset.arch == "armv7l":
        return ("-target", f"arm-linux-{libc}eabihf", "-mcpu=generic+v7a+neon")
    return ("-target", f"{preset.arch}-linux-{libc}")


def write_library(
    lowered: Lowered,
    path: Path,
    preset: Preset,
    prefix: str,
    *,
    model: str,
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    preprocessing: Preprocessing | None = None,
) -> CLibrary:
    """Write ``path`` and, beside it, the header ``<prefix>.h``.

    Args:
        lowered: the model, with the same ``prefix``.
        path: the ``.a`` to write.
        preset: what it is for.
        prefix: what every name of the library begins with; an identifier of C.
        model: its name, for the comments.
        inputs: of the model, in order.
        outputs: of the model, in order.
        preprocessing: how a photo becomes the input, for the header.

    Raises:
        UsageError: a tensor's type is none of C's.
        LinkError: the compiler failed, or an object is not for the preset's machines.
        DeviceError: the folder cannot be written.
    """
    tensors = _Tensors(inputs, outputs)
    header = path.with_name(f"{prefix}.h")
    marker = f"{platform.node()}-{os.getpid()}.tmp"
    temporary = [one.with_name(f".{one.name}.{marker}") for one in (path, header)]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="mobilenet_tvm-") as name:
            folder = Path(name)
            values = {
                "model": model,
                "preset": preset.name,
                "version": mobilenet_tvm.__version__,
                "prefix": prefix,
                "PREFIX": prefix.upper(),
                "workspace_bytes": str(max(lowered.workspace_bytes, 1)),
                "alignment": str(ALIGNMENT),
                "sizes": tensors.sizes(prefix.upper()),
                "preprocessing": _preprocessing(preprocessing, prefix),
                "parameters": tensors.parameters,
                "arguments": ", ".join(tensors.types),
                "null_checks": "".join(f" || {one} == 0" for one in tensors.types),
                "declarations": _declarations(lowered.calls),
                "calls": "\n".join(f"    status |= {_call(call)};" for call in lowered.calls),
                "cpu": _cpu(preset),
                "symbols": "",
            }
            (folder / "constants.bin").write_bytes(lowered.constants or bytes(1))
            objects = [folder / "kernels.o"]
            lowered.save_kernels(objects[0])
            _fill("library.h", folder / header.name, values)
            for template in ("model.c", "run.c", "constants.S"):
                _fill(template, folder / template, values)
                objects.append((folder / template).with_suffix(".o"))
                language = _OPTIONS if template.endswith(".c") else ("-fPIC", "-g0")
                toolchain.zig(
                    "cc",
                    *zig_target(preset),
                    *language,
                    f"-I{folder}",
                    *("-c", "-o", str(objects[-1]), str(folder / template)),
                )
            if preset.kind == "so":
                outside = check_objects(objects, preset, name=path.name)
                values["symbols"] = f": {', '.join(outside)}" if outside else " (nothing at all)"
                _fill("library.h", folder / header.name, values)
            toolchain.zig("ar", "rcsD", str(folder / "library.a"), *map(str, objects))
            shutil.copyfile(folder / "library.a", temporary[0])
            shutil.copyfile(folder / header.name, temporary[1])
        temporary[0].replace(path)
        temporary[1].replace(header)
    except subprocess.CalledProcessError as error:
        reason = (error.stderr or "").strip().splitlines() or [str(error)]
        raise LinkError(f"making {path.name} failed: {reason[0]}") from None
    except ModuleNotFoundError as error:  # ziglang
        raise LinkError(f"making {path.name} failed: {error}") from None
    except OSError as error:
        raise DeviceError(f"cannot write {path}: {error.strerror or error}") from None
    finally:
        for one in temporary:
            with contextlib.suppress(OSError):
                one.unlink()
    return CLibrary(prefix, header.name, max(lowered.workspace_bytes, 1))


class _Tensors:
    """The model's inputs and outputs, as parameters of a function."""

    def __init__(self, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> None:
        self.specs = {
            **{f"input_{index}": spec for index, spec in enumerate(inputs)},
            **{f"output_{index}": spec for index, spec in enumerate(outputs)},
        }
        self.types = {name: c_type(spec) for name, spec in self.specs.items()}

    @property
    def parameters(self) -> str:
        return ", ".join(
            f"{'const ' * name.startswith('input')}{kind} *{name}"
            for name, kind in self.types.items()
        )

    def sizes(self, prefix: str) -> str:
        """A macro for each, its name and shape in a comment."""
        lines = []
        for name, spec in self.specs.items():
            product = " * ".join(map(str, spec.shape)) or "1"
            what = f"{_comment(spec.name)} [{', '.join(map(str, spec.shape))}] {spec.dtype}"
            lines.append(f"#define {prefix}_{name.upper()}_SIZE ({product}) /* {what} */")
        return "\n".join(lines)


def c_type(spec: TensorSpec) -> str:
    """The type of a tensor's elements in C.

    Raises:
        UsageError: C has none.
    """
    if spec.dtype not in _TYPES:
        raise UsageError(
            f"--format c: {spec.name} is {spec.dtype}, which C has no type for: compile a .so"
        )
    return _TYPES[spec.dtype]


def _comment(text: str) -> str:
    return text.replace("*/", "* /").replace("/*", "/ *")


def _fill(template: str, path: Path, values: dict[str, str]) -> None:
    text = (importlib.resources.files("mobilenet_tvm.build") / "c" / template).read_text("utf-8")
    path.write_text(string.Template(text).substitute(values), encoding="utf-8")


def _cpu(preset: Preset) -> str:
    features = ", ".join(preset.cpu_features)
    return f"The CPU must have: {features}." if features else ""


def _preprocessing(how: Preprocessing | None, prefix: str) -> str:
    """Constants with which a photo becomes the input."""
    if how is None:
        return ""
    upper = prefix.upper()
    mean, std = ("{" + ", ".join(f"{c!r}f" for c in values) + "}" for values in (how.mean, how.std))
    return f"""
/* A photo: its shorter side scaled to RESIZE_SHORTER pixels, HEIGHT x WIDTH cut from the centre,
 * and of each channel, in the order {how.color}: (pixel / 255 - MEAN) / STD. */
#define {upper}_HEIGHT {how.height}
#define {upper}_WIDTH {how.width}
#define {upper}_RESIZE_SHORTER {how.resize_shorter}
#define {upper}_IS_BGR {int(how.color == "BGR")}
#define {upper}_MEAN {mean}
#define {upper}_STD {std}
"""


def _declarations(calls: Sequence[KernelCall]) -> str:
    """A prototype for each kernel; layers that are alike have one kernel."""
    lengths = {call.symbol: len(call.arguments) for call in calls}
    return "\n".join(
        f"extern int32_t {symbol}({', '.join(['void *'] * length)});"
        for symbol, length in lengths.items()
    )


def _call(call: KernelCall) -> str:
    return f"{call.symbol}({', '.join(map(_pointer, call.arguments))})"


def _pointer(place: Place) -> str:
    if place.base.startswith("input"):
        return f"(void *)(uintptr_t){place.base}"
    return f"{place.base} + {place.offset}" if place.offset else place.base
