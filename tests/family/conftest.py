"""Every network of the zoo proven in child processes of its own, two at a time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from mobilenet_tvm import zoo
from mobilenet_tvm.zoo.tables import FAMILIES

PROVE = Path(__file__).with_name("prove.py")
AT_ONCE = 2
TIMEOUT_S = 500
SMOKE = ("mobilenet_v1_shallow",)


@dataclass(frozen=True)
class Case:
    """A network of the zoo and what it is built with, as ``zoo.build`` takes it."""

    name: str
    options: tuple[tuple[str, float], ...]

    def __str__(self) -> str:
        return "-".join((self.name, *(f"{value:g}" for _, value in self.options[1:])))


def case_of(name: str, **changes: float) -> Case:
    """The narrowest published form of a network, on as few pixels as keep it alive.

    On 64 pixels across the last maps are 2x2: smaller ones hide most of a kernel's taps.
    """
    family = FAMILIES[name]
    options: dict[str, float] = {
        "classes": 6,
        "alpha": family.alphas[-1],
        "resolution": -(-max(64, family.least_resolution) // family.step) * family.step,
    }
    return Case(name, tuple((options | changes).items()))


CASES = [case_of(name) for name in zoo.names()] + [
    # Tiles that do not divide the maps (28, 14, 7 and 38, 19, 10, 5 across), and a batch.
    case_of("mobilenet_v1", alpha=0.35, resolution=224, batch=3),
    case_of("mobilenet_v2", alpha=0.75, resolution=75, batch=3),
]


class Proofs:
    """What the children found, by case. They begin with the first case that is asked for."""

    def __init__(self, cases: list[Case], folder: Path) -> None:
        self._folder = folder
        self._children: list[subprocess.Popen[str]] = []
        self._pool = ThreadPoolExecutor(AT_ONCE)
        self._found: dict[Case, Future[dict[str, Any]]] = {
            case: self._pool.submit(self._prove, number, case) for number, case in enumerate(cases)
        }

    def __getitem__(self, case: Case) -> dict[str, Any]:
        return self._found[case].result()

    def _prove(self, number: int, case: Case) -> dict[str, Any]:
        folder = self._folder / str(number)
        folder.mkdir()
        child = subprocess.Popen(
            [
                sys.executable,
                str(PROVE),
                case.name,
                json.dumps(dict(case.options)),
                str(folder),
                str(os.getpid()),
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._children.append(child)
        try:
            out, err = child.communicate(timeout=TIMEOUT_S)
        except subprocess.TimeoutExpired:
            child.kill()
            raise AssertionError(f"{case} took more than {TIMEOUT_S} s") from None
        assert child.returncode == 0, f"{case} ended with {child.returncode}:\n{err[-3000:]}"
        found: dict[str, Any] = json.loads(out)
        return found

    def close(self) -> None:
        """Stop what still runs."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        for child in self._children:
            if child.poll() is None:
                child.kill()


@pytest.fixture(scope="session")
def proofs(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Proofs]:
    """Proofs of the cases that this session's tests ask for, in their order."""
    specs = [getattr(item, "callspec", None) for item in request.session.items]
    asked = [spec.params["case"] for spec in specs if spec and "case" in spec.params]
    cases = [case for case in dict.fromkeys(asked) if isinstance(case, Case)]
    found = Proofs(cases, tmp_path_factory.mktemp("family"))
    yield found
    found.close()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Each test with a ``case`` runs over the whole registry: a new row needs no test."""
    if "case" in metafunc.fixturenames:
        marked = [
            pytest.param(case, marks=() if case.name in SMOKE else pytest.mark.slow, id=str(case))
            for case in CASES
        ]
        metafunc.parametrize("case", marked, scope="session")
