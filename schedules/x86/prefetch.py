"""Weights of the next channels on their way into L2 while the sums of these are computed.

A pointwise layer's weights were last used an inference ago: they come from L3 or from memory. All
pixels share a block of them, so a loop reads it once as fast as it can, waiting, and then again and
again from its own caches. Asking for the next block all that time takes the wait away: measured,
3 to 7 % of layers with a megabyte of weights or more.

A schedule marks the loop over the input's channel blocks (``mark``); a lowering pass
(``prefetch_weights``), which a build must name in its pass context
(``mobilenet_tvm.schedules.pass_config``), writes the prefetches there. Without it the mark means
nothing.
"""

from __future__ import annotations

import itertools
from typing import Any, Final

import tvm
from tvm import te, tir

_MARK: Final = "mobilenet_prefetch_weights"
_LINE_FLOATS: Final = 16
# llvm.prefetch's arguments: to be read, into L2, as data.
_READ, _INTO_L2, _DATA = 0, 2, 1


def mark(stage: te.schedule.Stage, axis: tir.IterVar, ahead: int) -> None:
    """Have the weights ``ahead`` elements on asked for in each turn of the loop ``axis``.

    The loop must hold one of a known number of turns, the channels within a block, around the
    sums; the weights are what is loaded there by vectors.
    """
    stage.pragma(axis, _MARK, ahead)


@tvm.tir.transform.prim_func_pass(opt_level=0, name="mobilenet_tvm.PrefetchWeights")
def prefetch_weights(function: Any, _module: Any, _context: Any) -> Any:
    """Write prefetches where ``mark`` asked for them, in a flattened ``PrimFunc``."""
    key = f"pragma_{_MARK}"
    if not any(node.attr_key == key for node in _all(function.body, tir.AttrStmt)):
        return function

    def write(statement: Any) -> Any:
        if statement.attr_key != key:
            return None
        return _with_prefetches(statement.body, int(statement.value))

    body = tir.stmt_functor.ir_transform(function.body, None, write, ["tir.AttrStmt"])
    return function.with_body(body)


def _with_prefetches(loop: Any, ahead: int) -> Any:
    inner = _all(loop.body, tir.For)
    lanes = [one.loop_var for one in inner if one.kind == tir.ForKind.VECTORIZED]
    written = [store.buffer for store in _all(loop.body, tir.BufferStore)]
    weights = [
        load
        for load in _all(loop.body, tir.BufferLoad)
        if not any(load.buffer.same_as(buffer) for buffer in written)
        and any(_uses(load.indices[0], lane) for lane in lanes)
    ]
    if not weights:  # nothing is loaded by vectors: blocks of one channel
        return loop
    buffer, index = weights[0].buffer, weights[0].indices[0]
    along = [one for one in inner if _uses(index, one.loop_var)]
    start = {one.loop_var: tir.const(0, one.loop_var.dtype) for one in along}
    first = tir.stmt_functor.substitute(index, start)
    # Places of all vectors of the block, from its first element; one of each cache line.
    places: list[int] = []
    scalar = [one for one in along if one.loop_var not in lanes]
    analyzer = tvm.arith.Analyzer()
    for turn in itertools.product(*(range(int(one.extent)) for one in scalar)):
        at = {one.loop_var: tir.const(i, "int32") for one, i in zip(scalar, turn, strict=True)}
        place = analyzer.simplify(tir.stmt_functor.substitute(index, start | at) - first)
        places.append(int(place))
    lines = sorted({place // _LINE_FLOATS * _LINE_FLOATS for place in places})
    # Behind the last weights there is nothing to ask for.
    begin = tir.min(first + ahead, int(buffer.shape[0]) - max(places) - 1)
    base = tir.Var("ahead", "int32")
    asks = [
        tir.Evaluate(
            tir.call_intrin(
                "void",
                "tir.prefetch",
                tir.address_of(tir.BufferLoad(buffer, [base + line])),
                _READ,
                _INTO_L2,
                _DATA,
            )
        )
        for line in lines
    ]
    return tir.For(
        loop.loop_var,
        loop.min,
        loop.extent,
        loop.kind,
        tir.LetStmt(base, begin, tir.SeqStmt([*asks, loop.body])),
        loop.thread_binding,
        loop.annotations,
    )


def _all(body: Any, kind: Any) -> list[Any]:
    found: list[Any] = []
    tir.stmt_functor.post_order_visit(
        body, lambda node: found.append(node) if isinstance(node, kind) else None
    )
    return found


def _uses(expression: Any, variable: Any) -> bool:
    return any(one.same_as(variable) for one in _all(expression, tir.Var))
