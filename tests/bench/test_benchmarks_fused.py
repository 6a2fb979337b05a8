"""benchmarks/fused.py: its kernels compute what they should, and what it says of their times."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mobilenet_tvm import targets, toolchain

from ..conftest import REPO


@pytest.fixture(scope="module")
def scripts() -> Iterator[tuple[Any, Any]]:
    """``fused`` and ``fused_kernels``, which find each other by their folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(REPO / "benchmarks"))
        yield importlib.import_module("fused"), importlib.import_module("fused_kernels")
    for name in ("fused", "fused_kernels", "results"):
        sys.modules.pop(name, None)


def unpacked(data: Any) -> Any:
    """``[1, C/x, H, W, x]`` -> ``[C, H, W]``."""
    _, chunks, height, width, block = data.shape
    return data[0].transpose(0, 3, 1, 2).reshape(chunks * block, height, width)


def reference(layer: Any, arrays: list[Any]) -> Any:
    """The two convolutions by their definition, ``[K, OH, OW] float64``."""
    data, window, window_bias, weights, bias = (array.astype("float64") for array in arrays)
    image = unpacked(data)
    filters = window[:, 0, :, :, 0].transpose(0, 3, 1, 2).reshape(layer.channels, 3, 3)
    before = layer.padding[0]
    padded = np.pad(image, ((0, 0), (before, 1), (before, 1)))
    out = np.zeros((layer.channels, layer.out_size, layer.out_size))
    for y in range(3):
        for x in range(3):
            seen = padded[:, y :: layer.stride, x :: layer.stride]
            out += filters[:, y, x, None, None] * seen[:, : layer.out_size, : layer.out_size]
    between = np.clip(out + unpacked(window_bias), 0, 6)
    matrix = weights[:, :, 0, 0].transpose(0, 3, 1, 2).reshape(layer.filters, layer.channels)
    result = np.einsum("kc,chw->khw", matrix, between) + unpacked(bias)
    return np.clip(result, 0, 6) if layer.model == "V1" else result


@pytest.mark.parametrize(("model", "stride"), [("V1", 2), ("V2", 1)])
def test_kernels_compute_both_convolutions(
    scripts: tuple[Any, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    model: str,
    stride: int,
) -> None:
    kernels = scripts[1]
    toolchain.activate()
    import tvm

    from mobilenet_tvm.schedules.layout import shape_of

    monkeypatch.setattr(kernels, "PAIR_CONFIGS", {"depthwise": 1, "pointwise": 1})
    layer = kernels.Layer(model, 32, 8, 24, stride)
    names = kernels.build(layer, tmp_path / "layer.so", 3, 0)
    library = tvm.runtime.load_module(str(tmp_path / "layer.so"))
    with targets.resolve("x86").tvm_target():
        shapes = [shape_of(tensor) for tensor in kernels.tensors_of(layer)]
    draw = np.random.default_rng(0).uniform
    inputs = [draw(-1, 1, shape).astype("float32") for shape in shapes[:5]]
    expected = reference(layer, inputs)
    arrays = [tvm.nd.array(one) for one in inputs]
    assert len(names["fused"]) == 3
    pairs = zip(names["depthwise"], names["pointwise"], strict=True)
    calls = [*pairs, *[(name,) for name in names["fused"]]]
    for call in calls:
        _, chunks, _, _, block = shapes[4]
        empty = np.full((1, chunks, layer.out_size, layer.out_size, block), np.nan, "float32")
        out, between = tvm.nd.array(empty), tvm.nd.array(np.full(shapes[5], np.nan, "float32"))
        if len(call) == 2:
            library[call[0]](*arrays[:3], between)
            library[call[1]](between, *arrays[3:], out)
        else:
            library[call[0]](*arrays, out)
        np.testing.assert_allclose(unpacked(out.numpy()), expected, atol=1e-5, err_msg=str(call))


def test_section_states_times_ratios_and_sums(scripts: tuple[Any, Any]) -> None:
    fused, kernels = scripts
    layer = kernels.Layer("V1", 128, 56, 256, 2)
    pair, one = np.full(20, 200e-6), np.full(20, 160e-6)
    row = fused.Row(layer, 2, pair, one, 1e-7)
    args = argparse.Namespace(configs=32, rounds=20)
    text = fused.section([row], args, "python benchmarks/fused.py", 100.0, {2: 1.01})
    flops = 2 * 28 * 28 * 128 * (9 + 256)
    of_peak = [f"{flops / seconds / 200e9:.0%}" for seconds in (200e-6, 160e-6)]
    assert (
        f"| 2 | V1 128/2@56->256 | 200 (200-200) | {of_peak[0]} | 160 (160-160) | {of_peak[1]} "
        "| 1.250 (1.250-1.250) |"
    ) in text
    assert "- V1, these 1 layers at 2 thread(s): pairs 200 us, fused 160 us: 1.250" in text
    assert "1.01 on 2 core(s)" in text
    assert "not quiet" not in text
    loud = fused.section([row], args, "python benchmarks/fused.py", 100.0, {2: 1.2})
    assert "the machine was not quiet" in loud
