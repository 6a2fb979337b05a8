"""Which GPU runs which kernels, and what is said where there is none that does."""

from __future__ import annotations

from pathlib import Path

import pytest

from mobilenet_tvm import cuda, targets
from mobilenet_tvm.build.manifest import (
    FORMAT_VERSION,
    Manifest,
    ModelInfo,
    TargetInfo,
    ToolchainInfo,
    TuningInfo,
)
from mobilenet_tvm.cuda import gpu
from mobilenet_tvm.devices.board import BoardInfo
from mobilenet_tvm.devices.cuda import ServedGpu
from mobilenet_tvm.errors import UsageError
from mobilenet_tvm.runtime import ForeignArtifactError, gpus
from mobilenet_tvm.runtime.remote import verify_board

A100 = gpu.GpuInfo("NVIDIA A100", (8, 0))


@pytest.fixture
def machine(monkeypatch):
    """Makes this machine have a GPU, or none, and a driver or none."""
    monkeypatch.delenv(cuda.DEVICE_VARIABLE, raising=False)

    def have(found: gpu.GpuInfo | None, *, driver: bool = True) -> None:
        monkeypatch.setattr(gpu, "find_gpu", lambda: found)
        monkeypatch.setattr(gpu, "why_none", lambda: "no NVIDIA GPU: the driver finds no device")
        monkeypatch.setattr(gpus, "_has_driver", lambda: driver)

    return have


def manifest_for(preset: str) -> Manifest:
    one = targets.resolve(preset)
    arch = None if one.gpu is None else one.gpu.arch
    return Manifest(
        format_version=FORMAT_VERSION,
        name="m",
        model=ModelInfo("m", "sha256:00"),
        inputs=(),
        outputs=(),
        target=TargetInfo(preset, one.target, one.arch, one.cpu_features, arch),
        toolchain=ToolchainInfo("0.1.0", "0.19.0", "22.1.8"),
        tuning=TuningInfo(1, 0),
        so_sha256="sha256:22",
    )


@pytest.mark.parametrize(
    ("needed", "found", "code", "ptx"),
    [
        ((8, 0), (8, 0), True, True),
        ((8, 0), (8, 6), True, True),
        ((8, 0), (8, 9), True, True),
        ((8, 6), (8, 0), False, False),
        ((8, 0), (7, 5), False, False),
        ((8, 0), (9, 0), False, True),
        ((7, 5), (12, 0), False, True),
        ((9, 0), (8, 9), False, False),
        ((8, 7), (8, 7), True, True),
        ((8, 0), (8, 7), False, True),  # a Jetson runs no machine code of a card
        ((8, 7), (8, 9), False, True),  # nor a card a Jetson's
    ],
)
def test_machine_code_is_of_one_major_version_and_ptx_of_all_later_ones(needed, found, code, ptx):
    assert gpus.can_run(needed, found, ptx=False) is code
    assert gpus.can_run(needed, found, ptx=True) is ptx


def test_no_driver_is_told_with_what_is_needed_and_what_to_do(machine):
    machine(None, driver=False)
    assert gpus.why_not((8, 0), "cuda-sm80") == (
        "needs an NVIDIA GPU of compute capability 8.0 or later (preset cuda-sm80); this machine "
        "has no NVIDIA driver: run it where there is one, or check it here with --device emulated"
    )


def test_a_driver_that_finds_nothing_is_told_from_none(machine):
    machine(None)
    told = gpus.why_not((8, 0), "cuda-sm80")
    assert "this machine has none (the driver finds no device): run it where there is one" in told


@pytest.mark.parametrize(
    ("needed", "ptx", "what"),
    [
        ((8, 6), True, "8.6 or later (preset p); this machine's NVIDIA A100 has 8.0: compile it"),
        ((8, 6), False, "8.6 to 8.9 (preset p)"),
        ((8, 7), False, "capability 8.7 (preset p)"),
    ],
)
def test_another_gpu_is_named_with_what_it_lacks(machine, needed, ptx, what):
    machine(A100)
    told = gpus.why_not(needed, "p", ptx=ptx)
    assert what in told
    assert "--target cuda on this machine, or check it here with --device emulated" in told
    assert "\n" not in told


def test_a_gpu_that_fits_needs_no_words(machine):
    machine(A100)
    assert gpus.why_not((8, 0), "cuda-sm80") is None
    assert gpus.why_not((7, 5), "cuda-sm75") is None  # by its PTX
    assert gpus.why_not((7, 5), "cuda-sm75", ptx=False) is not None


@pytest.mark.parametrize(
    ("needed", "found", "version", "told"),
    [
        ((8, 0), (8, 0), "12.0", None),
        ((8, 0), (8, 0), "13.0", None),
        ((8, 0), (8, 0), None, None),
        ((8, 0), (9, 0), "12.9", None),
        ((8, 0), (9, 0), "12.10", None),
        ((8, 0), (9, 0), None, None),
        (
            (8, 0),
            (8, 6),
            "11.8",
            "needs an NVIDIA driver that knows CUDA 12.0; this machine's driver 1.2 knows CUDA "
            "11.8: update it to 525 or later, or check it here with --device emulated",
        ),
        (
            (8, 0),
            (9, 0),
            "12.4",
            "needs an NVIDIA driver that knows CUDA 12.9 to compile its PTX for a GPU (9.0); this "
            "machine's driver 1.2 knows CUDA 12.4: update it to 575 or later, compile it with "
            "--target cuda on this machine, or check it here with --device emulated",
        ),
        (
            (9, 0),
            (12, 0),
            "12.8",
            "needs an NVIDIA driver that knows CUDA 12.9 to compile its PTX for a GPU (12.0); this "
            "machine's driver 1.2 knows CUDA 12.8: update it to 575 or later, or check it here "
            "with --device emulated",
        ),
    ],
)
def test_a_driver_that_is_too_old_is_to_be_updated(machine, needed, found, version, told):
    machine(gpu.GpuInfo("a GPU", found, driver_version="1.2", cuda_version=version))
    assert gpus.why_not(needed, "p") == told


def test_the_emulator_is_every_gpu(machine, monkeypatch):
    machine(None, driver=False)
    monkeypatch.setenv(cuda.DEVICE_VARIABLE, cuda.EMULATED)
    assert gpus.why_not((9, 0), "cuda-sm90") is None
    device = gpus.device_info(manifest_for("cuda-sm90"))
    assert (device.board, device.cpu, device.emulated) == (
        "emulator",
        "an emulated sm_90 GPU",
        True,
    )


def test_a_gpu_is_what_an_artifact_for_one_ran_on(machine):
    machine(A100)
    device = gpus.device_info(manifest_for("cuda-sm80"))
    assert (device.cpu, device.emulated) == ("NVIDIA A100", False)
    assert gpus.device_info(manifest_for("x86-avx2")) is None


def test_a_preset_runs_here_with_its_host_and_its_gpu(machine, monkeypatch):
    monkeypatch.setattr(targets.Preset, "runs_here", lambda one: one.arch == "x86_64")
    machine(A100)
    runs = {name: gpus.runs_here(targets.resolve(name)) for name in ("x86-avx2", "rpi4")}
    runs |= {name: gpus.runs_here(targets.resolve(name)) for name in ("cuda-sm80", "cuda-sm90")}
    runs["jetson-orin"] = gpus.runs_here(targets.resolve("jetson-orin"))
    assert [name for name, here in runs.items() if here] == ["x86-avx2", "cuda-sm80"]
    machine(None)
    assert not gpus.runs_here(targets.resolve("cuda-sm80"))
    assert gpus.runs_here(targets.resolve("x86-avx2"))


def board(gpu: ServedGpu | None) -> BoardInfo:
    features = targets.resolve("cuda-sm80").cpu_features
    return BoardInfo("x86_64", "a CPU", features, 4, 1 << 30, 1 << 30, gpu=gpu)


@pytest.mark.parametrize(
    ("served", "told"),
    [
        (None, "net.tar needs a GPU (preset cuda-sm80), and the board b (a CPU) serves none"),
        (
            ServedGpu("Tesla T4", (7, 5)),
            "net.tar is for compute capability 8.0 (preset cuda-sm80), and Tesla T4 of the board "
            "b has 7.5: compile it",
        ),
        (ServedGpu("NVIDIA A10", (8, 6)), None),
        (ServedGpu("CUDA emulator (sm_75)", (7, 5), emulated=True), None),
    ],
)
def test_a_boards_gpu_is_looked_at_before_anything_is_sent(served, told):
    # An archive, which is what its manifest says it is.
    arguments = (Path("net.tar"), manifest_for("cuda-sm80"), board(served), "b")
    if told is None:
        verify_board(*arguments)
        return
    with pytest.raises(ForeignArtifactError) as caught:
        verify_board(*arguments)
    assert told in str(caught.value)


def test_what_is_for_gpus_is_refused_of_an_artifact_for_the_cpu():
    path, manifest = Path("net.so"), manifest_for("x86-avx2")
    with pytest.raises(UsageError) as caught:
        gpus.emulate_for(path, manifest)
    assert str(caught.value) == (
        "net.so is for the CPU (preset x86-avx2), and --device emulated is for GPUs: leave that "
        "out, or compile it with --target cuda"
    )
