"""One emulated Cortex-A72 for all of this folder's tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from mobilenet_tvm.devices import qemu
from mobilenet_tvm.devices.emulated import emulated_boards
from mobilenet_tvm.devices.rpc import RpcDevice


@pytest.fixture(scope="session")
def rpi4() -> Iterator[RpcDevice]:
    """The board; an instruction that a Cortex-A72 lacks ends a session with SIGILL."""
    if not qemu.is_set_up():
        pytest.skip(f"the emulated board is {qemu.why_not()}")
    with emulated_boards("cortex-a72") as device:
        yield device
