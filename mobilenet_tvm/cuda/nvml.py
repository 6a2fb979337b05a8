"""A GPU by NVML, the driver's management library: found as CUDA would find it, asked in peace.

What cannot be told is None: a function that the driver lacks, a figure that the GPU does not have.
"""

from __future__ import annotations

import contextlib
import importlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Device:
    """What CUDA calls a device. Valid within ``opened`` only.

    Attributes:
        api: nvidia-ml-py's module.
        handle: NVML's, of the GPU or of a MIG slice of one.
        gpu: of the whole GPU, which answers for what its slices share.
    """

    api: Any
    handle: Any
    gpu: Any

    @property
    def mig(self) -> bool:
        """Whether it is a slice of a GPU."""
        return self.handle is not self.gpu

    def own(self, *functions: str) -> Any:
        """What the first of NVML's functions that answers says of the device itself."""
        return _first(self.api, functions, self.handle)

    def shared(self, *functions: str, about: str | None = None) -> Any:
        """The same of the whole GPU; ``about`` names a constant of NVML's, a second argument."""
        more = () if about is None else (getattr(self.api, about, None),)
        return _first(self.api, functions, self.gpu, *more)

    def system(self, function: str) -> Any:
        """What NVML says of the driver."""
        return _get(self.api, function)


def number_alike() -> None:
    """Have CUDA number GPUs as NVML does, in this process and its children.

    By itself CUDA calls the fastest one 0, NVML the first on the PCI bus. To be called before CUDA
    starts; an order that the user has set is left.
    """
    os.environ.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")


def module() -> Any:
    """nvidia-ml-py's module, or why there is none."""
    try:
        return importlib.import_module("pynvml")
    except ImportError:
        return "nvidia-ml-py is not installed (pip install 'mobilenet-tvm[cuda]')"


@contextlib.contextmanager
def opened(api: Any, index: int, visible: str | None) -> Iterator[Device | str]:
    """NVML started, and what CUDA would call device ``index``; or why there is none.

    Args:
        api: what ``module`` returned.
        index: counted among those that are visible.
        visible: ``CUDA_VISIBLE_DEVICES``; None where it is not set.
    """
    if isinstance(api, str):
        yield api
        return
    try:
        api.nvmlInit()
    except api.NVMLError as error:
        if isinstance(error, api.NVMLError_LibraryNotFound):
            yield "no NVIDIA driver is installed (NVML's library is not found)"
        elif isinstance(error, api.NVMLError_DriverNotLoaded):
            yield "the NVIDIA driver is installed and not loaded"
        else:
            yield f"NVML says {error}"
        return
    try:
        yield _find(api, index, visible)
    finally:
        with contextlib.suppress(api.NVMLError):
            api.nvmlShutdown()


def _get(api: Any, function: str, *arguments: Any) -> Any:
    try:
        value = getattr(api, function)(*arguments)
    except (api.NVMLError, AttributeError, ValueError, OSError):
        return None
    return value.decode(errors="replace") if isinstance(value, bytes) else value


def _first(api: Any, functions: tuple[str, ...], *arguments: Any) -> Any:
    values = (_get(api, function, *arguments) for function in functions)
    return next((value for value in values if value is not None), None)


def _find(api: Any, index: int, visible: str | None) -> Device | str:
    count = _get(api, "nvmlDeviceGetCount") or 0
    if not count:
        return "the driver finds no device"
    entries = map(str, range(count)) if visible is None else map(str.strip, visible.split(","))
    found = []
    for entry in entries:
        device = _by_entry(api, entry, count)
        if device is None:  # CUDA, too, ignores all that follows
            break
        found.append(device)
    if index < len(found):
        return found[index]
    given = "" if visible is None else f", CUDA_VISIBLE_DEVICES is {visible!r}"
    return f"there is no device {index} ({count} in the machine{given})"


def _by_entry(api: Any, entry: str, count: int) -> Device | None:
    """The device that one entry of ``CUDA_VISIBLE_DEVICES`` names; None if it names none."""
    numbers = range(count)
    if entry.isdigit():
        numbers = range(int(entry), min(int(entry) + 1, count))
    elif not entry.startswith(("GPU-", "MIG-")):
        return None
    for number in numbers:
        gpu = _get(api, "nvmlDeviceGetHandleByIndex", number)
        if gpu is None:
            continue
        # Of a GPU in slices CUDA takes the first; the GPU as a whole is no device then.
        devices = [Device(api, handle, gpu) for handle in _slices(api, gpu) or [gpu]]
        if entry.startswith("MIG-"):
            devices = [device for device in devices if _is(api, device.handle, entry)]
        elif entry.startswith("GPU-") and not _is(api, gpu, entry):
            continue
        if devices:
            return devices[0]
    return None


def _is(api: Any, handle: Any, entry: str) -> bool:
    # CUDA takes the beginning of a UUID for the whole.
    return str(_get(api, "nvmlDeviceGetUUID", handle)).startswith(entry)


def _slices(api: Any, gpu: Any) -> list[Any]:
    """Handles of a GPU's MIG slices; none where it is not in that mode."""
    mode = _get(api, "nvmlDeviceGetMigMode", gpu)
    if not mode or not mode[0]:
        return []
    most = _get(api, "nvmlDeviceGetMaxMigDeviceCount", gpu) or 0
    found = (_get(api, "nvmlDeviceGetMigDeviceHandleByIndex", gpu, i) for i in range(most))
    return [handle for handle in found if handle is not None]
