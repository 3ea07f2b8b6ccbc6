"""Each of JAX's primitives as people write it: `jax.numpy`, and `jax.lax` where that lacks it."""

from __future__ import annotations

import string
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from funprop.deriving.text import (
    ADD,
    ATOM,
    COMPARE,
    MULTIPLY,
    POWER,
    UNARY,
    Text,
    binary,
    dtype_name,
    tuple_of,
)

if TYPE_CHECKING:
    from funprop.deriving.flat import Operation

OPERATORS = {
    "add": ("+", ADD),
    "add_any": ("+", ADD),
    "sub": ("-", ADD),
    "mul": ("*", MULTIPLY),
    "eq": ("==", COMPARE),
    "ne": ("!=", COMPARE),
    "lt": ("<", COMPARE),
    "le": ("<=", COMPARE),
    "gt": (">", COMPARE),
    "ge": (">=", COMPARE),
    "and": ("&", COMPARE),
    "or": ("|", COMPARE),
    "xor": ("^", COMPARE),
}
FUNCTIONS = {
    **{name: f"jnp.{name}" for name in ("exp", "log", "tanh", "sin", "cos", "sqrt", "sign")},
    **{name: f"jnp.{name}" for name in ("abs", "floor", "ceil", "log1p", "expm1", "exp2")},
    **{name: f"lax.{name}" for name in ("rsqrt", "erf", "erfc", "erf_inv", "lgamma", "digamma")},
    **{name: f"lax.{name}" for name in ("rem", "nextafter", "shift_left", "square", "cbrt")},
    **{name: f"lax.{name}" for name in ("shift_right_logical", "shift_right_arithmetic")},
    **{name: f"jnp.{name}" for name in ("tan", "sinh", "cosh", "asinh", "acosh", "atanh")},
    **{name: f"lax.{name}" for name in ("asin", "acos", "atan", "bessel_i0e", "bessel_i1e")},
    **{name: f"lax.{name}" for name in ("igamma", "igammac", "polygamma", "zeta")},
    **{name: f"lax.{name}" for name in ("population_count", "clz", "real", "imag", "conj")},
    **{name: f"lax.{name}_p.bind" for name in ("eq_to", "lt_to", "le_to")},
    "regularized_incomplete_beta": "lax.betainc",
    "complex": "lax.complex",
    "logistic": "jax.nn.sigmoid",
    "is_finite": "jnp.isfinite",
    "max": "jnp.maximum",
    "min": "jnp.minimum",
    "atan2": "jnp.arctan2",
    "pow": "jnp.power",
}
ELEMENTWISE = {
    *OPERATORS,
    *FUNCTIONS,
    "div",
    "neg",
    "not",
    "integer_pow",
    "select_n",
    "clamp",
    "convert_element_type",
    "reduce_precision",
    "bitcast_convert_type",
    "round",
}
REDUCTIONS = {
    "reduce_sum": "sum",
    "reduce_max": "max",
    "reduce_min": "min",
    "reduce_prod": "prod",
    "reduce_and": "all",
    "reduce_or": "any",
}
LAX_CUMULATIVE = ("cumsum", "cumprod", "cummax", "cummin", "cumlogsumexp")


def elementwise(operation: Operation, given: list[Text]) -> Text:
    """A primitive that treats every number alike."""
    name, params = operation.name, operation.params
    if name in OPERATORS:
        return _simple(name, given) or binary(*OPERATORS[name], *given)
    if name == "div":
        if np.dtype(operation.gives[0].dtype).kind in "iu":
            return call("lax.div", given)
        return binary("/", MULTIPLY, *given)
    if name in FUNCTIONS:
        return call(FUNCTIONS[name], given)
    if name == "neg":
        return Text(f"-{given[0].within(UNARY)}", UNARY)
    if name == "not":
        return Text(f"~{given[0].within(UNARY)}", UNARY)
    if name == "integer_pow":
        return Text(f"{given[0].within(POWER + 1)} ** {params['y']}", POWER)
    if name == "select_n" and len(given) > 3:
        return call("lax.select_n", given)
    if name == "select_n":
        return call("jnp.where", [given[0], *given[:0:-1]])
    if name == "clamp":
        return call("jnp.clip", [given[1], given[0], given[2]])
    if name == "convert_element_type":
        return Text(f"{given[0].atom}.astype({dtype_name(params['new_dtype'])})")
    if name == "bitcast_convert_type":
        return call("lax.bitcast_convert_type", given, dtype_name(params["new_dtype"]))
    if name == "round":
        return call("lax.round", given, f"lax.RoundingMethod({int(params['rounding_method'])})")
    bits = f"exponent_bits={params['exponent_bits']}, mantissa_bits={params['mantissa_bits']}"
    return call("lax.reduce_precision", given, bits)


def _simple(name: str, given: list[Text]) -> Text | None:
    """The other one, where one is a one that multiplies or a zero that is taken away."""
    a, b = given
    if name == "mul" and a.number == 1 and b.full:
        return b
    if ((name == "mul" and b.number == 1) or (name == "sub" and b.number == 0)) and a.full:
        return a
    return None


def call(function: str, given: list[Text], *more: str) -> Text:
    return Text(f"{function}({', '.join([*(text.code for text in given), *more])})")


def _axis(axes: Any) -> str:
    axes = tuple(int(axis) for axis in axes)
    return str(axes[0]) if len(axes) == 1 else str(axes)


def reduction(operation: Operation, given: list[Text]) -> Text:
    dtype = np.dtype(operation.gives[0].dtype)
    narrow = operation.name in ("reduce_sum", "reduce_prod") and dtype.kind in "iu"
    more = f", dtype={dtype_name(dtype)}" if narrow else ""
    method = REDUCTIONS[operation.name]
    return Text(f"{given[0].atom}.{method}(axis={_axis(operation.params['axes'])}{more})")


def product(operation: Operation, given: list[Text]) -> Text:
    """`a @ b` where that is what it is, else `einsum`."""
    params, (a, b) = operation.params, operation.takes
    (left, right), (left_batch, right_batch) = params["dimension_numbers"]
    more = []
    wanted = params.get("preferred_element_type")
    if wanted is not None and not np.dtype(wanted) == np.dtype(a.dtype) == np.dtype(b.dtype):
        more.append(f"preferred_element_type={dtype_name(wanted)}")
    if params.get("precision") is not None:
        both = params["precision"]
        both = both if isinstance(both, tuple) else (both,)
        if len(set(both)) == 1 and hasattr(both[0], "name"):
            more.append(f"precision={both[0].name.lower()!r}")
    n = len(a.shape)
    plain = not left_batch and tuple(left) == (n - 1,) and tuple(right) == (0,)
    if plain and n and len(b.shape) in (1, 2):
        if more:
            return call("jnp.matmul", given, *more)
        return binary("@", MULTIPLY, *given)
    letters = iter(string.ascii_letters)
    of_a = [next(letters) for _ in a.shape]
    of_b = [next(letters) for _ in b.shape]
    for i, j in [*zip(left_batch, right_batch, strict=True), *zip(left, right, strict=True)]:
        of_b[j] = of_a[i]
    batch = [of_a[i] for i in left_batch]
    out = [
        *batch,
        *(letter for i, letter in enumerate(of_a) if i not in (*left, *left_batch)),
        *(letter for i, letter in enumerate(of_b) if i not in (*right, *right_batch)),
    ]
    spec = f"{''.join(of_a)},{''.join(of_b)}->{''.join(out)}"
    operands = ", ".join([*(text.code for text in given), *more])
    return Text(f'jnp.einsum("{_letters_first(spec)}", {operands})')


def _letters_first(spec: str) -> str:
    """The same sums, with letters in the order in which they come."""
    found = [c for c in dict.fromkeys(spec) if c.isalpha()]
    new = dict(zip(found, string.ascii_letters, strict=False))
    return "".join(new.get(c, c) for c in spec)


def expanded(operation: Operation, given: Text) -> Text:
    """`broadcast_in_dim`, as NumPy broadcasts: `v[:, None]`, not yet at its full shape."""
    (source, *_), shape = operation.takes, operation.params["shape"]
    places = operation.params["broadcast_dimensions"]
    if not source.shape:
        return given._replace(full=not shape)
    missing = [i for i in range(len(shape)) if i not in places]
    code, binds, bare = given.code, given.binds, ""
    if missing:
        bare = given.atom if missing == list(range(len(missing))) else ""
        index = ", ".join("None" if i in missing else ":" for i in range(len(shape)))
        code, binds = f"{given.atom}[{index}]", ATOM
    now = [1 if i in missing else source.shape[places.index(i)] for i in range(len(shape))]
    return Text(code, binds, full=tuple(now) == tuple(shape), bare=bare)


def sliced(operation: Operation, given: list[Text]) -> Text:
    params, shape = operation.params, operation.takes[0].shape
    strides = params["strides"] or (1,) * len(shape)
    parts = []
    for start, stop, step, size in zip(
        params["start_indices"], params["limit_indices"], strides, shape, strict=True
    ):
        told = f"{start or ''}:{'' if stop == size else stop}"
        parts.append(told + (f":{step}" if step != 1 else ""))
    while len(parts) > 1 and parts[-1] == ":":
        parts.pop()
    if parts == [":"]:
        return given[0]
    return Text(f"{given[0].atom}[{', '.join(parts)}]")


def transposed(operation: Operation, given: list[Text]) -> Text:
    order = tuple(int(i) for i in operation.params["permutation"])
    if order == (1, 0):
        return Text(f"{given[0].atom}.T")
    return Text(f"{given[0].atom}.transpose{order}")


def _sizes(values: Any) -> list[int]:
    return [int(v) for v in values]


def _reshaped(operation: Operation, given: list[Text]) -> Text:
    if operation.takes[0].shape == operation.gives[0].shape:
        return given[0]
    return Text(f"{given[0].atom}.reshape({', '.join(map(str, operation.gives[0].shape))})")


def _iota(operation: Operation, given: list[Text]) -> Text:
    p = operation.params
    dtype, shape = dtype_name(p["dtype"]), tuple(p["shape"])
    n = f"jnp.arange({shape[p['dimension']]}, dtype={dtype})"
    if sum(size != 1 for size in shape) <= 1 or len(shape) == 1:
        index = ", ".join(":" if i == p["dimension"] else "None" for i in range(len(shape)))
        return Text(n if len(shape) == 1 else f"{n}[{index}]")
    return Text(f"lax.broadcasted_iota({dtype}, {shape}, {p['dimension']})")


SHAPES: dict[str, Callable[[Operation, list[Text]], Text]] = {
    "dot_general": product,
    "slice": sliced,
    "transpose": transposed,
    "reshape": _reshaped,
    "iota": _iota,
    **dict.fromkeys(
        ("empty", "empty2"),
        lambda o, t: Text(f"jnp.zeros({tuple(o.gives[0].shape)}, {dtype_name(o.gives[0].dtype)})"),
    ),  # whose numbers nobody reads
    "squeeze": lambda o, t: Text(f"{t[0].atom}.squeeze({_axis(o.params['dimensions'])})"),
    "expand_dims": lambda o, t: Text(f"jnp.expand_dims({t[0].code}, {o.params['dimensions']})"),
    "rev": lambda o, t: call("jnp.flip", t, _axis(o.params["dimensions"])),
    "tile": lambda o, t: call("jnp.tile", t, str(tuple(_sizes(o.params["reps"])))),
    "concatenate": lambda o, t: Text(
        f"jnp.concatenate([{', '.join(x.code for x in t)}], axis={o.params['dimension']})"
    ),
    "pad": lambda o, t: call(
        "lax.pad", t, str(tuple(tuple(_sizes(c)) for c in o.params["padding_config"]))
    ),
    "dynamic_slice": lambda o, t: call(
        "lax.dynamic_slice",
        [t[0], Text(tuple_of([x.code for x in t[1:]]))],
        str(tuple(_sizes(o.params["slice_sizes"]))),
    ),
    "dynamic_update_slice": lambda o, t: call(
        "lax.dynamic_update_slice", [t[0], t[1], Text(tuple_of([x.code for x in t[2:]]))]
    ),
    "argmax": lambda o, t: Text(
        f"jnp.argmax({t[0].code}, axis={_axis(o.params['axes'])})"
        f".astype({dtype_name(o.params['index_dtype'])})"
    ),
    "argmin": lambda o, t: Text(
        f"jnp.argmin({t[0].code}, axis={_axis(o.params['axes'])})"
        f".astype({dtype_name(o.params['index_dtype'])})"
    ),
    **{
        name: lambda o, t: call(
            f"lax.{o.name}", t, f"axis={o.params['axis']}", *["reverse=True"] * o.params["reverse"]
        )
        for name in LAX_CUMULATIVE
    },
}
