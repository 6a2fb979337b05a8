"""The presets as data. ``x86`` is the best x86 preset that this machine can run."""

from __future__ import annotations

import difflib
import platform
from dataclasses import dataclass

from mobilenet_tvm.errors import UsageError
from mobilenet_tvm.targets.host import cpu_features, cpu_name, missing_features


@dataclass(frozen=True)
class Preset:
    """One named target.

    Attributes:
        name: as given to ``--target``, and the folder of its logs.
        target: TVM's target string.
        arch: as ``platform.machine()`` names it on that machine.
        cpu_features: what the generated code may use, as Linux names the features.
        linker: arguments of ``zig`` that make a shared library of objects.
        peak_lanes: float32 lanes of one vector.
    """

    name: str
    target: str
    arch: str
    cpu_features: tuple[str, ...]
    linker: tuple[str, ...]
    peak_lanes: int

    def runs_here(self) -> bool:
        """Whether this machine can run what is compiled for the preset."""
        return platform.machine() == self.arch and not missing_features(self.cpu_features)


_X86_LINKER = ("ld.lld", "-m", "elf_x86_64", "-shared")
_SSE = ("sse4_1", "sse4_2", "ssse3", "popcnt", "cx16")
_AVX2 = (*_SSE, "avx", "avx2", "fma", "bmi1", "bmi2", "abm", "f16c", "movbe")
_AVX512 = (*_AVX2, "avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl", "adx", "rdseed")


def _x86(name: str, mcpu: str, features: tuple[str, ...], lanes: int) -> Preset:
    target = f"llvm -mtriple=x86_64-linux-gnu -mcpu={mcpu}"
    return Preset(name, target, "x86_64", features, _X86_LINKER, lanes)


# Best first. The AVX-512 preset is Skylake's on every CPU, Zen 4 included: LLVM's own model of
# Zen 4 prefers 256-bit vectors, and TOPI with it; untuned V1 then takes twice as long.
PRESETS = (
    _x86("x86-avx512", "skylake-avx512", _AVX512, 16),
    _x86("x86-avx2", "haswell", _AVX2, 8),
    _x86("x86-sse42", "x86-64-v2", _SSE, 4),
)
_BY_NAME = {preset.name: preset for preset in PRESETS}
_HOST = {"x86": "x86_64"}


def names() -> tuple[str, ...]:
    """All that ``--target`` takes."""
    return (*_HOST, *_BY_NAME)


def resolve(name: str) -> Preset:
    """The preset called ``name``; ``x86`` becomes the best one this machine can run.

    Raises:
        UsageError: no such preset, or ``x86`` on a machine that is none.
    """
    if name in _BY_NAME:
        return _BY_NAME[name]
    if name not in _HOST:
        close = difflib.get_close_matches(name, names(), 1)
        hint = f"did you mean {close[0]}? " if close else ""
        raise UsageError(f"unknown target {name!r}: {hint}presets are {', '.join(names())}")
    for preset in PRESETS:
        if preset.runs_here():
            return preset
    raise UsageError(
        f"target x86 means this machine, and {cpu_name()} ({platform.machine()}, "
        f"{len(cpu_features())} features) runs no x86 preset: name one of {', '.join(_BY_NAME)}"
    )
