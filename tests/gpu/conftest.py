"""The tests of this folder run on this machine's NVIDIA GPU, and are skipped where there is none.

``MOBILENET_TVM_CUDA=emulated pytest -m gpu`` runs their bodies on the emulator: that tries the
tests, and checks all but the GPU.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mobilenet_tvm import cuda
from mobilenet_tvm.cuda import gpu

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """One reason for all, found without asking the GPU for anything."""
    own = [item for item in items if HERE in item.path.parents]
    why = gpu.why_none() if own and not cuda.emulated() else None
    for item in own:
        item.add_marker(pytest.mark.gpu)
        if why is not None:
            item.add_marker(pytest.mark.skip(reason=why))


def device_options(*, tune: bool = False) -> list[str]:
    """What a verb is told where kernels run."""
    if not cuda.emulated():
        return []
    return ["--device", "emulated", *(["--allow-emulated"] if tune else [])]


@pytest.fixture(scope="session")
def verb() -> Callable[..., dict[str, Any]]:
    """Run a verb with ``--json`` as a user does, in its own process; what it printed."""

    def run(name: str, *arguments: object, status: int = 0, **environment: str) -> dict[str, Any]:
        done = subprocess.run(
            [sys.executable, "-m", f"mobilenet_tvm.{name}", *map(str, arguments), "--json"],
            capture_output=True,
            text=True,
            timeout=540,
            env={**os.environ, **environment},
        )
        assert done.returncode == status, done.stderr[-2000:]
        payload: dict[str, Any] = json.loads(done.stdout)
        return payload

    return run


@pytest.fixture(scope="session")
def built(
    tmp_path_factory: pytest.TempPathFactory, verb: Callable[..., dict[str, Any]]
) -> Callable[..., tuple[Path, dict[str, Any]]]:
    """A function that compiles a model of the zoo untuned, once: the artifact, what was printed."""
    made: dict[tuple[object, ...], tuple[Path, dict[str, Any]]] = {}

    def build(*model: object) -> tuple[Path, dict[str, Any]]:
        if model not in made:
            folder = tmp_path_factory.mktemp("built")
            options = ("--target", "cuda", "-o", folder, *device_options())
            payload = verb("compile", "--model", *model, *options)
            made[model] = Path(payload["artifact"]), payload
        return made[model]

    return build
