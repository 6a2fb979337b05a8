"""Cycles of straight code, by ``llvm-mca`` and LLVM's model of the core.

``llvm-mca`` lets a piece of code follow itself again and again. What counts is how many cycles
one more repetition costs: the first ones fill the pipeline. Every load hits L1, and no load waits
for a store; what the caches add is the plugin's to count.
"""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path

from mobilenet_tvm.build.link import llvm_tool
from mobilenet_tvm.devices.estimate.emulator import BlockKey, EmulationError

# Repetitions that fill the pipeline, and those whose cycles count. A long piece needs no more
# than a short one: it fills the pipeline by itself.
_WARM_UP, _COUNTED = 10, 20
_INSTRUCTION = re.compile(r"\s*([0-9a-f]+):\s+(\S.*)$")
# Names of addresses, and comments.
_NOT_CODE = re.compile(r"\s*<[^>]*>|\s*(#\s|//|;).*$")
TIMEOUT_S = 60.0


def disassemble(program: Path) -> dict[int, tuple[str, int]]:
    """The text of every instruction in ``.text``, and the address of the next one.

    Raises:
        EmulationError: ``llvm-objdump`` failed.
    """
    text = _run(
        ["llvm-objdump", "--disassemble", "--section=.text", "--no-show-raw-insn", str(program)]
    )
    matches = [match for match in map(_INSTRUCTION.match, text.splitlines()) if match]
    addresses = [int(match[1], 16) for match in matches]
    return {
        address: (_NOT_CODE.sub("", match[2]), after)
        for match, address, after in zip(matches, addresses, [*addresses[1:], 0], strict=True)
    }


def text_of(code: dict[int, tuple[str, int]], block: BlockKey) -> list[str]:
    """The instructions of a block."""
    address, instructions = block
    lines = []
    for _ in range(instructions):
        line, address = code[address]
        lines.append(line)
    return lines


def cycles(pieces: Sequence[Sequence[str]], *, triple: str, mcpu: str) -> list[float]:
    """Cycles of one repetition of each piece of code in the steady state.

    Args:
        pieces: instructions as ``llvm-objdump`` writes them.
        triple: LLVM's, of the machine.
        mcpu: LLVM's name of the core.

    Raises:
        EmulationError: ``llvm-mca`` failed.
    """
    warm = _total_cycles(pieces, triple, mcpu, _WARM_UP)
    whole = _total_cycles(pieces, triple, mcpu, _WARM_UP + _COUNTED)
    return [(after - before) / _COUNTED for before, after in zip(warm, whole, strict=True)]


def _total_cycles(
    pieces: Sequence[Sequence[str]], triple: str, mcpu: str, repetitions: int
) -> list[int]:
    regions = [
        "\n".join([f"# LLVM-MCA-BEGIN {i}", *piece, f"# LLVM-MCA-END {i}\n"])
        for i, piece in enumerate(pieces)
    ]
    text = _run(
        [
            *("llvm-mca", f"-mtriple={triple}", f"-mcpu={mcpu}", f"-iterations={repetitions}"),
            # Such as system registers, of which a kernel has next to none.
            *("-json", "-skip-unsupported-instructions=any"),
        ],
        "".join(regions),
    )
    return parse_total_cycles(text, len(pieces))


def parse_total_cycles(text: str, count: int) -> list[int]:
    """The cycles of each region in ``llvm-mca -json``'s answer.

    Raises:
        EmulationError: there are not ``count`` of them.
    """
    try:
        regions = json.loads(text)["CodeRegions"]
        found = [int(region["SummaryView"]["TotalCycles"]) for region in regions]
    except (ValueError, KeyError, TypeError):
        found = []
    if len(found) != count:
        raise EmulationError(f"llvm-mca's answer has {len(found)} pieces of code, not {count}")
    return found


def _run(command: list[str], given: str | None = None) -> str:
    name, *options = command
    try:
        done = subprocess.run(
            [llvm_tool(name), *options],
            input=given,
            capture_output=True,
            text=True,
            check=True,
            timeout=TIMEOUT_S,
        )
    except subprocess.CalledProcessError as error:
        wrong = [line for line in error.stderr.splitlines() if "error" in line]
        raise EmulationError(f"{name}: {(wrong or [str(error)])[0].strip()}") from None
    except (OSError, subprocess.TimeoutExpired) as error:
        raise EmulationError(f"{name}: {error}") from None
    return done.stdout
