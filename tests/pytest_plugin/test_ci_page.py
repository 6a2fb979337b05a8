"""docs/ci.md: its files make a project, and its commands print there what the page says."""

from __future__ import annotations

import re
import shlex
import shutil
from typing import Any

import msgspec
import pytest

from mobilenet_tvm.build.manifest import read_manifest

from .conftest import NAME, REPO, Built, edit

pytestmark = pytest.mark.slow  # builds a model, and starts a pytest for each test

PAGE = (REPO / "docs" / "ci.md").read_text(encoding="utf-8")
BLOCK = re.compile(
    r"(?:<!-- (?P<state>[^\n]+) -->\n)?```(?P<kind>\w*)\n(?P<text>.*?)\n```\n", re.DOTALL
)
FILE = re.compile(
    r"^`(?P<name>[\w./]+)` .*?\n\n```\w+\n(?P<text>.*?)```\n", re.DOTALL | re.MULTILINE
)
HOME = "/tmp/flower-shop"


def consoles() -> list[tuple[str, str, str]]:
    """State of the project, command and output of each console block."""
    found = []
    for block in BLOCK.finditer(PAGE):
        if block["kind"] == "console":
            command, _, output = block["text"].partition("\n")
            found.append((block["state"] or "as it is", command.removeprefix("$ "), output))
    return found


def masked(text: str) -> list[str]:
    """What is the same in every run: no times, versions and figures, no rules around them."""
    text = re.sub(r"onnxruntime \d\S+", "onnxruntime VERSION", text)
    text = re.sub(r"\d+\.\d+(e[+-]\d+)?", "N", text)
    return [re.sub("={3,}", "===", line).rstrip() for line in text.strip().splitlines()]


@pytest.fixture
def shop(project: Any) -> Any:
    """The page's project."""
    files = {match["name"]: match["text"] for match in FILE.finditer(PAGE)}
    assert set(files) == {"pyproject.toml", "tests/test_flowers.py"}
    for name, text in files.items():
        path = project.path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return project


def run(shop: Any, command: str) -> pytest.RunResult:
    program, *arguments = shlex.split(command)
    assert program == "pytest"
    return shop.runpytest_subprocess(*arguments)


def spoil(shop: Any, built: Built, state: str) -> None:
    """Bring the project into the state that the page describes."""
    artifact = shop.path / "artifacts" / NAME
    if state == "the artifact is broken":
        shutil.copy(built.broken_onnx, shop.path / "models")
        edit(artifact, model=read_manifest(built.broken).model)
    elif state == "the artifact is foreign":
        target = read_manifest(artifact).target
        features = (*target.cpu_features, "avx10_2")
        edit(artifact, target=msgspec.structs.replace(target, cpu_features=features))
    else:
        assert state == "as it is"


@pytest.mark.parametrize(("state", "command", "output"), consoles())
def test_a_command_prints_what_the_page_says(
    shop: Any,
    built: Built,
    state: str,
    command: str,
    output: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    spoil(shop, built, state)
    monkeypatch.setenv("CI", "1")
    result = run(shop, command)
    assert result.ret == (0 if state == "as it is" else 1)
    printed = "\n".join(result.outlines).replace(str(shop.path), HOME)
    assert masked(printed) == masked(output)


def test_the_workflow_runs_what_the_page_runs(shop: Any) -> None:
    (workflow,) = (block["text"] for block in BLOCK.finditer(PAGE) if block["kind"] == "yaml")
    commands = re.findall(r"- run: (pytest.*)", workflow)
    assert len(commands) == 1
    result = run(shop, commands[0])
    assert result.ret == 0
    assert (shop.path / "parity.xml").is_file()
    (listed,) = (
        block["text"]
        for block in BLOCK.finditer(PAGE)
        if block["text"].startswith("flower-shop/\n")
    )
    for name in listed.split()[1:]:
        assert (shop.path / name).is_file()
    # Each item of the first output is passed here too: the workflow leaves none out.
    (first, *_) = consoles()
    result.assert_outcomes(passed=first[2].count(" PASSED"))


def test_every_option_and_fixture_is_on_the_page(project: Any) -> None:
    told = project.runpytest_inprocess("--help").outlines
    options = {word for line in told for word in re.findall(r"--mobilenet-[a-z-]+", line)}
    settings = {line.split()[0] for line in told if re.match(r"\s+mobilenet_\w+ \(", line)}
    fixtures = project.runpytest_inprocess("--fixtures").outlines
    names = {line.split()[0] for line in fixtures if line.startswith("mobilenet_")}
    assert len(options) == len(settings) == 9
    assert len(names) == 3
    for name in options | settings | names:
        assert f"`{name}" in PAGE
