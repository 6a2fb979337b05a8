"""A model built just to be checked: what its plans are estimated by."""

from __future__ import annotations

import argparse
import contextlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mobilenet_tvm import cuda
from mobilenet_tvm.cli import alone


@pytest.mark.parametrize(("target", "bytes_per_s"), [("x86", 40e9), ("cuda-sm80", 1555e9)])
def test_plans_are_estimated_for_the_targets_own_memory(
    target: str, bytes_per_s: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(cuda.DEVICE_VARIABLE, raising=False)
    asked = []

    def make_plans(*_arguments: Any, **options: Any) -> tuple[()]:
        asked.append(options)
        return ()

    clean = SimpleNamespace(original=SimpleNamespace(digest="sha256:00"))
    relay = SimpleNamespace(module=None, inputs=())
    frontend = SimpleNamespace(
        read=lambda path: path,
        clean=lambda model, **_options: clean,
        to_relay=lambda clean: relay,
        guess_preprocessing=lambda inputs: None,
    )
    monkeypatch.setattr(alone, "frontend", frontend)
    monkeypatch.setattr(alone, "prepare_emulated", lambda args, preset: None)
    monkeypatch.setattr(alone, "extract_tasks", lambda module, preset: ())
    monkeypatch.setattr(alone, "make_plans", make_plans)
    monkeypatch.setattr(alone, "compile_model", lambda *_arguments, **_options: None)
    args = argparse.Namespace(
        target=target, onnx=Path("net.onnx"), shape=None, batch=None, logs=None
    )
    out = SimpleNamespace(
        working=lambda _what: contextlib.nullcontext(), warn=pytest.fail, line=lambda _text: None
    )
    alone.build_alone(args, tmp_path, out)  # type: ignore[arg-type]
    assert asked == [{"bytes_per_s": bytes_per_s}]
