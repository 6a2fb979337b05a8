"""What a board tells of itself, out of a ``/sys`` made for the purpose."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from mobilenet_tvm.devices.board import BoardInfo, board_info


def _write(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def test_a_board_that_tells_nothing(tmp_path: Path) -> None:
    info = board_info(sys_folder=tmp_path)
    assert (info.temperature_c, info.throttled, info.frequency_mhz) == (None, None, None)
    assert info.memory_bytes >= info.available_bytes > 0
    assert info.emulated is None
    assert info.cores >= 1


def test_the_hottest_zone_and_the_fastest_core(tmp_path: Path) -> None:
    _write(
        tmp_path,
        {
            "class/thermal/thermal_zone0/temp": "48312\n",
            "class/thermal/thermal_zone1/temp": "61000\n",
            "class/thermal/thermal_zone2/temp": "not there\n",
            "devices/system/cpu/cpu0/cpufreq/scaling_cur_freq": "600000\n",
            "devices/system/cpu/cpu1/cpufreq/scaling_cur_freq": "1800000\n",
        },
    )
    info = board_info(sys_folder=tmp_path)
    assert info.temperature_c == 61.0
    assert info.frequency_mhz == 1800.0


@pytest.mark.parametrize(
    ("kind", "state", "throttled"),
    [("cpufreq-cpu0", "0", False), ("thermal-cpufreq-0", "3", True), ("pwm-fan", "4", None)],
)
def test_a_clock_that_is_held_down(
    tmp_path: Path, kind: str, state: str, throttled: bool | None
) -> None:
    device = "class/thermal/cooling_device0"
    _write(tmp_path, {f"{device}/type": kind, f"{device}/cur_state": state})
    assert board_info(sys_folder=tmp_path).throttled is throttled


@pytest.mark.parametrize(
    ("bits", "throttled"),
    [("0", False), ("4", True), ("1", True), ("50000", False)],  # the last: in the past
)
def test_a_raspberry_pi_says_so_itself(tmp_path: Path, bits: str, throttled: bool) -> None:
    name = "devices/platform/soc/soc:firmware/get_throttled"
    cooling = "class/thermal/cooling_device0"
    _write(tmp_path, {name: bits, f"{cooling}/type": "cpufreq-cpu0", f"{cooling}/cur_state": "0"})
    assert board_info(sys_folder=tmp_path).throttled is throttled


def test_an_emulated_board_has_no_weather(tmp_path: Path) -> None:
    _write(tmp_path, {"class/thermal/thermal_zone0/temp": "48312\n"})
    info = board_info("cortex-a72", tmp_path)
    assert info.cpu == "cortex-a72 (emulated)"
    assert info.emulated == "cortex-a72"
    assert info.temperature_c is None


def test_another_versions_board_is_understood() -> None:
    told = {**msgspec.to_builtins(board_info()), "wheels": 4}
    assert msgspec.json.decode(msgspec.json.encode(told), type=BoardInfo).cores >= 1
