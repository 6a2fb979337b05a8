"""An emulated aarch64 Linux board, for machines without one: what runs there is right or wrong
as on a board, and its times mean nothing.

``python -m mobilenet_tvm.devices.qemu`` sets it up, once and without root; ``runtime()`` is it.
"""

from __future__ import annotations

from mobilenet_tvm.devices.qemu.cpus import EmulatedCpu
from mobilenet_tvm.devices.qemu.machine import QemuRuntime
from mobilenet_tvm.devices.qemu.setup import is_set_up, runtime, why_not

__all__ = ["EmulatedCpu", "QemuRuntime", "emulated_cpu", "is_set_up", "runtime", "why_not"]


def emulated_cpu(cpu: str, arch: str = "aarch64") -> EmulatedCpu:
    """What to emulate for LLVM's ``-mcpu`` name, by the qemu that is here.

    The nearest that has at least its instructions, with a note that says so, else ``max``.

    Raises:
        DeviceError: the emulated board is not set up.
    """
    return runtime(set_up=False).emulated_cpu(cpu, arch)
