"""Each kernel of the networks is machine code for three generations of GPUs, and none spills."""

from __future__ import annotations

from collections.abc import Callable

import pytest


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["cuda-sm75", "cuda-sm80", "cuda-sm90"])
@pytest.mark.parametrize("network", ["mobilenet_v3_large"])
def test_no_kernel_spills(
    check_kernels: Callable[[str, str], None], network: str, preset: str
) -> None:
    check_kernels(network, preset)
