"""``llvm-mca`` and ``llvm-objdump``: what is read of their answers, and what cannot be."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mobilenet_tvm import toolchain
from mobilenet_tvm.build.link import llvm_tool
from mobilenet_tvm.devices.estimate import CORES
from mobilenet_tvm.devices.estimate.emulator import EmulationError
from mobilenet_tvm.devices.estimate.mca import cycles, disassemble, parse_total_cycles, text_of

X86 = "x86_64-linux-gnu"
ARM = "aarch64-linux-gnu"


@pytest.fixture(autouse=True)
def _llvm_tools() -> None:
    if not llvm_tool("llvm-mca").exists():
        pytest.skip("there is no llvm-mca beside TVM's LLVM here")


def test_a_chain_of_sums_takes_its_latency_and_independent_ones_share_two_units() -> None:
    chain = ["vfmadd231ps %ymm0, %ymm1, %ymm2"]
    apart = [f"vfmadd231ps %ymm0, %ymm1, %ymm{i}" for i in range(2, 14)]
    # Zen 4: 4 cycles of latency, two units (AMD, Software Optimization Guide for Zen 4).
    assert cycles([chain, apart], triple=X86, mcpu="znver4") == [4.0, 6.0]


def test_a_cortex_a72_has_a_chain_too() -> None:
    chain = ["fmla v0.4s, v1.4s, v2.s[0]"]
    apart = [f"fmla v{i}.4s, v30.4s, v31.s[0]" for i in range(12)]
    alone, together = cycles([chain, apart], triple=ARM, mcpu="cortex-a72")
    assert alone > together / 12


@pytest.mark.parametrize("mcpu", CORES)
def test_llvm_has_a_model_of_every_core(mcpu: str) -> None:
    x86 = mcpu in ("haswell", "x86-64-v2", "znver4")
    code = ["addq $1, %rax", "jne 0x1000"] if x86 else ["add x0, x0, #1", "b.ne 0x1000"]
    (found,) = cycles([code], triple=X86 if x86 else ARM, mcpu=mcpu)
    assert 0.2 < found < 10


def test_an_answer_is_read() -> None:
    regions = [{"SummaryView": {"TotalCycles": n, "Iterations": 10}} for n in (40, 7)]
    assert parse_total_cycles(json.dumps({"CodeRegions": regions}), 2) == [40, 7]


@pytest.mark.parametrize("answer", ["", "{}", '{"CodeRegions": [{}]}', '{"CodeRegions": []}'])
def test_another_answer_is_not_believed(answer: str) -> None:
    with pytest.raises(EmulationError, match="0 pieces of code, not 1"):
        parse_total_cycles(answer, 1)


def test_what_is_no_instruction_is_named() -> None:
    with pytest.raises(EmulationError, match=r"llvm-mca: .*error"):
        cycles([["frobnicate %rax"]], triple=X86, mcpu="znver4")


def test_a_disassembly_is_code_again(tmp_path: Path) -> None:
    source = tmp_path / "code.c"
    source.write_text(
        "int limit = 7; int f(int *p, int n) "
        "{ int s = 0; for (int i = 0; i < n; i += limit) s += p[i]; return s; }"
    )
    for arch, triple, mcpu in (("x86_64", X86, "haswell"), ("aarch64", ARM, "cortex-a72")):
        options = ("-target", f"{arch}-freestanding-none", "-O2", "-c")
        toolchain.zig("cc", *options, "-o", str(tmp_path / "code.o"), str(source))
        code = disassemble(tmp_path / "code.o")
        lines = text_of(code, (min(code), len(code)))
        assert len(lines) == len(code) > 5
        assert not any("<" in line or "//" in line for line in lines)
        assert cycles([lines], triple=triple, mcpu=mcpu)[0] > 1
