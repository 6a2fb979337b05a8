"""How our templates reach Relay: op strategies and layout alteration, for any target.

Both wrap what TVM registered for the target's key (``cpu``, ``arm_cpu``): a convolution that is
ours goes to our templates, every other call goes to TVM's function as before.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import tvm
from tvm import autotvm, relay, te
from tvm.relay.op import op as relay_op
from tvm.relay.op.strategy import generic
from tvm.target import Target
from tvm.topi.nn import conv2d_alter_layout
from tvm.topi.nn.utils import get_pad_tuple

from mobilenet_tvm.schedules import stem
from mobilenet_tvm.schedules.layout import shape_of

_PLEVEL = 20  # above all of TVM's own (10 to 15)
_enabled = True


@dataclass(frozen=True)
class Template:
    """One kind of convolution on one target.

    Attributes:
        compute: AutoTVM's compute function.
        schedule: AutoTVM's schedule function.
        task: name of both.
        kernel_chunks: where the weights of several of the output's channel blocks lie together,
            of how many, given a configuration, the output's channel blocks, its height and width.
    """

    compute: Any
    schedule: Any
    task: str
    kernel_chunks: Callable[[Any, int, int, int], int] | None = None


@dataclass(frozen=True, eq=False)
class Backend:
    """Our templates for one kind of target.

    Attributes:
        key: under which TVM's strategies for it are registered.
        stock: TVM's strategies of ``nn.conv2d``, ``nn.contrib_conv2d_NCHWc`` and
            ``nn.contrib_depthwise_conv2d_NCHWc`` for that key.
        matches: whether a target is of this kind.
        channel_block: channels in one block, given their number; asked with the target current.
        templates: by kind, ``depthwise``, ``pointwise`` and ``stem``.
        ordinary: TVM's template for what is left of float32 convolutions in NCHW with one group;
            None leaves the choice among its templates to TVM.
        schedules: of other operators: their names, TVM's schedule for the key, and ours, which is
            asked with the target current and gives None for what it leaves to TVM.
    """

    key: str
    stock: tuple[Any, Any, Any]
    matches: Callable[[Target], bool]
    channel_block: Callable[[int], int]
    templates: Mapping[str, Template]
    ordinary: Template | None = None
    schedules: tuple[tuple[tuple[str, ...], Any, Callable[[Any], Any]], ...] = ()


def use(which: str) -> None:
    """Choose the schedules of all later builds in this process: ``ours`` or ``stock``.

    Raises:
        ValueError: ``which`` is neither.
    """
    global _enabled
    if which not in ("ours", "stock"):
        raise ValueError(f"unknown schedules {which!r}: ours or stock")
    _enabled = which == "ours"


def _kind(backend: Backend, attrs: Any, data: Any, kernel: Any, target: Any) -> str | None:
    """``depthwise``, ``pointwise`` or ``stem`` when the convolution is ours, else None.

    ``data`` and ``kernel`` are in NCHW/OIHW or as ``_alter_layout`` leaves them.
    """
    if not _enabled or not backend.matches(target):
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
        kind = "pointwise"
    else:
        unblocked = len(data_shape) == 4 and channels <= stem.MAX_CHANNELS
        if attrs.groups != 1 or not unblocked or dilation != (1, 1):
            return None
        if max(pads[0], pads[2]) >= kernel_shape[2]:
            return None
        kind = "stem"
    if backend.templates[kind].kernel_chunks is not None and len(kernel_shape) == 6:
        # Several blocks of the output in one of the weights: TVM's templates know no such thing,
        # and ours must not take for it what hand-written Relay means by other blocks.
        with target:
            block = backend.channel_block(filters)
        if attrs.out_layout != f"NCHW{block}c" or kernel_shape[5] % block:
            return None
    return kind


def _only(template: Template, compute: Any) -> Any:
    strategy = relay_op.OpStrategy()
    strategy.add_implementation(
        compute, generic.wrap_topi_schedule(template.schedule), name=template.task, plevel=_PLEVEL
    )
    return strategy


def _ours(template: Template) -> Any:
    compute = generic.wrap_compute_conv2d(
        template.compute, need_data_layout=True, need_out_layout=True
    )
    return _only(template, compute)


def _strategy(
    backend: Backend, stock_strategy: Any, attrs: Any, inputs: Any, out_type: Any, target: Any
) -> Any:
    known = re.fullmatch(r"NCHW(\d+c)?", attrs.data_layout) and attrs.kernel_layout[:4] == "OIHW"
    data, kernel = inputs[:2]
    kind = _kind(backend, attrs, data, kernel, target) if known else None
    if kind is not None:
        return _ours(backend.templates[kind])
    plain = attrs.data_layout == "NCHW" and attrs.kernel_layout == "OIHW" and attrs.groups == 1
    floats = (data.dtype, kernel.dtype) == ("float32", "float32")
    if backend.ordinary is not None and plain and floats and _enabled and backend.matches(target):
        return _only(backend.ordinary, generic.wrap_compute_conv2d(backend.ordinary.compute))
    return stock_strategy(attrs, inputs, out_type, target)


def _schedule(
    backend: Backend, stock: Any, ours: Callable[[Any], Any], attrs: Any, outs: Any, target: Any
) -> Any:
    if _enabled and backend.matches(target):
        with target:
            schedule = ours(outs)
        if schedule is not None:
            return schedule
    return stock(attrs, outs, target)


def _scheduled_so(
    operator: str, schedule: Any, name: str, _attrs: Any, _inputs: Any, _type: Any, _target: Any
) -> Any:
    strategy = relay_op.OpStrategy()
    compute = relay_op.get(operator).get_attr("FTVMCompute")
    strategy.add_implementation(compute, schedule, name=name)
    return strategy


def _alter_layout(
    backend: Backend, stock_alter: Any, attrs: Any, inputs: Any, tinfos: Any, out_type: Any
) -> Any:
    """NCHW/OIHW to the blocked layout; the record of the plain workload goes along."""
    target = tvm.target.Target.current(allow_none=False)
    data, kernel = tinfos
    plain = attrs["data_layout"] == "NCHW" and attrs["kernel_layout"] == "OIHW"
    kind = _kind(backend, attrs, data, kernel, target) if plain else None
    if kind is None:
        return stock_alter(attrs, inputs, tinfos, out_type)

    template = backend.templates[kind]
    batch, channels, height, width = shape_of(data)
    filters, _, kernel_height, kernel_width = shape_of(kernel)
    in_block, out_block = backend.channel_block(channels), backend.channel_block(filters)
    geometry = [attrs.get_int_tuple(name) for name in ("strides", "padding", "dilation")]
    out_dtype = out_type.dtype
    # As the strategy names it, and with it every record: a frontend leaves the output's layout
    # empty, and with a name of our own here no record would ever be found.
    plain_workload = autotvm.task.args_to_workload(
        [data, kernel, *geometry, "NCHW", attrs.get_str("out_layout"), out_dtype], template.task
    )
    context = autotvm.task.DispatchContext.current
    config = context.query(target, plain_workload)
    kernel_block = out_block
    if template.kernel_chunks is not None:
        size = map(int, out_type.shape[2:4])
        kernel_block *= template.kernel_chunks(config, filters // out_block, *size)

    data_layout = f"NCHW{in_block}c"
    data_shape: tuple[int, ...] = (batch, channels // in_block, height, width, in_block)
    if kind == "stem":  # reads the image as it comes
        in_block, data_layout, data_shape = channels, "NCHW", (batch, channels, height, width)
    if kind == "depthwise":
        in_block = 1
    kernel_layout = f"OIHW{in_block}i{kernel_block}o"
    kernel_shape = (
        filters // kernel_block,
        shape_of(kernel)[1] // in_block,
        kernel_height,
        kernel_width,
        in_block,
        kernel_block,
    )
    layouts = (data_layout, f"NCHW{out_block}c")
    blocked_workload = autotvm.task.args_to_workload(
        [
            te.placeholder(data_shape, dtype=data.dtype),
            te.placeholder(kernel_shape, dtype=kernel.dtype),
            *geometry,
            *layouts,
            out_dtype,
        ],
        template.task,
    )
    context.update(target, blocked_workload, config)

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
def register(backend: Backend) -> None:
    """Put our templates before TVM's. Once in a process."""
    operators = (
        generic.conv2d_strategy,
        generic.conv2d_NCHWc_strategy,
        generic.depthwise_conv2d_NCHWc_strategy,
    )
    for operator, stock in zip(operators, backend.stock, strict=True):
        operator.register(backend.key, functools.partial(_strategy, backend, stock), override=True)
    # TVM took a copy of its schedules for each operator when it registered that.
    for names, stock, ours in backend.schedules:
        schedule = functools.partial(_schedule, backend, stock, ours)
        for name in names:
            strategy = functools.partial(_scheduled_so, name, schedule, f"{name}.{backend.key}")
            found = relay_op.get(name).get_attr("FTVMStrategy")
            found.register(strategy, [backend.key], allow_override=True)
    stock_alter = conv2d_alter_layout.dispatch_dict[backend.key]
    conv2d_alter_layout.register(
        backend.key, functools.partial(_alter_layout, backend, stock_alter), override=True
    )
