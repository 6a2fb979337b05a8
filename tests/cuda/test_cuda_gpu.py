"""What this machine's GPU is, told by an NVML of our own that has one, several, or none."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mobilenet_tvm import targets
from mobilenet_tvm.cuda import gpu, jetson
from mobilenet_tvm.errors import UsageError
from mobilenet_tvm.targets import presets

A100 = {
    "Name": b"NVIDIA A100-SXM4-40GB",  # bytes, as old releases of nvidia-ml-py return them
    "UUID": "GPU-11111111-aaaa",
    "CudaComputeCapability": (8, 0),
    "MemoryInfo": types.SimpleNamespace(total=40 << 30),
    "NumGpuCores": 6912,
    "EnforcedPowerLimit": 400_000,
    "MaxClockInfo": {"SM": 1410, "MEM": 1215},
    "ClockInfo": {"SM": 1380, "MEM": 1215},
    "Temperature": 61,
    "PowerUsage": 187_500,
    "CurrentClocksEventReasons": 0x4 | 0x20,
    "UtilizationRates": types.SimpleNamespace(gpu=73, memory=20),
    "ComputeRunningProcesses": [],
    "MigMode": [0, 0],
}
T4 = {
    **A100,
    "Name": "Tesla T4",
    "UUID": "GPU-22222222-bbbb",
    "CudaComputeCapability": (7, 5),
    "NumGpuCores": 2560,
}
SLICE = {
    "Name": "NVIDIA A100-SXM4-40GB MIG 1g.5gb",
    "UUID": "MIG-33333333-cccc",
    "MemoryInfo": types.SimpleNamespace(total=5 << 30),
    "Attributes": types.SimpleNamespace(multiprocessorCount=14),
}


class NvmlError(Exception):
    """As nvidia-ml-py's."""


class NotFoundError(NvmlError):
    """The library, or a device."""


class NotLoadedError(NvmlError):
    """The driver."""


class FakeNvml(types.ModuleType):
    """The part of nvidia-ml-py that is used, over dictionaries as handles."""

    NVMLError = NvmlError
    NVMLError_LibraryNotFound = NotFoundError
    NVMLError_DriverNotLoaded = NotLoadedError
    NVML_CLOCK_SM = "SM"
    NVML_CLOCK_MEM = "MEM"
    NVML_TEMPERATURE_GPU = "GPU"

    def __init__(self, *gpus: dict[str, Any], fails: NvmlError | None = None) -> None:
        super().__init__("pynvml")
        self.gpus, self.fails, self.open, self.inits = gpus, fails, 0, 0

    def nvmlInit(self) -> None:  # noqa: N802
        self.inits += 1
        if self.fails:
            raise self.fails
        self.open += 1

    def nvmlShutdown(self) -> None:  # noqa: N802
        self.open -= 1

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        return len(self.gpus)

    def nvmlSystemGetDriverVersion(self) -> str:  # noqa: N802
        return "550.54.15"

    def nvmlSystemGetCudaDriverVersion_v2(self) -> int:  # noqa: N802
        return 12040

    def nvmlDeviceGetHandleByIndex(self, index: int) -> dict[str, Any]:  # noqa: N802
        return self.gpus[index]

    def nvmlDeviceGetMaxMigDeviceCount(self, handle: dict[str, Any]) -> int:  # noqa: N802
        return 7

    def nvmlDeviceGetMigDeviceHandleByIndex(  # noqa: N802
        self, handle: dict[str, Any], index: int
    ) -> dict[str, Any]:
        found = handle["slices"].get(index)
        if found is None:
            raise NotFoundError("Not Found")
        slice_: dict[str, Any] = found
        return slice_

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("nvmlDeviceGet"):
            raise AttributeError(name)
        assert self.open, "asked before nvmlInit"

        def get(handle: dict[str, Any], *about: str) -> Any:
            value = handle.get(name.removeprefix("nvmlDeviceGet"))
            if value is None:
                raise NvmlError("Not Supported")
            return value[about[0]] if isinstance(value, dict) else value

        return get


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    """A function that gives this machine the GPUs of its arguments; all is closed at the end."""
    made: list[FakeNvml] = []
    for name in ("CUDA_VISIBLE_DEVICES", "MOBILENET_TVM_CUDA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "FASTEST_FIRST")  # what it was is set again at the end
    monkeypatch.delenv("CUDA_DEVICE_ORDER")
    monkeypatch.setattr(jetson, "ROOT", tmp_path)

    def give(*gpus: dict[str, Any], fails: NvmlError | None = None, arch: str = "x86_64") -> Any:
        made.append(FakeNvml(*gpus, fails=fails))
        monkeypatch.setitem(sys.modules, "pynvml", made[-1])
        monkeypatch.setattr(presets.platform, "machine", lambda: arch)
        return made[-1]

    yield give
    assert [nvml.open for nvml in made] == [0] * len(made)


def test_a_gpu_is_described(machine: Any) -> None:
    machine(A100)
    found = gpu.find_gpu()
    assert found == gpu.GpuInfo(
        name="NVIDIA A100-SXM4-40GB",
        compute_capability=(8, 0),
        uuid="GPU-11111111-aaaa",
        driver_version="550.54.15",
        cuda_version="12.4",
        memory_bytes=40 << 30,
        multiprocessors=108,
        power_limit_w=400.0,
        max_sm_clock_mhz=1410,
    )
    assert str(found) == "NVIDIA A100-SXM4-40GB (sm_80, 108 SMs, 40.0 GiB), driver 550.54.15"
    assert gpu.why_none() is None


def test_nvml_is_started_once_for_what_does_not_change(machine: Any) -> None:
    nvml = machine(A100)
    assert [gpu.find_gpu() for _ in range(3)] == [gpu.find_gpu()] * 3
    assert nvml.inits == 1


@pytest.mark.parametrize("fields", [("Name",), ("UUID", "NumGpuCores", "EnforcedPowerLimit")])
def test_what_the_driver_does_not_tell_is_none(machine: Any, fields: tuple[str, ...]) -> None:
    machine({name: value for name, value in A100.items() if name not in fields})
    found = gpu.find_gpu()
    assert found is not None
    assert found.name == ("NVIDIA GPU" if "Name" in fields else "NVIDIA A100-SXM4-40GB")
    assert (found.uuid is None) == ("UUID" in fields)
    assert (found.multiprocessors is None) == ("NumGpuCores" in fields)
    assert (found.power_limit_w is None) == ("EnforcedPowerLimit" in fields)


@pytest.mark.parametrize(
    ("fails", "says"),
    [
        (NotFoundError(), "no NVIDIA driver is installed"),
        (NotLoadedError(), "installed and not loaded"),
        (NvmlError("Driver/library version mismatch"), "NVML says Driver/library version mismatch"),
    ],
    ids=["library", "driver", "mismatch"],
)
def test_no_driver_is_said_in_words(machine: Any, fails: NvmlError, says: str) -> None:
    machine(A100, fails=fails)
    assert gpu.find_gpu() is None
    why = gpu.why_none()
    assert why is not None
    assert why.startswith("no NVIDIA GPU: ")
    assert says in why
    assert gpu.read_state() is None
    with gpu.watch() as seen:
        pass
    assert seen.summary() is None


def test_no_device_and_no_library_are_said_in_words(
    machine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine()
    assert gpu.why_none() == "no NVIDIA GPU: the driver finds no device"
    machine({**A100, "CudaComputeCapability": None})
    assert "does not tell its compute capability" in str(gpu.why_none())
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert "pip install 'mobilenet-tvm[cuda]'" in str(gpu.why_none())


@pytest.mark.parametrize(
    ("visible", "names"),
    [
        ("1", ["Tesla T4"]),
        ("1,0", ["Tesla T4", "NVIDIA A100-SXM4-40GB"]),
        ("0, 7, 1", ["NVIDIA A100-SXM4-40GB"]),
        ("GPU-2222", ["Tesla T4"]),
        ("GPU-9", []),
        ("", []),
        ("-1", []),
        ("NoDevFiles", []),
    ],
)
def test_cuda_visible_devices_is_honoured(
    machine: Any, monkeypatch: pytest.MonkeyPatch, visible: str, names: list[str]
) -> None:
    machine(A100, T4)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    found = [gpu.find_gpu(index) for index in range(3)]
    assert [info.name for info in found if info] == names
    assert f"2 in the machine, CUDA_VISIBLE_DEVICES is {visible!r}" in str(gpu.why_none(2))


@pytest.mark.parametrize("visible", [None, "0", "MIG-3333", "GPU-1111"])
def test_of_a_gpu_in_slices_the_first_slice_is_the_device(
    machine: Any, monkeypatch: pytest.MonkeyPatch, visible: str | None
) -> None:
    machine({**A100, "MigMode": [1, 1], "slices": {3: SLICE, 4: {**SLICE, "UUID": "MIG-4"}}})
    if visible:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    found = gpu.find_gpu()
    assert found is not None
    assert found.mig
    assert (found.name, found.multiprocessors) == (SLICE["Name"], 14)
    assert (found.uuid, found.memory_bytes) == ("MIG-33333333-cccc", 5 << 30)
    # What the slices share the whole GPU tells.
    assert (found.compute_capability, found.power_limit_w) == ((8, 0), 400.0)
    state = gpu.read_state()
    assert state is not None
    assert state.temperature_c == 61


def test_a_state_is_in_units_and_words(machine: Any) -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        pids = (os.getpid(), child.pid, os.getppid(), 999_999_999)
        running = [types.SimpleNamespace(pid=pid) for pid in pids]
        machine({**A100, "ComputeRunningProcesses": running})
        state = gpu.read_state()
    finally:
        child.communicate()
    assert state == gpu.GpuState(1380, 1215, 61, 187.5, ("power cap", "software thermal"), 73, 1)
    assert state.throttled


def test_in_a_container_the_hosts_numbers_are_nobody(machine: Any) -> None:
    # The pid namespace hides them: NVML tells this process's own as the host has it, too.
    running = [types.SimpleNamespace(pid=pid) for pid in (999_999_998, 999_999_999)]
    machine({**A100, "ComputeRunningProcesses": running})
    state = gpu.read_state()
    assert state is not None
    assert state.others == 0


def test_cuda_is_told_to_number_gpus_as_nvml_does(
    machine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(T4, A100)
    assert gpu.find_gpu() is not None
    assert os.environ["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "FASTEST_FIRST")
    assert gpu.find_gpu() is not None
    assert os.environ["CUDA_DEVICE_ORDER"] == "FASTEST_FIRST"


@pytest.mark.parametrize(
    ("bits", "throttled"), [(0, False), (0x1, False), (0x2, False), (0x100, False), (0x40, True)]
)
def test_an_idle_or_set_clock_is_not_throttled(machine: Any, bits: int, throttled: bool) -> None:
    # An older driver's name for the reasons.
    old = {**A100, "CurrentClocksEventReasons": None, "CurrentClocksThrottleReasons": bits}
    machine(old)
    state = gpu.read_state()
    assert state is not None
    assert state.throttled is throttled


def test_a_gpu_that_tells_nothing_has_an_empty_state(machine: Any) -> None:
    machine({"CudaComputeCapability": (8, 0)})
    assert gpu.read_state() == gpu.GpuState()
    with gpu.watch(period_s=None) as seen:
        pass
    summary = seen.summary()
    assert summary is not None
    assert (summary.samples, summary.throttled, summary.max_temperature_c) == (2, False, None)
    assert str(summary) == "SM clock unknown"


def test_watch_takes_the_clock_from_busy_samples_and_the_heat_from_all(machine: Any) -> None:
    card = {**A100, "CurrentClocksEventReasons": 0x1, "ClockInfo": {"SM": 210, "MEM": 405}}
    machine(card)
    with gpu.watch(period_s=None) as seen:
        for clock, heat, bits in ((1410, 70, 0), (1290, 83, 0x20)):
            card |= {"Temperature": heat, "CurrentClocksEventReasons": bits}
            card["ClockInfo"] = {"SM": clock, "MEM": 1215}
            seen.sample()
        card |= {"CurrentClocksEventReasons": 0x1, "ClockInfo": {"SM": 300, "MEM": 405}}
    summary = seen.summary()
    assert summary is not None
    assert (summary.min_sm_clock_mhz, summary.max_sm_clock_mhz) == (1290, 1410)
    assert summary.min_memory_clock_mhz == summary.max_memory_clock_mhz == 1215
    assert (summary.max_temperature_c, summary.samples) == (83, 4)
    assert summary.throttled
    assert summary.reasons == ("idle", "software thermal")
    assert "SM clock 1290-1410 MHz, memory clock 1215 MHz, at most 83 °C" in str(summary)
    assert "THROTTLED (software thermal)" in str(summary)


def test_watch_samples_within_the_block_and_stops_with_it(machine: Any) -> None:
    nvml = machine(A100)
    assert gpu.find_gpu() is not None
    started = nvml.inits
    threads = threading.active_count()
    with gpu.watch(period_s=0.001) as seen:
        while len(seen.states) < 4:
            time.sleep(0.001)
    taken = len(seen.states)
    assert threading.active_count() == threads
    assert nvml.inits == started + 1  # for all samples
    time.sleep(0.01)
    assert len(seen.states) == taken
    assert nvml.open == 0


def orin(root: Path) -> None:
    files = {
        "proc/device-tree/model": "NVIDIA Jetson AGX Orin Developer Kit\0",
        "etc/nv_tegra_release": "# R36 (release), REVISION: 3.0, GCID: 36923193, BOARD: generic\n",
        "sys/class/devfreq/17000000.gpu/cur_freq": "1300500000\n",
        "sys/class/thermal/thermal_zone0/type": "cpu-thermal\n",
        "sys/class/thermal/thermal_zone0/temp": "70000\n",
        "sys/class/thermal/thermal_zone1/type": "gpu-thermal\n",
        "sys/class/thermal/thermal_zone1/temp": "51500\n",
        "sys/devices/platform/gpu.0/load": "985\n",
    }
    for path, text in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)


def test_an_orin_without_nvml_is_known_by_its_files(machine: Any, tmp_path: Path) -> None:
    machine(fails=NotFoundError(), arch="aarch64")
    orin(tmp_path)
    found = gpu.find_gpu()
    assert found is not None
    assert (found.name, found.arch) == ("NVIDIA Jetson AGX Orin Developer Kit", "sm_87")
    assert found.driver_version == "36.3.0"
    assert gpu.find_gpu(1) is None
    assert gpu.read_state() == gpu.GpuState(sm_clock_mhz=1300, temperature_c=52, utilization=98)
    assert targets.resolve("cuda").name == "jetson-orin"


def test_an_orins_nvml_is_completed_from_its_files(machine: Any, tmp_path: Path) -> None:
    # As JetPack 6's opens, and has few answers.
    nvml = machine({"Name": "Orin (nvgpu)", "ClockInfo": {"SM": 918, "MEM": None}}, arch="aarch64")
    orin(tmp_path)
    found = gpu.find_gpu()
    assert found is not None
    assert (found.name, found.arch, found.cuda_version) == ("Orin (nvgpu)", "sm_87", "12.4")
    assert found.memory_bytes is not None
    expected = gpu.GpuState(sm_clock_mhz=918, temperature_c=52, utilization=98)
    assert gpu.read_state() == expected
    with gpu.watch(period_s=None) as seen:
        pass
    assert seen.states == (expected, expected)
    assert nvml.open == 0


def test_a_card_in_an_orin_is_not_taken_for_the_boards_gpu(machine: Any, tmp_path: Path) -> None:
    machine({"Name": "NVIDIA RTX A6000", "CudaComputeCapability": (8, 6)}, arch="aarch64")
    orin(tmp_path)
    found = gpu.find_gpu()
    assert found is not None
    assert (found.name, found.arch, found.memory_bytes) == ("NVIDIA RTX A6000", "sm_86", None)
    assert gpu.read_state() == gpu.GpuState()


def test_a_board_that_is_no_orin_or_has_no_readable_figures_is_none(
    machine: Any, tmp_path: Path
) -> None:
    machine(fails=NotFoundError())
    (tmp_path / "proc/device-tree").mkdir(parents=True)
    (tmp_path / "proc/device-tree/model").write_text("Raspberry Pi 4 Model B Rev 1.4\0")
    assert gpu.find_gpu() is None
    (tmp_path / "sys/class/devfreq/17000000.gpu").mkdir(parents=True)
    (tmp_path / "sys/class/devfreq/17000000.gpu/cur_freq").write_text("soon\n")
    assert jetson.read_state(tmp_path) == jetson.Reading(None, None, None)


@pytest.mark.parametrize(
    ("capability", "arch", "name"),
    [
        ((7, 5), "x86_64", "cuda-sm75"),
        ((8, 0), "x86_64", "cuda-sm80"),
        ((8, 6), "x86_64", "cuda-sm86"),
        ((8, 8), "x86_64", "cuda-sm86"),
        ((8, 9), "x86_64", "cuda-sm89"),
        ((9, 0), "x86_64", "cuda-sm90"),
        ((12, 0), "x86_64", "cuda-sm90"),
        ((8, 7), "aarch64", "jetson-orin"),
        ((9, 0), "aarch64", "jetson-orin"),
    ],
)
def test_cuda_is_this_machines_gpu(
    machine: Any, capability: tuple[int, int], arch: str, name: str
) -> None:
    machine({**A100, "CudaComputeCapability": capability}, arch=arch)
    assert targets.resolve("cuda").name == name


def test_cuda_without_a_gpu_or_emulated_is_the_usual_one(
    machine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine()
    assert targets.resolve("cuda").name == "cuda-sm80"
    machine(T4)
    assert targets.resolve("cuda").name == "cuda-sm75"
    monkeypatch.setenv("MOBILENET_TVM_CUDA", "emulated")
    monkeypatch.delenv("MOBILENET_TVM_CUDA_ARCH", raising=False)
    assert targets.resolve("cuda").name == "cuda-sm80"
    monkeypatch.setenv("MOBILENET_TVM_CUDA_ARCH", "sm_86")
    assert targets.resolve("cuda").name == "cuda-sm86"


def test_a_gpu_older_than_all_presets_is_named(machine: Any) -> None:
    machine({**A100, "Name": "Tesla V100-PCIE-16GB", "CudaComputeCapability": (7, 0)})
    with pytest.raises(UsageError, match=r"Tesla V100-PCIE-16GB has compute capability 7\.0") as e:
        targets.resolve("cuda")
    assert "which begin at 7.5" in str(e.value)
    assert "\n" not in str(e.value)
    assert targets.resolve("cuda-sm75").name == "cuda-sm75"


def test_looking_up_another_target_asks_no_gpu() -> None:
    code = (
        "import sys; from mobilenet_tvm import targets; targets.resolve('rpi4'); "
        "targets.resolve('cuda-sm80'); print('pynvml' in sys.modules, "
        "'mobilenet_tvm.cuda.gpu' in sys.modules)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.split() == ["False", "False"]
