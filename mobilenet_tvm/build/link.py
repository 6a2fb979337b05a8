"""From Relay's objects to a library that will load: linked, then looked at.

No compiler or linker of the machine is needed: ``ziglang`` brings one for every preset. What is
linked for ARM is checked before it is called done (``check_library``), for there it is loaded on
another machine, where an error is found late and says little.
"""

from __future__ import annotations

import contextlib
import os
import platform
import re
import shlex
import subprocess
import sysconfig
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from elftools.elf.constants import E_FLAGS
from elftools.elf.dynamic import DynamicSection
from elftools.elf.elffile import ELFFile

from mobilenet_tvm import toolchain
from mobilenet_tvm.build import pool
from mobilenet_tvm.errors import DeviceError
from mobilenet_tvm.targets import Preset

_MACHINES: Final = {"x86_64": "EM_X86_64", "aarch64": "EM_AARCH64", "armv7l": "EM_ARM"}
# What every Linux system has; a cross compiler names some of them without need.
_SYSTEM_LIBRARIES: Final = re.compile(
    r"(libc|libm|libpthread|libdl|librt|libgcc_s|ld-linux[-\w]*)\.so\.\d+"
)
# Resolved by the TVM runtime that loads the library, or by libc and libm.
_RUNTIME_SYMBOLS: Final = re.compile(r"_?_?TVM\w+|__tvm\w+|tvm\w+")
_MATH: Final = """
exp exp2 exp10 log log2 log10 log1p pow sqrt tanh tan sin cos sinh cosh asin acos atan atan2 asinh
acosh atanh erf floor ceil round trunc rint nearbyint fmod fabs fma fmin fmax ldexp copysign hypot
"""
_C_SYMBOLS: Final = frozenset(name + suffix for name in _MATH.split() for suffix in ("", "f")) | {
    *("memset", "memcpy", "memmove", "memcmp", "abort", "malloc", "free", "__stack_chk_fail")
}

# Of the compiler's own library, which it links by itself: ARM's divisions, half precision ...
_COMPILER_SYMBOLS: Final = re.compile(r"__aeabi_\w+|__(trunc|extend)\w+f\d|_GLOBAL_OFFSET_TABLE_")


class LinkError(DeviceError):
    """The library cannot be linked, or would not load or run on its target."""


def link(library: Any, path: Path, preset: Preset, *, linker: Sequence[str] | None = None) -> None:
    """Link a Relay factory module into ``path``, and check what came out.

    On x86-64 and 64-bit ARM Linux the library brings its own thread pool (``build.pool``).

    Args:
        library: what ``relay.build`` made.
        path: the ``.so`` to write; for a preset of kind ``object`` the ``.tar`` of its objects,
            which TVM links where it is loaded.
        preset: what it is for.
        linker: a command to link with in place of the preset's: ``("aarch64-linux-gnu-gcc",)``;
            one that begins with ``zig`` is that of the ziglang wheel.

    Raises:
        LinkError: the linker failed, or the library would not load.
        DeviceError: the folder, or the cache for the pool, cannot be written.
    """
    command = list(linker or ("zig", *preset.linker))
    if linker and "-shared" not in command:
        command.append("-shared")

    def with_linker(output: str, objects: list[str], options: list[str] | None = None) -> None:
        linked = pool.with_pool(objects, preset, llvm_tool("llvm-objcopy"))
        arguments = ["-o", output, *linked, *(options or [])]
        if command[0] == "zig":
            toolchain.zig(*command[1:], *arguments)
        else:
            subprocess.run([*command, *arguments], check=True, capture_output=True, text=True)

    # TVM asks the output's file for its format before it links.
    with_linker.output_format = "so"  # type: ignore[attr-defined]
    suffix = path.suffix
    temporary = path.with_name(f".{path.name}.{platform.node()}-{os.getpid()}.tmp{suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if preset.kind == "object":
            library.export_library(str(temporary))
        else:
            library.export_library(str(temporary), fcompile=with_linker)
            if preset.arch != "x86_64":
                check_library(temporary, preset, name=path.name)
        temporary.replace(path)
    except subprocess.CalledProcessError as error:
        reason = (error.stderr or "").strip().splitlines() or [str(error)]
        raise LinkError(f"linking {path.name} failed: {reason[-1]}") from None
    except ModuleNotFoundError as error:  # ziglang
        raise LinkError(f"linking {path.name} failed: {error}") from None
    except FileNotFoundError as error:
        if linker and error.filename == command[0]:
            raise LinkError(
                f"linking {path.name} failed: no linker {command[0]} on PATH: install it, or leave "
                "--linker out"
            ) from None
        raise DeviceError(f"cannot write {path}: {error.strerror or error}") from None
    except OSError as error:
        raise DeviceError(f"cannot write {path}: {error.strerror or error}") from None
    finally:
        with contextlib.suppress(OSError):  # where nothing could be written, nothing is left
            temporary.unlink()


def parse_linker(text: str) -> tuple[str, ...]:
    """``--linker``'s words.

    Raises:
        ValueError: there is none, or a quote is not closed.
    """
    words = tuple(shlex.split(text))
    if not words:
        raise ValueError("no command")
    return words


def check_library(path: Path, preset: Preset, *, name: str | None = None) -> None:
    """Refuse a library that would not load or run on the preset's machines.

    Looked at are: the ELF machine; on 32-bit ARM the hard-float ABI; that nothing but libc and
    its kin is needed; that every symbol from outside is one of the TVM runtime's, libc's or
    libm's; and that every instruction is one of the preset's core.

    Raises:
        LinkError: with what is wrong.
    """
    name = name or path.name
    with path.open("rb") as stream:
        elf = ELFFile(stream)
        if (machine := elf["e_machine"]) != _MACHINES[preset.arch]:
            raise LinkError(f"{name} is for {machine}, not {preset.arch}: wrong --linker?")
        flags = elf["e_flags"]
        if preset.arch == "armv7l" and flags & E_FLAGS.EF_ARM_ABI_FLOAT_SOFT:
            raise LinkError(f"{name} is soft-float, {preset.name} is hard-float: wrong --linker?")
        dynamic = elf.get_section_by_name(".dynamic")
        needed = (
            [tag.needed for tag in dynamic.iter_tags("DT_NEEDED")]
            if isinstance(dynamic, DynamicSection)
            else []
        )
        strange = [one for one in needed if not _SYSTEM_LIBRARIES.fullmatch(one)]
        if strange:
            raise LinkError(f"{name} needs {', '.join(strange)}, which a board may not have")
        symbols = elf.get_section_by_name(".dynsym")
        outside = [
            symbol.name
            for symbol in (symbols.iter_symbols() if symbols else ())
            if symbol["st_shndx"] == "SHN_UNDEF"
            and symbol.name
            and symbol["st_info"]["bind"] != "STB_WEAK"
        ]
    unknown = [
        symbol
        for symbol in outside
        if symbol not in _C_SYMBOLS | pool.SYMBOLS and not _RUNTIME_SYMBOLS.fullmatch(symbol)
    ]
    # What the linker added itself from a libc that it names is the libc's to resolve.
    if unknown and not needed:
        raise LinkError(
            f"{name} wants {', '.join(unknown[:3])} from outside, which neither the TVM runtime "
            "nor libc has"
        )
    if foreign := foreign_instructions(path, preset):
        raise LinkError(
            f"{name} has instructions that {preset.cpu} lacks ({len(foreign)}, the first at "
            f"{foreign[0]}): it would die of an illegal instruction"
        )


def check_objects(objects: Sequence[Path], preset: Preset, *, name: str) -> tuple[str, ...]:
    """Refuse objects of a static library that would not link or run on the preset's machines.

    Looked at are, as by ``check_library``: the ELF machine, the hard-float ABI, every
    instruction; and that what no object of them defines is libc's, libm's or the compiler's.

    Returns:
        The functions wanted from outside, sorted.

    Raises:
        LinkError: with what is wrong.
    """
    defined: set[str] = set()
    wanted: set[str] = set()
    for path in objects:
        with path.open("rb") as stream:
            elf = ELFFile(stream)
            if (machine := elf["e_machine"]) != _MACHINES[preset.arch]:
                raise LinkError(f"{name} is for {machine}, not {preset.arch}")
            symbols = elf.get_section_by_name(".symtab")
            for symbol in symbols.iter_symbols() if symbols else ():
                if symbol["st_shndx"] != "SHN_UNDEF":
                    defined.add(symbol.name)
                elif symbol.name and symbol["st_info"]["bind"] != "STB_WEAK":
                    wanted.add(symbol.name)
        if foreign := foreign_instructions(path, preset):
            raise LinkError(
                f"{name} has instructions that {preset.cpu} lacks ({len(foreign)}, the first at "
                f"{foreign[0]}): it would die of an illegal instruction"
            )
    outside = sorted(wanted - defined)
    unknown = [
        symbol
        for symbol in outside
        if symbol not in _C_SYMBOLS and not _COMPILER_SYMBOLS.fullmatch(symbol)
    ]
    if unknown:
        raise LinkError(f"{name} wants {', '.join(unknown[:3])}, which neither libc nor libm has")
    return tuple(outside)


def foreign_instructions(path: Path, preset: Preset) -> list[str]:
    """Addresses and bytes of the instructions that the preset's core does not have.

    Those that ``llvm-objdump``, told the core, cannot decode. On 64-bit ARM only the code is
    looked at; on 32-bit ARM constants stand within it, marked by symbols that it knows.

    Raises:
        LinkError: ``llvm-objdump`` failed.
    """
    attributes = re.search(r"-mattr=(\S+)", preset.host or preset.target)
    command = [str(llvm_tool("llvm-objdump")), "--disassemble", f"--triple={preset.triple}"]
    if preset.cpu != "generic":
        command.append(f"--mcpu={preset.cpu}")
    if attributes:
        command.append(f"--mattr={attributes[1]}")
    try:
        text = subprocess.run(
            [*command, str(path)], check=True, capture_output=True, text=True
        ).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        raise LinkError(f"cannot look into {path.name}: {error}") from None
    return [line.strip() for line in text.splitlines() if "<unknown>" in line]


def llvm_tool(name: str) -> Path:
    """A program of the LLVM that generates code (``llvm-objdump``, ``llvm-mca`` ...)."""
    return Path(sysconfig.get_path("platlib"), "llvm", "bin", name)
