"""A model's convolutions in NHWC, all of them or some: the layout that Ansor's sketches want."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from mobilenet_tvm import toolchain

# Weights follow by themselves: HWIO, of a depthwise convolution HWOI.
_NHWC = {
    "nn.conv2d": ["NHWC", "default"],
    "nn.global_avg_pool2d": ["NHWC"],
    "nn.avg_pool2d": ["NHWC"],
    "nn.max_pool2d": ["NHWC"],
}


def to_nhwc(module: Any, only: Collection[int] | None = None) -> Any:
    """Move convolutions, and what is between them, from NCHW to NHWC.

    Args:
        module: ``IRModule`` as ``frontend.to_relay`` leaves it.
        only: positions of the convolutions to move, counted in post-order from 0; None moves
            all. Where two neighbours then differ, a ``layout_transform`` comes between.

    Returns:
        A new module, types inferred; inputs and outputs keep their layouts.
    """
    toolchain.activate()
    import tvm
    from tvm import relay

    typed = relay.transform.InferType()(module)
    wanted = dict(_NHWC)
    skip: list[int] = []
    if only is not None:
        skip = [index for index in range(len(convolutions(typed))) if index not in only]
        if skip:  # the pooling layer stays as it is
            wanted = {name: _NHWC[name] for name in ("nn.conv2d",)}
            wanted |= {name: ["NCHW"] for name in _NHWC if "pool" in name}
    convert = tvm.transform.Sequential(
        [relay.transform.ConvertLayout(wanted), relay.transform.InferType()]
    )
    config = toolchain.pass_config()
    with (
        relay.transform.LayoutConfig(skip_layers=skip),
        tvm.transform.PassContext(opt_level=3, config=config),
    ):
        return convert(typed)


def convolutions(module: Any) -> list[Any]:
    """The ``nn.conv2d`` calls of a module's main function, in post-order."""
    toolchain.activate()
    import tvm
    from tvm import relay

    calls: list[Any] = []

    def visit(node: Any) -> None:
        if (
            isinstance(node, relay.Call)
            and isinstance(node.op, tvm.ir.Op)
            and node.op.name == "nn.conv2d"
        ):
            calls.append(node)

    relay.analysis.post_order_visit(module["main"], visit)
    return calls
