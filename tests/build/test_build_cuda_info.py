"""What a manifest says of kernels for a GPU, and the source beside the artifact."""

from __future__ import annotations

import io
from pathlib import Path

import msgspec
import pytest
from rich.console import Console

from mobilenet_tvm.build.cuda_info import (
    CudaInfo,
    KernelInfo,
    read_source,
    source_digest,
    source_name,
    write_source,
)
from mobilenet_tvm.build.manifest import (
    FORMAT_VERSION,
    Manifest,
    ModelInfo,
    TargetInfo,
    ToolchainInfo,
    TuningInfo,
    manifest_path,
    read_manifest,
    write_manifest,
)
from mobilenet_tvm.cli.cuda_report import print_kernels, summary
from mobilenet_tvm.cli.frame import Output
from mobilenet_tvm.errors import UsageError

SOURCE = 'extern "C" __global__ void k(float* out) {}  // Grüße\n'


def kernel(name: str, **changes: object) -> KernelInfo:
    plain = KernelInfo(name, 40, 0, 0, 4096, 128, 98, 0.75, "registers", 0.5, 1.25)
    return msgspec.structs.replace(plain, **changes)


INFO = CudaInfo(
    arch="sm_80",
    compute_capability="8.0",
    ptx=True,
    image_digest="sha256:33",
    source="m.cuda-sm80.cu",
    source_digest=source_digest(SOURCE),
    kernels=(kernel("tvmgen_default_fused_nn_conv2d_kernel"), kernel("b", occupancy=1.0)),
)
MANIFEST = Manifest(
    format_version=FORMAT_VERSION,
    name="m.cuda-sm80",
    model=ModelInfo("m", "sha256:00"),
    inputs=(),
    outputs=(),
    target=TargetInfo("cuda-sm80", "cuda -arch=sm_80", "x86_64", ("sse4_2",), "sm_80"),
    toolchain=ToolchainInfo("0.1.0", "0.19.0", "22.1.8"),
    tuning=TuningInfo(1, 0),
    so_sha256="sha256:22",
    cuda=INFO,
)


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    path = tmp_path / "m.cuda-sm80.so"
    path.write_bytes(b"not really")
    write_manifest(path, MANIFEST)
    write_source(path.with_name(source_name(path)), SOURCE)
    return path


def test_kernels_are_read_as_they_were_written(artifact: Path) -> None:
    assert read_manifest(artifact) == MANIFEST
    assert read_source(artifact, INFO) == SOURCE
    names = {"m.cuda-sm80.so", "m.cuda-sm80.cu", "m.cuda-sm80.manifest.json"}
    assert {path.name for path in artifact.parent.iterdir()} == names


def test_a_manifest_from_before_there_were_gpus_is_read(artifact: Path) -> None:
    path = manifest_path(artifact)
    fields = msgspec.json.decode(path.read_bytes())
    del fields["cuda"], fields["target"]["cuda_arch"]
    path.write_bytes(msgspec.json.encode(fields))
    assert read_manifest(artifact).cuda is None


@pytest.mark.parametrize("gone", ["registers", "bank_conflicts"])
def test_a_damaged_kernel_is_refused_by_its_field(artifact: Path, gone: str) -> None:
    path = manifest_path(artifact)
    fields = msgspec.json.decode(path.read_bytes())
    del fields["cuda"]["kernels"][1][gone]
    path.write_bytes(msgspec.json.encode(fields))
    with pytest.raises(UsageError, match=rf"{gone}.*\$\.cuda\.kernels\[1\]"):
        read_manifest(artifact)


def test_another_source_is_refused(artifact: Path) -> None:
    source = artifact.with_name(INFO.source)
    source.write_text(SOURCE.replace("float", "half"), encoding="utf-8")
    with pytest.raises(UsageError) as caught:
        read_source(artifact, INFO)
    assert f"{source} is not the source that the manifest of {artifact.name} describes" in str(
        caught.value
    )
    assert "\n" not in str(caught.value)


def test_a_missing_source_is_told(artifact: Path) -> None:
    artifact.with_name(INFO.source).unlink()
    with pytest.raises(UsageError, match=r"has no m\.cuda-sm80\.cu beside it, which the emulator"):
        read_source(artifact, INFO)


def with_kernels(*kernels: KernelInfo) -> CudaInfo:
    return msgspec.structs.replace(INFO, kernels=kernels)


def test_the_lowest_occupancy_is_named() -> None:
    told = summary(INFO)
    assert told == "2 for sm_80, no spills, lowest occupancy 75% (nn_conv2d, by registers)"


def test_spills_are_said_with_the_worst() -> None:
    told = summary(
        with_kernels(kernel("a", spill_bytes=8), kernel("b"), kernel("c", spill_bytes=64))
    )
    assert "3 for sm_80, 2 of them spilling registers to memory (the most in c, 64 bytes" in told
    assert "no spills" not in told


def test_what_cannot_be_launched_is_said() -> None:
    assert "1 too large to be launched (b)" in summary(
        with_kernels(kernel("a"), kernel("b", occupancy=0.0, limited_by="shared"))
    )


def test_unknown_kernels_claim_nothing() -> None:
    assert summary(with_kernels()) == "for sm_80"


@pytest.mark.parametrize("verbose", [False, True])
def test_the_table_is_for_who_asks(verbose: bool) -> None:
    stream = io.StringIO()
    console = Console(file=stream, width=40)
    print_kernels(INFO, Path("m.cu"), Output(console, console, verbose))
    lines = stream.getvalue().splitlines()
    assert lines[0].startswith("kernels   2 for sm_80")
    assert lines[0].endswith("; source m.cu")
    assert len(lines) == (5 if verbose else 1)
    if verbose:
        assert lines[3].split() == [
            *("98", "x", "128", "40", "0", "4096", "75%", "registers", "50%", "1.2", "nn_conv2d")
        ]
