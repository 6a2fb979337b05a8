"""Counts of kernels whose counts are known, and how kernels fail under the emulator."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from mobilenet_tvm import targets, toolchain
from mobilenet_tvm.devices.estimate import core_of, why_not
from mobilenet_tvm.devices.estimate.emulator import (
    Arguments,
    Emulation,
    EmulationError,
    Emulator,
    Traffic,
    parse_counts,
)

PRESETS = ["x86-avx2", "rpi4"]
HEAD = """
struct array { float *data; };
#define KERNEL int default_function(struct array **arrays, int *types, int count, void *result, \
    int *result_type, void *self)
"""

# 2003 instructions: one, a thousand times two, two.
THOUSAND_TIMES = {
    "x86_64": "movl $1000, %ecx; 1: decl %ecx; jne 1b; xorl %eax, %eax; ret",
    "aarch64": "mov w9, #1000; 1: subs w9, w9, #1; b.ne 1b; mov w0, #0; ret",
}


def in_assembly(text: str) -> str:
    lines = "\\n".join(text.split("; "))
    return HEAD + f'__attribute__((naked)) KERNEL {{ __asm__("{lines}"); }}'


def walk(values: int, passes: int) -> str:
    """Reads one float of every line of the first array's ``values`` floats, ``passes`` times."""
    return (
        HEAD
        + f"""
KERNEL {{
    volatile float *data = arrays[0]->data;
    for (int pass = 0; pass < {passes}; pass++)
        for (int at = 0; at < {values}; at += 16)
            (void)data[at];
    return 0;
}}"""
    )


def run(
    folder: Path,
    source: str,
    *,
    preset: str = "x86-avx2",
    values: int = 16,
    timeout_s: float = 30.0,
) -> Emulation:
    """Emulate a kernel of one input of ``values`` floats and a result of one."""
    target = targets.resolve(preset)
    core = core_of(target)
    assert core is not None
    (folder / "kernel.c").write_text(source)
    toolchain.zig(
        *("cc", "-target", f"{target.arch}-freestanding-none", "-c", "-O1", "-fno-sanitize=all"),
        *("-o", str(folder / "kernel.o"), str(folder / "kernel.c")),
    )
    emulator = Emulator(target, core)
    emulator.link(folder / "kernel.o", folder / "kernel")
    arguments = Arguments(shapes=((values,), (1,)), result=1)
    return emulator.run(folder / "kernel", arguments, model_bytes=1 << 20, timeout_s=timeout_s)


@pytest.fixture(autouse=True)
def _emulator(request: pytest.FixtureRequest) -> None:
    name = "x86-avx2"
    if hasattr(request.node, "callspec"):
        name = request.node.callspec.params.get("preset", name)
    preset = targets.resolve(name)
    if shutil.which(f"qemu-{preset.arch}") is None:
        pytest.skip(f"there is no qemu-{preset.arch} here: apt-get install qemu-user")
    assert why_not(preset) is None


@pytest.mark.parametrize("preset", PRESETS)
def test_the_instructions_of_a_loop_are_counted_exactly(tmp_path: Path, preset: str) -> None:
    code = THOUSAND_TIMES[targets.resolve(preset).arch]
    found = run(tmp_path, in_assembly(code), preset=preset)
    executed = sum(block.executions * length for (_, length), block in found.blocks.items())
    assert executed == 1 + 1000 * 2 + 2
    # The first time round, the loop stands in one block with what is before it.
    assert sorted((length, block.executions) for (_, length), block in found.blocks.items()) == [
        (2, 1),
        (2, 999),
        (3, 1),
    ]


@pytest.mark.parametrize("preset", PRESETS)
def test_what_comes_after_a_block_is_counted(tmp_path: Path, preset: str) -> None:
    code = THOUSAND_TIMES[targets.resolve(preset).arch]
    found = run(tmp_path, in_assembly(code), preset=preset)
    ((loop, block),) = [(k, b) for k, b in found.blocks.items() if b.executions == 999]
    assert block.followers.pop(loop) == 998
    assert list(block.followers.values()) == [1]


# The lines that say where the arrays are, and the stack.
DESCRIPTION = 3


def by_level(traffic: Traffic) -> list[int]:
    return [sum(lines) for lines in zip(traffic.streamed, traffic.scattered, strict=True)]


def test_an_array_that_fits_l1_never_leaves_it(tmp_path: Path) -> None:
    values = (8 << 10) // 4
    traffic = run(tmp_path, walk(values, 3), values=values).traffic
    assert sum(by_level(traffic)) <= DESCRIPTION


def test_an_array_that_fits_l2_comes_from_there_each_time(tmp_path: Path) -> None:
    values = (128 << 10) // 4  # of 256 KiB; L1 has 32
    traffic = run(tmp_path, walk(values, 3), values=values).traffic
    lines = 3 * values // 16
    assert lines <= by_level(traffic)[0] <= sum(by_level(traffic)) <= lines + DESCRIPTION
    # All but the first one or two of each walk go on from the line before.
    assert traffic.streamed[0] >= lines - 3 * 2


def test_a_larger_array_comes_from_l3(tmp_path: Path) -> None:
    values = (1 << 20) // 4
    traffic = run(tmp_path, walk(values, 2), values=values).traffic
    lines = 2 * values // 16
    assert lines <= by_level(traffic)[1] <= sum(by_level(traffic)) <= lines + DESCRIPTION


def test_where_there_is_no_l3_it_comes_from_memory(tmp_path: Path) -> None:
    if shutil.which("qemu-aarch64") is None:
        pytest.skip("there is no qemu-aarch64 here: apt-get install qemu-user")
    values = (4 << 20) // 4  # a Raspberry Pi 4 has 1 MiB of L2
    traffic = run(tmp_path, walk(values, 1), values=values, preset="rpi4").traffic
    lines = values // 16
    assert by_level(traffic)[1] == 0
    assert lines <= by_level(traffic)[2] <= sum(by_level(traffic)) <= lines + DESCRIPTION


def test_lines_far_apart_are_not_foreseen(tmp_path: Path) -> None:
    values = (128 << 10) // 4
    source = walk(values, 1).replace("data[at]", "data[at * 5 % 32768 / 16 * 16]")
    traffic = run(tmp_path, source, values=values).traffic
    assert traffic.streamed[0] <= DESCRIPTION
    # All but the few that L1 still has from when the array was written.
    assert values // 16 >= traffic.scattered[0] >= 0.95 * values // 16


def test_two_runs_are_the_same(tmp_path: Path) -> None:
    values = (64 << 10) // 4
    first = run(tmp_path, walk(values, 2), values=values)
    second = run(tmp_path, walk(values, 2), values=values)
    assert (first.blocks, first.traffic) == (second.blocks, second.traffic)


def test_the_result_comes_back(tmp_path: Path) -> None:
    source = HEAD + "KERNEL { arrays[1]->data[0] = arrays[0]->data[3] * 2; return 0; }"
    found = run(tmp_path, source)
    given, result = Arguments(shapes=((16,), (1,)), result=1).random()
    assert found.result.tolist() == [given[3] * 2]
    assert result != result  # NaN: unwritten


def test_an_illegal_instruction_is_a_failure_of_the_kernel(tmp_path: Path) -> None:
    with pytest.raises(EmulationError, match="killed by signal 4"):
        run(tmp_path, in_assembly("ud2"))


def test_an_instruction_that_the_core_lacks_is_one(tmp_path: Path) -> None:
    if shutil.which("qemu-aarch64") is None:
        pytest.skip("there is no qemu-aarch64 here: apt-get install qemu-user")
    # A dot product of ARMv8.2, which Cortex-A72 (ARMv8.0) has not; Neoverse N1 has.
    source = in_assembly(".inst 0x4e829420; mov w0, #0; ret")
    with pytest.raises(EmulationError, match="killed by signal 4"):
        run(tmp_path, source, preset="rpi4")
    assert run(tmp_path, source, preset="neoverse-n1").blocks


def test_a_kernel_that_refuses_its_arguments_is_one(tmp_path: Path) -> None:
    with pytest.raises(EmulationError, match="the kernel failed"):
        run(tmp_path, HEAD + "KERNEL { return -1; }")


def test_a_kernel_that_never_ends_is_killed(tmp_path: Path) -> None:
    with pytest.raises(TimeoutError):
        run(tmp_path, in_assembly("1: jmp 1b"), timeout_s=0.5)


def test_counts_cut_short_are_not_believed() -> None:
    whole = "block 4096 3 1 4099:2:1\nloads 0 1 5\nstores 1 3 2\nend\n"
    blocks, traffic = parse_counts(whole)
    assert blocks[4096, 3].followers == {(4099, 2): 1}
    assert traffic.scattered == (5, 0, 0)
    assert traffic.streamed == (0, 0, 2)
    with pytest.raises(EmulationError, match="cut short"):
        parse_counts(whole.removesuffix("end\n"))
