"""Weights asked for ahead: where they are large, within their buffer, and with the same results."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mobilenet_tvm import targets, toolchain

RANDOM = np.random.default_rng(0)


def build(channels: int, filters: int, side: int, preset: str, *, passes: bool = True) -> Any:
    toolchain.activate()
    import tvm
    from tvm import autotvm, relay

    import mobilenet_tvm.schedules as schedules

    x = relay.var("x", shape=(1, channels, side, side))
    weight = np.random.default_rng(1).uniform(-1, 1, (filters, channels, 1, 1)).astype("float32")
    conv = relay.nn.conv2d(x, relay.const(weight), channels=filters, kernel_size=(1, 1))
    module = tvm.IRModule.from_expr(relay.Function([x], relay.nn.relu(conv)))
    config = toolchain.pass_config()
    config = schedules.pass_config(config) if passes else config
    silent, autotvm.GLOBAL_SCOPE.silent = autotvm.GLOBAL_SCOPE.silent, True
    try:
        with tvm.transform.PassContext(opt_level=3, config=config):
            return relay.build(module, target=targets.resolve(preset).target)
    finally:
        autotvm.GLOBAL_SCOPE.silent = silent


def prefetches(library: Any) -> int:
    assembly: str = library.get_lib().get_source("asm")
    return assembly.count("prefetcht1")


def run(library: Any, value: Any) -> Any:
    import tvm
    from tvm.contrib import graph_executor

    executor = graph_executor.GraphModule(library["default"](tvm.cpu(0)))
    executor.set_input("x", value)
    executor.run()
    return executor.get_output(0).numpy()


@pytest.mark.parametrize(
    ("channels", "filters", "side", "preset", "asked"),
    [
        (256, 256, 4, "x86-avx2", True),
        (264, 264, 3, "x86-avx512", True),  # blocks of 8: two channels a cache line
        (64, 64, 4, "x86-avx2", False),  # 16 KiB: in L2 still
        (512, 512, 1, "x86-avx2", False),  # one pixel: read once anyway
    ],
)
def test_only_large_weights_that_several_tiles_share(
    channels: int, filters: int, side: int, preset: str, asked: bool
) -> None:
    assert bool(prefetches(build(channels, filters, side, preset))) == asked


def test_a_line_is_asked_for_once() -> None:
    # A turn has a block of 8 channels by 8 weights, 256 bytes, or one of 16 by 16, 1 KiB.
    assert prefetches(build(256, 256, 4, "x86-avx2")) % 4 == 0
    assert prefetches(build(256, 256, 4, "x86-avx512")) % 16 == 0


def test_without_the_pass_nothing_changes_but_time() -> None:
    value = RANDOM.uniform(-1, 1, (1, 256, 4, 4)).astype("float32")
    ours = build(256, 256, 4, "x86-avx2")
    plain = build(256, 256, 4, "x86-avx2", passes=False)
    assert prefetches(plain) == 0
    np.testing.assert_array_equal(run(ours, value), run(plain, value))


def test_nothing_is_asked_for_behind_the_last_weights() -> None:
    import tvm
    from tvm import autotvm

    import mobilenet_tvm.schedules
    from mobilenet_tvm.schedules.x86.pointwise import TASK

    target = tvm.target.Target(targets.resolve("x86-avx512").target)
    tensors = (("TENSOR", (1, 512, 4, 4), "float32"), ("TENSOR", (512, 512, 1, 1), "float32"))
    geometry = ((1, 1), (0, 0, 0, 0), (1, 1), "NCHW", "NCHW", "float32")
    task = autotvm.task.create(TASK, args=(*tensors, *geometry), target=target)
    autotvm.GLOBAL_SCOPE.in_tuning, before = True, autotvm.GLOBAL_SCOPE.in_tuning
    try:
        with target:
            schedule, arguments = task.instantiate(autotvm.task.space.FallbackConfigEntity())
    finally:
        autotvm.GLOBAL_SCOPE.in_tuning = before
    config = mobilenet_tvm.schedules.pass_config()
    with target, tvm.transform.PassContext(config=config):
        body = tvm.lower(schedule, arguments)["main"].body
    sizes: list[int] = []
    bounds: list[int] = []

    def look(node: Any) -> None:
        if isinstance(node, tvm.tir.LetStmt) and node.var.name == "ahead":
            bounds.append(int(node.value.b))
        if isinstance(node, tvm.tir.Call) and node.op.name == "tir.prefetch":
            load = node.args[0].args[0]
            sizes.append(int(load.buffer.shape[0]))
            bounds.append(int(load.indices[0].b) if hasattr(load.indices[0], "b") else 0)

    tvm.tir.stmt_functor.post_order_visit(body, look)
    assert sizes
    assert set(sizes) == {512 * 512}
    assert max(bounds) < 512 * 512
