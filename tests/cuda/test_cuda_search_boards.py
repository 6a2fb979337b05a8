"""Where a GPU's trials may run: what is refused, in one line that says what to do instead."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from mobilenet_tvm import cuda, targets
from mobilenet_tvm.cli import boards, search
from mobilenet_tvm.cuda.gpu import GpuInfo, GpuState, Watch
from mobilenet_tvm.devices.cuda import ServedGpu
from mobilenet_tvm.errors import UsageError
from mobilenet_tvm.search.board import Opened
from mobilenet_tvm.search.gpu import GpuMeasurer

A100 = targets.resolve("cuda-sm80")


def parse(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    boards.add_device_options(parser)
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args(arguments)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Any:
    """``machine(gpu)``: this machine has that GPU, or none."""
    monkeypatch.delenv(cuda.DEVICE_VARIABLE, raising=False)

    def has(found: GpuInfo | None) -> None:
        monkeypatch.setattr(boards, "find_gpu", lambda: found)
        monkeypatch.setattr(boards, "why_none", lambda: "no NVIDIA GPU: there is no driver")

    return has


def refused(*options: str, preset: targets.Preset = A100) -> str:
    with pytest.raises(UsageError) as caught:
        boards.check_device_options(parse(*options), preset)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_machine_without_a_gpu_is_told_what_to_do(machine: Any) -> None:
    machine(None)
    said = refused()
    assert said.startswith("cuda-sm80 cannot be tuned on this machine: no NVIDIA GPU: there is no")
    for way in ("--tracker and --key", "mobilenet_tvm.compile", "--device emulated"):
        assert way in said


def test_gpu_that_the_preset_is_not_for_is_refused(machine: Any) -> None:
    machine(GpuInfo("Tesla T4", (7, 5)))
    assert "its Tesla T4 has compute capability 7.5, and cuda-sm80 is for sm_80" in refused()
    for fine in ((8, 0), (8, 6), (8, 9)):  # machine code runs on later minor versions
        machine(GpuInfo("fine", fine))
        boards.check_device_options(parse(), A100)
    machine(GpuInfo("H100", (9, 0)))
    assert "compute capability 9.0" in refused()


def test_gpu_newer_than_all_presets_has_the_newest(machine: Any) -> None:
    machine(GpuInfo("RTX 6000 Blackwell", (12, 0)))
    boards.check_device_options(parse(), targets.resolve("cuda-sm90"))
    assert "12.0" in refused()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--device", "emulated"), "--device emulated: an emulator's times mean nothing"),
        (("--device", "qemu", "--allow-emulated"), "--device qemu is for CPUs"),
        (("--device", "estimate"), "--device estimate is for CPUs"),
        (("--threads", "2"), "--threads is of a CPU's kernels"),
        (("--tracker", "here:9190"), "--key: missing"),
    ],
)
def test_what_makes_no_sense_for_a_gpu(options: tuple[str, ...], words: str) -> None:
    assert words in refused(*options)


def test_emulated_gpu_is_used_where_that_is_asked_for(machine: Any) -> None:
    machine(None)
    boards.check_device_options(parse("--device", "emulated", "--allow-emulated"), A100)


def test_emulating_environment_is_no_gpu_to_tune_by(
    machine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(None)
    monkeypatch.setenv(cuda.DEVICE_VARIABLE, cuda.EMULATED)
    assert "an emulator's times mean nothing" in refused()
    boards.check_device_options(parse("--allow-emulated"), A100)


def opened(gpu: ServedGpu | None, **changes: Any) -> Opened:
    board = Opened("10.0.0.7:9090", "its GPU", machine="x86_64", cores=4, gpu=gpu)
    return dataclasses.replace(board, features=A100.cpu_features, **changes)


def test_board_is_compared_with_the_preset() -> None:
    boards._refuse_misfit(opened(ServedGpu("NVIDIA A100", (8, 0))), A100, 1)
    with pytest.raises(UsageError, match=r"has compute capability 7\.5, which cuda-sm80 is not"):
        boards._refuse_misfit(opened(ServedGpu("Tesla T4", (7, 5))), A100, 1)
    with pytest.raises(UsageError, match=r"serves no GPU, and cuda-sm80 is for one"):
        boards._refuse_misfit(opened(None), A100, 1)
    # A stock server does not tell.
    boards._refuse_misfit(Opened("10.0.0.7:9090", "unknown"), A100, 1)


class Said:
    """Stands for the verb's output."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.line = self.warn = self.lines.append

    def working(self, _what: str) -> contextlib.nullcontext[None]:
        return contextlib.nullcontext()


def test_this_machines_gpu_is_told_with_what_it_can_do(
    machine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = GpuInfo("NVIDIA A100", (8, 0), driver_version="550.54", multiprocessors=108)
    machine(found)
    monkeypatch.setattr(boards, "build_launch", lambda target, host: None)
    monkeypatch.setattr(GpuMeasurer, "launch_s", lambda self, preset: 2.1e-6)
    job, said = SimpleNamespace(tasks=(), preset=A100), Said()
    device = boards.make_measurer(parse(), job, None, said)  # type: ignore[arg-type]
    device.measurer.close()
    assert (device.timing, device.cpu, device.gpu) == ("measured", "NVIDIA A100", True)
    assert not device.here, "that is this machine's CPU, of which noise and peak are measured"
    assert device.launch_s == 2.1e-6
    assert device.notes == (str(found), "a launch takes 2.1 us")
    assert said.lines == [f"GPU       {found}; a launch takes 2.1 us"]


@pytest.mark.parametrize(("driver", "note"), [("540.3", "Orin, driver 540.3"), (None, "Orin")])
def test_a_boards_card_is_noted_with_its_driver_if_that_is_known(
    driver: str | None, note: str
) -> None:
    assert boards._card_note(ServedGpu("Orin", (8, 7), driver)) == note


def test_clocks_and_heat_are_noted_and_a_throttled_gpu_is_warned_of(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hot = GpuState(sm_clock_mhz=900, temperature_c=92, reasons=("hardware thermal",))

    @contextlib.contextmanager
    def watching() -> Iterator[Watch]:
        seen = Watch()
        seen._states.append(hot)
        yield seen

    monkeypatch.setattr(search, "watch", watching)
    device = boards.Device(GpuMeasurer(0), "measured", "NVIDIA A100", gpu=True)
    notes: list[str] = []
    said = Said()
    # A run that ends in an error has its notes as well.
    with pytest.raises(KeyError), search._watching_gpu(device, notes, said):  # type: ignore[arg-type]
        raise KeyError
    assert notes == ["GPU: SM clock 900 MHz, at most 92 °C, THROTTLED (hardware thermal)"]
    assert "the GPU was not at its best" in said.lines[0]


def test_peak_is_never_lower_than_the_presets_card() -> None:
    assert A100.gpu is not None
    card = boards._peak_flops(A100.gpu, GpuInfo("unknown", (8, 0)))
    assert card == pytest.approx(19.5e12, rel=0.01)  # the A100's data sheet
    larger = GpuInfo("larger", (8, 0), multiprocessors=216, max_sm_clock_mhz=1410)
    assert boards._peak_flops(A100.gpu, larger) == pytest.approx(2 * card)
