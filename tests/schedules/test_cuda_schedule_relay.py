"""Our CUDA templates inside Relay: one layout, spaces of what fits, and what stays TVM's."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from mobilenet_tvm import frontend, targets, toolchain, zoo
from mobilenet_tvm.records import extract_tasks

OURS = {
    "depthwise_conv2d_NCHWc.mobilenet_cuda",
    "pointwise_conv2d_NCHWc.mobilenet_cuda",
    "stem_conv2d_NCHWc.mobilenet_cuda",
}


@pytest.fixture(autouse=True)
def ours() -> Iterator[None]:
    """Our schedules on before and after every test."""
    import mobilenet_tvm.schedules as schedules

    schedules.use("ours")
    yield
    schedules.use("ours")


def small(name: str, **changes: Any) -> frontend.RelayModel:
    arguments = {"resolution": 64, "classes": 10, **changes}
    model = zoo.build(name, **arguments)
    return frontend.to_relay(frontend.clean(frontend.from_proto(model, name)))


def lowered(module: Any, preset: str) -> dict[str, Any]:
    """Kernels of a Relay module, by name, before they are CUDA C: that needs no plug-in."""
    import tvm
    from tvm import autotvm, relay

    target = targets.resolve(preset).tvm_target()
    found: dict[str, Any] = {}

    @tvm.tir.transform.prim_func_pass(opt_level=0)
    def keep(function: Any, _module: Any, _context: Any) -> Any:
        found[str(function.attrs["global_symbol"])] = function
        return function

    config = {**toolchain.pass_config(), "tir.add_lower_pass": [(3, keep)]}
    silent, autotvm.GLOBAL_SCOPE.silent = autotvm.GLOBAL_SCOPE.silent, True
    try:
        with tvm.transform.PassContext(opt_level=3, config=config):
            module, _ = relay.optimize(module, target=target)
            compiler = relay.backend.te_compiler.get()
            for function in module.functions.values():
                _lower(compiler, function, target)
    finally:
        autotvm.GLOBAL_SCOPE.silent = silent
    return found


def _lower(compiler: Any, function: Any, target: Any) -> None:
    from tvm import relay

    def visit(node: Any) -> None:
        if isinstance(node, relay.Function) and node.attrs and "Primitive" in node.attrs:
            compiler.lower(node, target)

    relay.analysis.post_order_visit(function, visit)


def _threads(function: Any) -> dict[str, int]:
    """Extents of a kernel's blocks and threads."""
    import tvm

    extents: dict[str, int] = {}

    def visit(node: Any) -> None:
        if isinstance(node, tvm.tir.AttrStmt) and node.attr_key == "thread_extent":
            extents[str(node.node.thread_tag)] = int(node.value)

    tvm.tir.stmt_functor.post_order_visit(function.body, visit)
    return extents


@pytest.mark.parametrize(
    ("name", "preset"), [("mobilenet_v1", "jetson-orin"), ("mobilenet_v3_small", "cuda-sm75")]
)
def test_all_tasks_of_a_mobilenet_are_ours_and_have_their_default(name: str, preset: str) -> None:
    tasks = extract_tasks(small(name).module, targets.resolve(preset))
    assert {task.handle.name for task in tasks} == OURS
    for task in tasks:
        assert task.default in task.candidates, task.label
        assert len(task.candidates) <= 300, task.label
        # Which of them are valid is asked for each.
        assert task.handle.config_space.range_length < 60_000, task.label


def test_stock_schedules_are_stock() -> None:
    module = small("mobilenet_v1").module
    stock = extract_tasks(module, targets.resolve("cuda-sm80"), schedules="stock")
    assert not OURS & {task.handle.name for task in stock}


def test_other_convolutions_stay_tvms() -> None:
    import tvm
    from tvm import relay

    for weight, how in (
        ((64, 32, 1, 1), {"strides": 2}),
        ((32, 16, 3, 3), {"groups": 2, "padding": 1}),
        ((32, 32, 3, 3), {"padding": 2, "dilation": 2}),
    ):
        x = relay.var("x", shape=(1, 32, 14, 14))
        conv = relay.nn.conv2d(
            x,
            relay.var("w", shape=weight),
            channels=weight[0],
            kernel_size=weight[2:],
            **how,
        )
        function = relay.Function(relay.analysis.free_vars(conv), conv)
        module = relay.transform.InferType()(tvm.IRModule.from_expr(function))
        tasks = extract_tasks(module, targets.resolve("cuda-sm80"))
        assert tasks
        assert not OURS & {task.handle.name for task in tasks}


def test_every_configuration_fits_the_target() -> None:
    """Half the shared memory: what does not fit is not in the space."""
    import tvm
    from tvm import autotvm

    from mobilenet_tvm.schedules.cuda import pointwise

    layer = pointwise.Layer(1, 64, 64, 14, 14)
    limits = "-max_shared_memory_per_block=8192 -max_threads_per_block=128"
    with tvm.target.Target(f"cuda -arch=sm_80 {limits}"):
        space = autotvm.ConfigSpace()
        pointwise.define_space(space, layer)
    valid = [i for i in range(space.range_length) if space.is_index_valid(i)]
    assert valid
    for index in valid:
        entity = space.get(index)
        tile = tuple(entity[name].val for name in pointwise.KNOBS)
        work = pointwise.work(layer, tile)
        assert work.shared_bytes <= 8192
        assert work.threads <= 128
