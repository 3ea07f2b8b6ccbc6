"""What JAX's primitives compute, by NumPy, on float64, integers and booleans."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from funprop.verify.truth.numpy_indexed import gather, scatter


class NotInNumpyError(Exception):
    """What is to be run by NumPy holds something that is not run so here."""


def in_numpy(eqn: Any) -> Callable[..., Any]:
    """The equation's primitive as a function of arrays.

    Raises:
      NotInNumpyError: it is none of these, or of another dtype.
    """
    name = eqn.primitive.name
    if name in SIMPLE:
        return SIMPLE[name]
    if name in OF_FLOATS and all(v.aval.dtype == np.float64 for v in eqn.invars):
        return OF_FLOATS[name]
    if name in MADE:
        return MADE[name](eqn)
    raise NotInNumpyError(name)


def _select(which: Any, *cases: Any) -> Any:
    return np.where(which, cases[1], cases[0]) if len(cases) == 2 else np.choose(which, cases)


def _converted(eqn: Any) -> Any:
    dtype = eqn.params["new_dtype"]
    if eqn.invars[0].aval.dtype == np.float64 and dtype.kind in "iu":  # XLA's has ends
        raise NotInNumpyError("convert_element_type")
    return lambda x: x.astype(dtype)


def _broadcast(eqn: Any) -> Any:
    shape, thin = eqn.params["shape"], [1] * len(eqn.params["shape"])
    for place, n in zip(eqn.params["broadcast_dimensions"], eqn.invars[0].aval.shape, strict=True):
        thin[place] = n
    if math.prod(thin) == math.prod(shape):
        return lambda x: x.reshape(shape)

    def broadcast(x: Any) -> Any:
        made = np.empty(shape, x.dtype)  # a third of the time of `np.broadcast_to`
        made[...] = x.reshape(thin)
        return made

    return broadcast


def _reshaped(eqn: Any) -> Any:
    shape, order = eqn.params["new_sizes"], eqn.params["dimensions"]
    return lambda x: (x if order is None else x.transpose(order)).reshape(shape)


def _iota(eqn: Any) -> Any:
    shape, axis = eqn.params["shape"], eqn.params["dimension"]
    thin = [n if i == axis else 1 for i, n in enumerate(shape)]
    counted = np.arange(shape[axis], dtype=eqn.params["dtype"]).reshape(thin)
    return lambda: np.broadcast_to(counted, shape)


def _product(eqn: Any) -> Any:
    (left, right), (left_batch, right_batch) = eqn.params["dimension_numbers"]
    a, b = (v.aval.shape for v in eqn.invars)
    rows = [i for i in range(len(a)) if i not in (*left, *left_batch)]
    columns = [i for i in range(len(b)) if i not in (*right, *right_batch)]
    many, height, n = (math.prod(a[i] for i in axes) for axes in (left_batch, rows, left))
    width = math.prod(b[i] for i in columns)
    before, after = (*left_batch, *rows, *left), (*right_batch, *right, *columns)
    shape = eqn.outvars[0].aval.shape

    def product(x: Any, y: Any) -> Any:
        x = x.transpose(before).reshape(many, height, n)
        return (x @ y.transpose(after).reshape(many, n, width)).reshape(shape)

    return product


def _slice(eqn: Any) -> Any:
    strides = eqn.params["strides"] or (1,) * len(eqn.params["start_indices"])
    bounds = zip(eqn.params["start_indices"], eqn.params["limit_indices"], strides, strict=True)
    places = tuple(slice(*bound) for bound in bounds)
    return lambda x: x[places]


def _padded(eqn: Any) -> Any:
    lows, highs, inner = np.array(eqn.params["padding_config"], int).reshape(-1, 3).T

    def padded(x: Any, value: Any) -> Any:
        spread = np.array(x.shape, int) + np.maximum(np.array(x.shape, int) - 1, 0) * inner
        before, after = np.maximum(lows, 0), np.maximum(highs, 0)
        made = np.full(before + spread + after, value)
        made[tuple(map(slice, before, before + spread, inner + 1))] = x
        return made[tuple(map(slice, np.maximum(-lows, 0), made.shape + np.minimum(highs, 0)))]

    return padded


def _split(eqn: Any) -> Any:
    ends = np.cumsum(eqn.params["sizes"])[:-1]
    return lambda x: np.split(x, ends, eqn.params["axis"])


def _sorted(eqn: Any) -> Any:
    if eqn.params["num_keys"] != 1:
        raise NotInNumpyError("sort")
    axis = eqn.params["dimension"]

    def ordered(*values: Any) -> list[Any]:
        order = np.argsort(values[0], axis, kind="stable")
        return [np.take_along_axis(v, order, axis) for v in values]

    return ordered


def _reduced(ufunc: np.ufunc) -> Any:
    return lambda eqn: lambda x: ufunc.reduce(x, axis=tuple(eqn.params["axes"]), dtype=x.dtype)


def _extreme(ufunc: np.ufunc, end: str, infinity: float) -> Any:
    def made(eqn: Any) -> Any:
        def extreme(x: Any) -> Any:
            if x.dtype.kind in "iu":
                worst: Any = getattr(np.iinfo(x.dtype), end)
            else:
                worst = infinity > 0 if x.dtype.kind == "b" else infinity
            return ufunc.reduce(x, axis=tuple(eqn.params["axes"]), initial=worst)

        return extreme

    return made


def _place(function: Any) -> Any:
    return lambda eqn: (
        lambda x: function(x, eqn.params["axes"][0]).astype(eqn.params["index_dtype"])
    )


def _accumulated(ufunc: np.ufunc) -> Any:
    def made(eqn: Any) -> Any:
        axis, step = eqn.params["axis"], -1 if eqn.params["reverse"] else 1

        def turned(x: Any) -> Any:
            return np.flip(x, axis) if step < 0 else x

        return lambda x: turned(ufunc.accumulate(turned(x), axis, x.dtype))

    return made


def _rounded(eqn: Any) -> Any:
    if int(eqn.params["rounding_method"]) != 1:  # to the even of two that are as near
        raise NotInNumpyError("round")
    return np.rint


# Of any dtype.
SIMPLE: dict[str, Callable[..., Any]] = {
    "add": np.add, "add_any": np.add, "sub": np.subtract, "mul": np.multiply, "neg": np.negative,
    "abs": np.abs, "max": np.maximum, "min": np.minimum, "sign": np.sign, "square": np.square,
    "eq": np.equal, "ne": np.not_equal, "lt": np.less, "le": np.less_equal, "gt": np.greater,
    "ge": np.greater_equal, "and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor,
    "not": np.bitwise_not, "select_n": _select, "copy": np.asarray, "copy_p": np.asarray,
    "stop_gradient": np.asarray, "clamp": lambda low, x, high: np.minimum(np.maximum(x, low), high),
    "optimization_barrier": lambda *values: values, "is_finite": np.isfinite,
}  # fmt: skip

# Of integers XLA's are others, or it has none.
OF_FLOATS: dict[str, Callable[..., Any]] = {
    "div": np.divide, "rem": np.fmod, "pow": np.power, "exp": np.exp, "exp2": np.exp2,
    "log": np.log, "log1p": np.log1p, "expm1": np.expm1, "sqrt": np.sqrt, "cbrt": np.cbrt,
    "rsqrt": lambda x: 1 / np.sqrt(x), "logistic": lambda x: 1 / (1 + np.exp(-x)),
    "tanh": np.tanh, "sin": np.sin, "cos": np.cos, "tan": np.tan, "sinh": np.sinh,
    "cosh": np.cosh, "asinh": np.arcsinh, "acosh": np.arccosh, "atanh": np.arctanh,
    "asin": np.arcsin, "acos": np.arccos, "atan": np.arctan, "atan2": np.arctan2,
    "floor": np.floor, "ceil": np.ceil, "erf": np.vectorize(math.erf, otypes=[float]),
}  # fmt: skip

# Made of an equation.
MADE: dict[str, Callable[[Any], Callable[..., Any]]] = {
    "convert_element_type": _converted,
    "integer_pow": lambda e: lambda x: np.power(x, e.params["y"]),
    "round": _rounded,
    "broadcast_in_dim": _broadcast,
    "iota": _iota,
    "reshape": _reshaped,
    "squeeze": lambda e: lambda x: x.squeeze(tuple(e.params["dimensions"])),
    "expand_dims": lambda e: lambda x: np.expand_dims(x, tuple(e.params["dimensions"])),
    "transpose": lambda e: lambda x: x.transpose(e.params["permutation"]),
    "rev": lambda e: lambda x: np.flip(x, tuple(e.params["dimensions"])),
    "concatenate": lambda e: lambda *xs: np.concatenate(xs, e.params["dimension"]),
    "stack": lambda e: lambda *xs: np.stack(xs, e.params["axis"]),
    "tile": lambda e: lambda x: np.tile(x, e.params["reps"]),
    "slice": _slice,
    "pad": _padded,
    "split": _split,
    "sort": _sorted,
    "dot_general": _product,
    "reduce_sum": _reduced(np.add),
    "reduce_prod": _reduced(np.multiply),
    "reduce_and": _reduced(np.bitwise_and),
    "reduce_or": _reduced(np.bitwise_or),
    "reduce_max": _extreme(np.maximum, "min", -np.inf),
    "reduce_min": _extreme(np.minimum, "max", np.inf),
    "argmax": _place(np.argmax),
    "argmin": _place(np.argmin),
    "cumsum": _accumulated(np.add),
    "cumprod": _accumulated(np.multiply),
    "cummax": _accumulated(np.maximum),
    "cummin": _accumulated(np.minimum),
    "gather": gather,
    "scatter": scatter(None),
    "scatter-add": scatter(np.add),
    "scatter_add": scatter(np.add),
    "scatter-mul": scatter(np.multiply),
    "scatter_mul": scatter(np.multiply),
    "scatter-max": scatter(np.maximum),
    "scatter_max": scatter(np.maximum),
    "scatter-min": scatter(np.minimum),
    "scatter_min": scatter(np.minimum),
}
