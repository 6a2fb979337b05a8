"""How our x86 templates reach Relay: op strategies and layout alteration.

Both wrap what TVM registered for ``cpu``: a convolution that is ours goes to our templates,
every other call goes to TVM's function as before.
"""

from __future__ import annotations

import functools
import re
from typing import Any

import tvm
from tvm import autotvm, relay, te
from tvm.relay.op import op as relay_op
from tvm.relay.op.strategy import generic
from tvm.relay.op.strategy import x86 as stock
from tvm.topi.nn import conv2d_alter_layout
from tvm.topi.nn.utils import get_pad_tuple

from mobilenet_tvm.schedules.x86 import depthwise, pointwise, stem
from mobilenet_tvm.schedules.x86.layout import channel_block, is_x86, shape_of

_PLEVEL = 20  # above all of TVM's own (10 to 15)
_enabled = True


def use(which: str) -> None:
    """Choose the schedules of all later builds in this process: ``ours`` or ``stock``.

    Raises:
        ValueError: ``which`` is neither.
    """
    global _enabled
    if which not in ("ours", "stock"):
        raise ValueError(f"unknown schedules {which!r}: ours or stock")
    _enabled = which == "ours"


def _kind(attrs: Any, data: Any, kernel: Any, target: Any) -> str | None:
    """``depthwise``, ``pointwise`` or ``stem`` when the convolution is ours, else None.

    ``data`` and ``kernel`` are in NCHW/OIHW or as ``_alter_layout`` leaves them.
    """
    if not _enabled or not is_x86(target):
        return None
    if (data.dtype, kernel.dtype) != ("float32", "float32"):
        return None
    try:
        data_shape, kernel_shape = shape_of(data), shape_of(kernel)
    except ValueError:
        return None
    dilation = tuple(int(d) for d in attrs.dilation)
    channels = data_shape[1] * (data_shape[4] if len(data_shape) == 5 else 1)
    filters = kernel_shape[0] * (kernel_shape[5] if len(kernel_shape) == 6 else 1)
    pads = get_pad_tuple(attrs.get_int_tuple("padding"), kernel_shape[2:4])
    if attrs.groups == channels == filters and attrs.groups > 1 and dilation == (1, 1):
        # Hand-written Relay may give data and weights different blocks; TVM's template copes.
        same_block = len(data_shape) == 4 or data_shape[4] == kernel_shape[5]
        meets_image = max(pads[0], pads[2]) < kernel_shape[2]  # why: see depthwise.py
        return "depthwise" if same_block and meets_image else None
    strides = tuple(int(s) for s in attrs.strides)
    if attrs.groups == 1 and kernel_shape[2:4] == (1, 1) and strides == (1, 1) and not any(pads):
        return "pointwise"
    unblocked = len(data_shape) == 4 and channels <= stem.MAX_CHANNELS
    if attrs.groups == 1 and unblocked and dilation == (1, 1):
        return "stem" if max(pads[0], pads[2]) < kernel_shape[2] else None
    return None


_TEMPLATES = {
    "depthwise": (
        depthwise.depthwise_conv2d,
        depthwise.schedule_depthwise_conv2d,
        depthwise.TASK,
    ),
    "pointwise": (
        pointwise.pointwise_conv2d,
        pointwise.schedule_pointwise_conv2d,
        pointwise.TASK,
    ),
    "stem": (stem.stem_conv2d, stem.schedule_stem_conv2d, stem.TASK),
}


def _ours(kind: str) -> Any:
    compute, schedule, name = _TEMPLATES[kind]
    strategy = relay_op.OpStrategy()
    strategy.add_implementation(
        generic.wrap_compute_conv2d(compute, need_data_layout=True, need_out_layout=True),
        generic.wrap_topi_schedule(schedule),
        name=name,
        plevel=_PLEVEL,
    )
    return strategy


def _strategy(stock_strategy: Any, attrs: Any, inputs: Any, out_type: Any, target: Any) -> Any:
    known = re.fullmatch(r"NCHW(\d+c)?", attrs.data_layout) and attrs.kernel_layout[:4] == "OIHW"
    kind = _kind(attrs, *inputs[:2], target) if known else None
    return stock_strategy(attrs, inputs, out_type, target) if kind is None else _ours(kind)


def _alter_layout(stock_alter: Any, attrs: Any, inputs: Any, tinfos: Any, out_type: Any) -> Any:
    """NCHW/OIHW to the blocked layout; the record of the plain workload goes along."""
    target = tvm.target.Target.current(allow_none=False)
    data, kernel = tinfos
    plain = attrs["data_layout"] == "NCHW" and attrs["kernel_layout"] == "OIHW"
    kind = _kind(attrs, data, kernel, target) if plain else None
    if kind is None:
        return stock_alter(attrs, inputs, tinfos, out_type)

    task = _TEMPLATES[kind][2]
    batch, channels, height, width = shape_of(data)
    filters, _, kernel_height, kernel_width = shape_of(kernel)
    in_block, out_block = channel_block(channels), channel_block(filters)
    data_layout, data_shape = (
        f"NCHW{in_block}c",
        (batch, channels // in_block, height, width, in_block),
    )
    if kind == "stem":  # reads the image as it comes
        in_block, data_layout, data_shape = channels, "NCHW", (batch, channels, height, width)
    if kind == "depthwise":
        kernel_layout = f"OIHW1i{out_block}o"
        kernel_shape = (filters // out_block, 1, kernel_height, kernel_width, 1, out_block)
    else:
        kernel_layout = f"OIHW{in_block}i{out_block}o"
        kernel_shape = (
            filters // out_block,
            channels // in_block,
            kernel_height,
            kernel_width,
            in_block,
            out_block,
        )
    layouts = (data_layout, f"NCHW{out_block}c")

    geometry = [attrs.get_int_tuple(name) for name in ("strides", "padding", "dilation")]
    out_dtype = out_type.dtype
    # As the strategy names it, and with it every record: a frontend leaves the output's layout
    # empty, and with a name of our own here no record would ever be found.
    plain_workload = autotvm.task.args_to_workload(
        [data, kernel, *geometry, "NCHW", attrs.get_str("out_layout"), out_dtype], task
    )
    blocked_workload = autotvm.task.args_to_workload(
        [
            te.placeholder(data_shape, dtype=data.dtype),
            te.placeholder(kernel_shape, dtype=kernel.dtype),
            *geometry,
            *layouts,
            out_dtype,
        ],
        task,
    )
    context = autotvm.task.DispatchContext.current
    context.update(target, blocked_workload, context.query(target, plain_workload))

    new_attrs = {name: attrs[name] for name in attrs.keys()}  # noqa: SIM118 (not a dict)
    new_attrs |= {
        "channels": filters,
        "data_layout": layouts[0],
        "kernel_layout": kernel_layout,
        "out_layout": layouts[1],
    }
    if kind == "depthwise":
        return relay.nn.contrib_depthwise_conv2d_nchwc(*inputs, **new_attrs)
    return relay.nn.contrib_conv2d_nchwc(*inputs, **new_attrs)


@functools.cache
def register() -> None:
    """Put our templates before TVM's. Once in a process."""
    for operator, stock_strategy in (
        (generic.conv2d_strategy, stock.conv2d_strategy_cpu),
        (generic.conv2d_NCHWc_strategy, stock.conv2d_NCHWc_strategy_cpu),
        (generic.depthwise_conv2d_NCHWc_strategy, stock.depthwise_conv2d_NCHWc_strategy_cpu),
    ):
        operator.register("cpu", functools.partial(_strategy, stock_strategy), override=True)
    stock_alter = conv2d_alter_layout.dispatch_dict["cpu"]
    conv2d_alter_layout.register(
        "cpu", functools.partial(_alter_layout, stock_alter), override=True
    )
