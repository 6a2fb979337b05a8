from __future__ import annotations

import re
from fractions import Fraction
from pathlib import Path

import pytest

from mobilenet_tvm.parity import KINDS, TOLERANCES

DOCS = Path(__file__).resolve().parents[2] / "docs" / "parity.md"


def table(heading):
    section = re.split(r"^## ", DOCS.read_text(encoding="utf-8"), flags=re.MULTILINE)
    text = next(part for part in section if part.startswith(heading))
    return re.findall(r"^\| `(\w+)` \| ([^|]*) \|", text, flags=re.MULTILINE)


def test_the_documented_tolerances_are_those_in_use():
    documented = {name: float(Fraction(value.strip())) for name, value in table("Tolerances")}
    assert documented == pytest.approx(TOLERANCES)


def test_every_kind_of_input_is_documented():
    assert [name for name, _ in table("Inputs")] == list(KINDS)
