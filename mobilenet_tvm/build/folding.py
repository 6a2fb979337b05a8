"""The Relay passes that ``relay.build`` begins with, with constants folded by numpy on the way.

TVM folds a constant by compiling a kernel for it and running that once: two for each weight and
bias that the channel-blocked layout moves, 212 in V2, more than half of the time of a build.
They only move values or add an axis, which numpy does in no time and to the same bits.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from mobilenet_tvm import toolchain

Array = NDArray[Any]


def optimized(module: Any, target: Any, params: Mapping[str, Any]) -> tuple[Any, list[str]]:
    """``module`` behind TVM's own list of target-dependent passes, and their names.

    ``relay.build`` of the result gives the very same library as of ``module``. Its pass context
    disables these names, or all would run once more: to no effect, but for seconds.

    Args:
        module: ``IRModule`` with nothing but ``main``.
        target: ``tvm.target.Target``, or the text of one.
        params: values of parameters of ``main``.
    """
    toolchain.activate()
    import tvm
    from tvm.relay.build_module import bind_params_by_name

    if params:
        module = tvm.IRModule.from_expr(bind_params_by_name(module["main"], dict(params)))
    disabled = frozenset(map(str, tvm.transform.PassContext.current().disabled_pass))
    module, done = _before_layouts(module, target, disabled)
    _, layouts = _passes()
    module, more = _run(layouts, module, target)
    return module, [*done, *more]


@functools.lru_cache(maxsize=1)
def _before_layouts(module: Any, target: Any, disabled: frozenset[str]) -> tuple[Any, list[str]]:
    """The passes in which no record has a say yet: the next build of this module shares them.

    ``disabled`` are the passes that the context leaves out.
    """
    return _run(_passes()[0], module, target)


def _passes() -> tuple[list[Any], list[Any]]:
    """TVM's list, and the part of it that begins with the choice of layouts."""
    import tvm

    passes = _flat(tvm.get_global_func("relay.backend.GetPassPrefixSeq")(True, False))
    first = next(i for i, step in enumerate(passes) if step.info.name == "AlterOpLayout")
    return passes[:first], passes[first:]


def _run(passes: Iterable[Any], module: Any, target: Any) -> tuple[Any, list[str]]:
    """``module`` behind some of the passes, and their names."""
    import tvm

    done: list[str] = []
    with tvm.target.Target(target):
        for step in passes:
            name = str(step.info.name)
            if name == "FoldConstant":
                module = fold_moves(module)
            elif name != "InferType":  # which others ask for
                done.append(name)
            # As part of a sequence a pass is given what it asks for, and left out at this level.
            module = tvm.transform.Sequential([step])(module)
    return module, done


def _flat(sequence: Any) -> list[Any]:
    """The passes of a sequence, none of them one itself."""
    import tvm

    return [
        step
        for part in sequence.passes
        for step in (_flat(part) if isinstance(part, tvm.transform.Sequential) else [part])
    ]


def fold_moves(module: Any) -> Any:
    """Constants that are only moved (to another layout, by an axis more) in their new place.

    What computes something is left to TVM, and so is what pads.

    Returns:
        A new module, types inferred.
    """
    toolchain.activate()
    import tvm
    from tvm import relay

    class Folder(relay.ExprMutator):  # type: ignore[misc]
        def visit_call(self, call: Any) -> Any:
            new = super().visit_call(call)
            move = _MOVES.get(new.op.name) if isinstance(new.op, tvm.ir.Op) else None
            if move is None or not isinstance(new.args[0], relay.Constant):
                return new
            moved = move(new.args[0].data.numpy(), new.attrs)
            return new if moved is None else relay.Constant(tvm.nd.array(moved))

    folded = tvm.IRModule.from_expr(Folder().visit(module["main"]))
    return relay.transform.InferType()(folded)


def change_layout(data: Array, source: str, wanted: str) -> Array | None:
    """``NCHW`` to ``NCHW16c`` and the like: axes split, and put in another order.

    None where it is not as simple: ``source`` is split already, a block is not filled, or one
    layout has an axis that the other has not.
    """
    blocks = {axis.upper(): int(size) for size, axis in re.findall(r"(\d+)([a-z])", wanted)}
    axes = re.findall("[A-Za-z]", wanted)
    if not re.fullmatch("[A-Z]+", source) or set("".join(axes).upper()) != set(source):
        return None
    shape: list[int] = []
    found: list[str] = []
    for axis, size in zip(source, data.shape, strict=True):
        block = blocks.get(axis)
        if block is None:
            shape, found = [*shape, size], [*found, axis]
        elif size % block:
            return None
        else:
            shape, found = [*shape, size // block, block], [*found, axis, axis.lower()]
    if sorted(found) != sorted(axes):
        return None
    return data.reshape(shape).transpose([found.index(axis) for axis in axes])


def _layout_transform(data: Array, attrs: Any) -> Array | None:
    return change_layout(data, str(attrs.src_layout), str(attrs.dst_layout))


def _expand_dims(data: Array, attrs: Any) -> Array | None:
    axis, more = int(attrs.axis), int(attrs.num_newaxis)
    first = axis if axis >= 0 else data.ndim + 1 + axis
    return data.reshape(data.shape[:first] + (1,) * more + data.shape[first:])


def _repeat(data: Array, attrs: Any) -> Array | None:
    return None if attrs.axis is None else np.repeat(data, int(attrs.repeats), int(attrs.axis))


_MOVES: Final[Mapping[str, Callable[[Array, Any], Array | None]]] = {
    "layout_transform": _layout_transform,
    "expand_dims": _expand_dims,
    "repeat": _repeat,
}
