"""Index expressions of lowered kernels, evaluated for many threads at once."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
# What is known of each variable, by the address of its node.
Values = dict[int, Array]

_BINARY: dict[str, Callable[[Array, Array], Array]] = {
    "Add": np.add,
    "Sub": np.subtract,
    "Mul": np.multiply,
    "FloorDiv": np.floor_divide,
    "FloorMod": np.mod,
    # Of C: towards zero.
    "Div": lambda a, b: np.trunc(a / b).astype(np.int64),
    "Mod": np.fmod,
    "Min": np.minimum,
    "Max": np.maximum,
    "EQ": np.equal,
    "NE": np.not_equal,
    "LT": np.less,
    "LE": np.less_equal,
    "GT": np.greater,
    "GE": np.greater_equal,
    "And": np.logical_and,
    "Or": np.logical_or,
}
BINARY = frozenset(_BINARY)
_CALLS: dict[str, Callable[..., Array]] = {
    "tir.shift_left": np.left_shift,
    "tir.shift_right": np.right_shift,
    "tir.bitwise_and": np.bitwise_and,
    "tir.bitwise_or": np.bitwise_or,
    "tir.bitwise_xor": np.bitwise_xor,
    "tir.if_then_else": np.where,
    "tir.likely": lambda a: a,
    "tir.abs": np.abs,
}


class UnknownError(Exception):
    """An expression that depends on what is in memory, or is of a kind not known here."""


def key(variable: Any) -> int:
    """What ``Values`` knows a ``tir.Var`` by."""
    return int(variable.handle.value)


def evaluate(expression: Any, values: Values) -> Array:
    """An integer or boolean ``PrimExpr`` as an array.

    Args:
        expression: of TIR. A vector's elements go along the last axis.
        values: of the variables, arrays that broadcast to ``[..., 1]``.

    Raises:
        UnknownError: it cannot be said.
    """
    of = functools.partial(evaluate, values=values)
    kind = type(expression).__name__
    if kind in _BINARY:
        return _BINARY[kind](of(expression.a), of(expression.b))
    if kind == "IntImm":
        return np.full((1, 1, 1), int(expression.value), np.int64)
    if kind in ("Var", "SizeVar"):
        try:
            return values[key(expression)]
        except KeyError:
            raise UnknownError(expression.name) from None
    if kind == "Ramp":
        steps = np.arange(int(expression.lanes), dtype=np.int64)
        return of(expression.base) + of(expression.stride) * steps
    if kind == "Broadcast":
        return np.repeat(of(expression.value), int(expression.lanes), axis=-1)
    if kind == "Cast" and "float" not in str(expression.value.dtype):
        return of(expression.value)
    if kind == "Not":
        return np.logical_not(of(expression.a))
    if kind == "Select":
        return np.where(
            of(expression.condition), of(expression.true_value), of(expression.false_value)
        )
    if kind == "Let":
        inner = {**values, key(expression.var): of(expression.value)}
        return evaluate(expression.body, inner)
    if kind == "Call" and call_name(expression) in _CALLS:
        return _CALLS[call_name(expression)](*map(of, expression.args))
    raise UnknownError(kind)


def call_name(call: Any) -> str:
    """Name of what a ``tir.Call`` calls, ``tir.if_then_else``."""
    return str(getattr(call.op, "name", ""))
