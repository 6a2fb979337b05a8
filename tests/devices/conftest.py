"""The emulated board, where it is set up."""

from __future__ import annotations

import pytest

from mobilenet_tvm.devices import qemu


@pytest.fixture(scope="session")
def board() -> qemu.QemuRuntime:
    """The emulated aarch64 board; the network is not for tests to use."""
    if not qemu.is_set_up():
        pytest.skip(f"the emulated board is {qemu.why_not()}")
    return qemu.runtime(set_up=False)
