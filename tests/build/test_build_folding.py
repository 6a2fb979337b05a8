"""Constants folded by numpy: the very library that TVM's own folding gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mobilenet_tvm import targets, toolchain
from mobilenet_tvm.build import folding
from mobilenet_tvm.build.compile import link
from mobilenet_tvm.build.folding import change_layout, fold_moves, optimized

RANDOM = np.random.default_rng(0)


def evaluated(expression: Any) -> Any:
    """What TVM itself makes of a constant expression."""
    import tvm
    from tvm import relay

    module = tvm.IRModule.from_expr(relay.Function([], expression))
    return relay.create_executor("graph", mod=module, target="llvm").evaluate()().numpy()


@pytest.mark.parametrize(
    ("shape", "source", "wanted"),
    [
        ((2, 32, 3, 5), "NCHW", "NCHW16c"),
        ((1, 24, 1, 1), "NCHW", "NCHW8c"),
        ((32, 24, 3, 3), "OIHW", "OIHW8i16o"),
        ((32, 1, 5, 5), "OIHW", "OIHW1i16o"),
        ((24, 32), "NC", "NC8n"),
        ((2, 6, 3, 5), "NCHW", "NHWC"),
        ((3, 3, 4, 8), "HWIO", "OIHW"),
    ],
)
def test_a_layout_is_tvms_own(shape: tuple[int, ...], source: str, wanted: str) -> None:
    toolchain.activate()
    from tvm import relay

    data = RANDOM.normal(size=shape).astype(np.float32)
    found = change_layout(data, source, wanted)
    assert found is not None
    assert np.array_equal(
        found, evaluated(relay.layout_transform(relay.const(data), source, wanted))
    )


@pytest.mark.parametrize(
    ("shape", "source", "wanted"),
    [
        ((1, 20, 3, 3), "NCHW", "NCHW16c"),  # TVM pads
        ((1, 2, 3, 3, 16), "NCHW16c", "NCHW"),
        ((1, 16, 3), "NCW", "NCHW"),
    ],
)
def test_what_is_not_as_simple_is_left_to_tvm(
    shape: tuple[int, ...], source: str, wanted: str
) -> None:
    assert change_layout(np.zeros(shape, np.float32), source, wanted) is None


def small_network() -> Any:
    """Stem, depthwise, hard-swish, a grouped one, pointwise: biases and a scale to fold."""
    import tvm
    from tvm import relay

    def const(*shape: int) -> Any:
        return relay.const(RANDOM.normal(size=shape).astype(np.float32))

    def conv(x: Any, weight: tuple[int, ...], groups: int = 1) -> Any:
        size = weight[2]
        made = relay.nn.conv2d(
            x,
            const(*weight),
            padding=(size // 2,) * 4,
            groups=groups,
            channels=weight[0],
            kernel_size=(size, size),
        )
        return relay.nn.bias_add(made, const(weight[0]))

    image = relay.var("x", shape=(1, 3, 9, 10))
    x = relay.nn.relu(conv(image, (32, 3, 3, 3)))
    x = conv(x, (32, 1, 3, 3), 32)
    x = x * (relay.clip(x + relay.const(3.0), 0, 6) / relay.const(6.0))
    x = relay.nn.relu(conv(x, (32, 16, 3, 3), 2))
    x = conv(x, (24, 32, 1, 1)) * relay.const(0.5)
    x = relay.nn.batch_flatten(relay.nn.global_avg_pool2d(relay.nn.relu(x)))
    x = relay.nn.dense(x, const(10, 24))
    module = tvm.IRModule.from_expr(relay.Function([image], x))
    return relay.transform.InferType()(module)


def test_the_library_is_the_one_that_relay_build_gives(tmp_path: Path) -> None:
    toolchain.activate()
    import tvm
    from tvm import autotvm, relay

    import mobilenet_tvm.schedules

    assert mobilenet_tvm.schedules
    preset, module = targets.resolve("x86"), small_network()
    config = toolchain.pass_config()
    silent, autotvm.GLOBAL_SCOPE.silent = autotvm.GLOBAL_SCOPE.silent, True
    try:
        with tvm.transform.PassContext(opt_level=3, config=config):
            plain = relay.build(module, target=preset.target)
            folded, done = optimized(module, preset.target, {})
        with tvm.transform.PassContext(opt_level=3, config=config, disabled_pass=done):
            ours = relay.build(folded, target=preset.target)
    finally:
        autotvm.GLOBAL_SCOPE.silent = silent
    files = []
    for name, library in (("plain", plain), ("ours", ours)):
        (tmp_path / name).mkdir()
        link(library, tmp_path / name / "x.so", preset)
        files.append((tmp_path / name / "x.so").read_bytes())
    assert files[0] == files[1]  # graph, code and weights


def test_what_is_only_moved_costs_no_kernel() -> None:
    toolchain.activate()
    import tvm
    from tvm import relay

    weight = relay.const(RANDOM.normal(size=(32,)).astype(np.float32))
    moved = relay.layout_transform(relay.expand_dims(weight, 0), "NC", "NC16c")
    module = tvm.IRModule.from_expr(relay.Function([], relay.nn.relu(moved)))
    body = fold_moves(module)["main"].body
    assert body.op.name == "nn.relu"
    assert isinstance(body.args[0], relay.Constant)
    assert np.array_equal(body.args[0].data.numpy(), weight.data.numpy().reshape(1, 2, 16))


def test_the_next_build_of_a_module_shares_what_no_record_changes() -> None:
    toolchain.activate()
    import tvm

    preset, module = targets.resolve("x86"), small_network()
    before = folding._before_layouts.cache_info().hits
    with tvm.transform.PassContext(opt_level=3):
        for _ in range(2):
            optimized(module, preset.tvm_target(), {})
    assert folding._before_layouts.cache_info().hits == before + 1


def test_parameters_are_bound_before() -> None:
    toolchain.activate()
    import tvm
    from tvm import relay

    x, w = relay.var("x", shape=(1, 4)), relay.var("w", shape=(4,))
    module = tvm.IRModule.from_expr(relay.Function([x, w], x + relay.expand_dims(w, 0)))
    with tvm.transform.PassContext(opt_level=3):
        found, done = optimized(module, "llvm", {"w": np.ones(4, np.float32)})
    assert [var.name_hint for var in found["main"].params] == ["x"]
    assert "AlterOpLayout" in done
    assert "FoldConstant" not in done  # Ansor's weights are folded later on
