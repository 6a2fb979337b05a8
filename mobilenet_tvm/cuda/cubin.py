"""What a kernel takes of the GPU, read from the compiled machine code (an ELF file).

NVIDIA does not document the sections; their names and the two attributes read here are what
``cuobjdump`` and ``nvdisasm`` show, and ``tests/cuda/test_cuda_cubin.py`` holds the figures
against what ``ptxas -v`` says of the same kernels.
"""

from __future__ import annotations

import io
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass

# Attributes of ``.nv.info`` that hold two 32-bit numbers, a symbol and a value.
_FRAME_SIZE = 0x11
_REGISTER_COUNT = 0x2F
# The form of a record whose value follows it; others hold it in the two bytes of its size.
_SIZED = 0x04

# From compute capability 9.0 on, a kernel's shared memory begins with what the system keeps of it
# (``Gpu.shared_reserved``), and this section says that it does.
_RESERVED = ".nv.shared.reserved.0"
_RESERVED_BYTES = 1024
_CONSTANT_BANKS = 8

# Of the compiler's log.
_KERNEL = re.compile(r"Function properties for (\S+)")
_SPILLS = re.compile(r"(\d+) bytes spill stores, (\d+) bytes spill loads")


@dataclass(frozen=True)
class KernelResources:
    """What one kernel takes.

    Attributes:
        registers: of a thread.
        shared_bytes: of a block, declared in the source.
        local_bytes: of a thread, in memory: arrays that are not in registers, and what is spilled.
        constant_bytes: of the kernel, its parameters included.
        spill_store_bytes: that a thread's code writes for want of registers, each instruction
            counted once; None where the compiler's log is not given.
        spill_load_bytes: that it reads back, likewise.
    """

    registers: int
    shared_bytes: int
    local_bytes: int
    constant_bytes: int
    spill_store_bytes: int | None
    spill_load_bytes: int | None


def resources(cubin: bytes, log: str = "") -> dict[str, KernelResources]:
    """The resources of each kernel of a cubin, by its name.

    Args:
        cubin: as ``nvrtc.Image`` has it.
        log: the compiler's with ``ptxas -v`` in it, which alone knows what is spilled.

    Raises:
        ValueError: it is no cubin.
    """
    from elftools.common.exceptions import ELFError
    from elftools.elf.elffile import ELFFile

    try:
        elf = ELFFile(io.BytesIO(cubin))
    except ELFError as error:
        raise ValueError(f"not a cubin: {error}") from None
    sections = {section.name: section for section in elf.iter_sections()}
    info = sections.get(".nv.info")
    if elf["e_machine"] != "EM_CUDA" or info is None:
        raise ValueError("not a cubin: an ELF file of something else")
    symbols = sections[".symtab"]
    registers: dict[str, int] = {}
    frames: dict[str, int] = {}
    for attribute, payload in _attributes(info.data()):
        if attribute in (_REGISTER_COUNT, _FRAME_SIZE):
            symbol, value = struct.unpack("<II", payload)
            table = registers if attribute == _REGISTER_COUNT else frames
            table[symbols.get_symbol(symbol).name] = value

    def size(section: str) -> int:
        return int(sections[section]["sh_size"]) if section in sections else 0

    reserved = _RESERVED_BYTES if _RESERVED in sections else 0
    spilled = spills(log)
    found = {}
    for name in registers:
        if f".text.{name}" not in sections:
            continue
        found[name] = KernelResources(
            registers[name],
            max(0, size(f".nv.shared.{name}") - reserved),
            frames.get(name, 0),
            sum(size(f".nv.constant{bank}.{name}") for bank in range(_CONSTANT_BANKS)),
            *spilled.get(name, (None, None)),
        )
    return found


def spills(log: str) -> dict[str, tuple[int, int]]:
    """Bytes of spill stores and of spill loads of each kernel that a compiler's log tells of."""
    found = {}
    name = ""
    for line in log.splitlines():
        if kernel := _KERNEL.search(line):
            name = kernel[1]
        elif sizes := _SPILLS.search(line):
            found[name] = (int(sizes[1]), int(sizes[2]))
    return found


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    """The records of an ``.nv.info`` section: each an attribute and its value."""
    at = 0
    while at < len(data):
        form, attribute, size = struct.unpack_from("<BBH", data, at)
        at += 4
        length = size if form == _SIZED else 0
        yield attribute, data[at : at + length]
        at += length
