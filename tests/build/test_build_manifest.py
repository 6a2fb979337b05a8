"""Manifests: what is written is read again; damage is refused in one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from mobilenet_tvm.build.manifest import (
    FORMAT_VERSION,
    CandidateInfo,
    LatencyInfo,
    Manifest,
    ModelInfo,
    NpzInfo,
    ParityInfo,
    Preprocessing,
    TargetInfo,
    TensorSpec,
    ToolchainInfo,
    TuningInfo,
    manifest_path,
    read_manifest,
    sha256_bytes,
    sha256_file,
    write_manifest,
)
from mobilenet_tvm.errors import UsageError

FULL = Manifest(
    format_version=FORMAT_VERSION,
    name="m",
    model=ModelInfo("m", "sha256:00", zoo={"alpha": 0.25}, batch=1, shape=(1, 3, 32, 32)),
    inputs=(TensorSpec("input", (1, 3, 32, 32), "float32"),),
    outputs=(TensorSpec("logits", (1, 10), "float32"),),
    target=TargetInfo("x86-avx2", "llvm", "x86_64", ("avx2", "fma")),
    toolchain=ToolchainInfo("0.1.0", "0.19.0", "22.1.8"),
    tuning=TuningInfo(21, 20, "sha256:11", ("ansor", "autotvm"), 3),
    so_sha256="sha256:22",
    preprocessing=Preprocessing(32, 32, 36, "BGR", (0.1, 0.2, 0.3), (1.0, 1.0, 1.0)),
    labels=("cat", "dög"),
    parity=ParityInfo(
        True,
        "onnxruntime 1.32",
        1e-4,
        1e-6,
        3,
        2,
        1.0,
        None,
        references=("onnxruntime 1.32", "onnx 1.18"),
        kinds={"uniform": 2, "zeros": 1},
        seed=7,
        npz=(NpzInfo("mine.npz", "sha256:33"),),
        near_ties=1,
        unreadable=1,
        worst="uniform 1",
    ),
    latency=(LatencyInfo("cpu", 1, 1.5, 1.4, 1.9),),
    decision=(
        CandidateInfo("mix", True, "fastest of 2", 1.5, 1.0, 3, True),
        CandidateInfo("ansor", False, "not built: estimated 21.3 ms"),
    ),
)


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    path = tmp_path / "mobilenet_v1_1.0_224.x86.so"  # dots of its own in the name
    path.write_bytes(b"not really")
    write_manifest(path, FULL)
    return path


def test_what_is_written_is_read(artifact: Path) -> None:
    assert manifest_path(artifact).name == "mobilenet_v1_1.0_224.x86.manifest.json"
    assert read_manifest(artifact) == FULL
    assert sorted(path.name for path in artifact.parent.iterdir()) == sorted(
        [artifact.name, manifest_path(artifact).name]
    )  # no temporary file is left


def test_digests_of_a_file_and_of_its_bytes_are_one(artifact: Path) -> None:
    assert sha256_file(artifact) == sha256_bytes(b"not really")
    assert sha256_bytes(b"").startswith("sha256:e3b0c442")


def set_field(name: str, value: Any) -> Callable[[bytes], bytes]:
    def change(raw: bytes) -> bytes:
        fields = json.loads(raw)
        fields[name] = value
        return json.dumps(fields).encode()

    return change


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda raw: raw[: len(raw) // 2], "is damaged"),
        (lambda raw: b"", "is damaged"),
        (lambda raw: b"[1, 2]", "is damaged"),
        (lambda raw: b"\xff\xfe{}", "is damaged"),
        (lambda raw: b"{}", f"has format None, this version reads {FORMAT_VERSION}"),
        (set_field("format_version", 1), f"has format 1, this version reads {FORMAT_VERSION}"),
        (set_field("format_version", "2"), "has format 2"),
        (set_field("labels", 3), "$.labels"),
        (set_field("surprise", 1), "surprise"),
        (
            set_field("inputs", [{"name": "x", "shape": [1, "2"], "dtype": "f"}]),
            "$.inputs[0].shape",
        ),
    ],
)
def test_a_damaged_or_foreign_manifest_is_refused(
    artifact: Path, damage: Callable[[bytes], bytes], told: str
) -> None:
    path = manifest_path(artifact)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UsageError) as caught:
        read_manifest(artifact)
    assert told in str(caught.value)
    assert "compile the model again" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_artifact_or_manifest_is_told(artifact: Path) -> None:
    with pytest.raises(UsageError, match="no artifact at"):
        read_manifest(artifact.with_name("other.so"))
    manifest_path(artifact).unlink()
    with pytest.raises(UsageError, match=r"no manifest .* beside it"):
        read_manifest(artifact)


def test_the_manifest_is_plain_json(artifact: Path) -> None:
    fields = json.loads(manifest_path(artifact).read_text(encoding="utf-8"))
    assert set(fields) == set(msgspec.structs.asdict(FULL))
    assert fields["labels"] == ["cat", "dög"]
