"""Kernels that ptxas spills for the sake of one more block are compiled again."""

from __future__ import annotations

import pytest

from mobilenet_tvm.cuda import codegen, nvrtc

SOURCE = """extern "C" __global__ void __launch_bounds__(64) one_kernel(float* p);
extern "C" __global__ void __launch_bounds__(64) one_kernel(float* p) {}
extern "C" __global__ void __launch_bounds__(96) one_kernel_1(float* p) {}
"""
LOG = """ptxas info    : Function properties for one_kernel
    8 bytes stack frame, {} bytes spill stores, 4 bytes spill loads
ptxas info    : Function properties for one_kernel_1
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
"""


@pytest.mark.parametrize("spilled", [True, False])
def test_a_kernel_that_spills_is_compiled_for_one_block(
    monkeypatch: pytest.MonkeyPatch, spilled: bool
) -> None:
    given: list[str] = []

    def compile_source(source: str, arch: str) -> nvrtc.Image:
        given.append(source)
        log = LOG.format(4) if spilled else LOG.format(0).replace("4 bytes", "0 bytes")
        return nvrtc.Image(b"", b"", b"", log)

    monkeypatch.setattr(codegen.nvrtc, "compile_source", compile_source)
    source, image = codegen._compile(SOURCE, "sm_80")
    assert source == given[-1]
    assert image.log
    if not spilled:
        assert given == [SOURCE]
        return
    first, second = given
    assert first == SOURCE
    assert second == SOURCE.replace("(64)", "(64, 1)")
