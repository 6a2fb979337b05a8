"""docs/cuda.md: its commands parse, its presets and messages are the package's."""

from __future__ import annotations

import argparse
import ast
import importlib
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import mobilenet_tvm
from mobilenet_tvm import targets
from mobilenet_tvm.bench.gpu_peers import PEERS
from mobilenet_tvm.targets.presets import CUDA_PRESETS

from ..conftest import REPO

PAGE = (REPO / "docs" / "cuda.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
COMMANDS = [
    line.partition("  #")[0].strip()
    for block in BLOCKS
    for line in block.splitlines()
    if line.startswith("python ")
]
WITHOUT_GPU = PAGE.partition("## Without a GPU\n")[2].partition("\n## ")[0]
VERBS = [command for command in COMMANDS if command.startswith("python -m mobilenet_tvm.")]


def rows(heading: str) -> list[list[str]]:
    """Cells of the first table below a heading, without its head."""
    lines = PAGE.partition(f"## {heading}\n")[2].partition("\n## ")[0].splitlines()
    table = [line for line in lines if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table[2:]]


@pytest.mark.parametrize("command", VERBS)
def test_a_command_is_one_that_its_verb_takes(command: str) -> None:
    _, _, module, *arguments = shlex.split(command)
    package = importlib.import_module(module)
    if hasattr(package, "__path__"):
        package = importlib.import_module(f"{module}.__main__")
    parser = argparse.ArgumentParser(exit_on_error=False)
    package.add_arguments(parser)
    parser.add_argument("-v", action="store_true")
    args = parser.parse_args(arguments)
    if getattr(args, "target", None):
        targets.resolve(args.target)


def test_the_dry_run_is_as_the_page_says() -> None:
    (command,) = (one for one in COMMANDS if "--dry-run" in one)
    _, script, *arguments = shlex.split(command)
    ran = subprocess.run(
        [sys.executable, REPO / script, *arguments], capture_output=True, text=True, check=True
    )
    assert "mobilenet_tvm.tune" in ran.stdout


@pytest.mark.slow
def test_what_needs_no_gpu_runs(tmp_path: Path) -> None:
    commands = [one for one in VERBS if one in WITHOUT_GPU]
    assert len(commands) == 3
    for command in commands:
        _, *arguments = shlex.split(command)
        ran = subprocess.run(
            [sys.executable, *arguments], cwd=tmp_path, capture_output=True, text=True, timeout=300
        )
        assert ran.returncode == 0, ran.stderr[-2000:]
        assert "passed" in ran.stdout
        assert "emulated sm_80 GPU" in ran.stdout
        assert ("occupancy" in ran.stdout) is ("compile" in command)


def test_the_presets_are_the_packages() -> None:
    found = {
        (
            preset.name,
            "{}.{}".format(*preset.gpu.compute_capability),
            preset.gpu.card,
            str(preset.gpu.threads_per_multiprocessor),
            str(preset.gpu.blocks_per_multiprocessor),
            str(preset.gpu.shared_per_multiprocessor >> 10),
            str(preset.gpu.l2_bytes >> 20),
            preset.arch.replace("_", "-"),
        )
        for preset in CUDA_PRESETS
        if preset.gpu is not None
    }
    assert {(row[0].strip("`"), *row[1:]) for row in rows("Presets")} == found
    for preset in CUDA_PRESETS:
        assert preset.gpu is not None
        assert (preset.gpu.threads_per_block, preset.gpu.shared_per_block) == (1024, 48 << 10)
        assert (preset.gpu.registers_per_multiprocessor, preset.gpu.registers_per_thread) == (
            65536,
            255,
        )


def test_the_peers_are_the_packages() -> None:
    told = {row[0]: row[1].strip("`") for row in rows("How fast is it?")}
    assert told == {peer.title: peer.command for peer in PEERS.values()}


def texts() -> list[str]:
    """Every string of the package, with what is filled in left out."""
    found = []
    for path in Path(mobilenet_tvm.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                found.append(
                    "".join(
                        str(part.value) if isinstance(part, ast.Constant) else "\0"
                        for part in node.values
                    )
                )
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return found


def test_every_message_is_one_that_the_package_says() -> None:
    said = texts()
    table = rows("When something is wrong")
    assert len(table) > 10
    for row in table:
        message = re.match("`(.*?)`", row[0])
        assert message is not None
        parts = [part.strip() for part in message[1].split("...") if part.strip()]
        assert any(all(part in text for part in parts) for text in said), message[1]


def test_what_was_not_run_says_so() -> None:
    for heading in ("Tune on this machine's GPU", "How fast is it?", "Shipping it", "Jetson Orin"):
        section = PAGE.partition(f"## {heading}\n")[2].partition("\n## ")[0]
        assert "Not yet run on hardware" in section
