"""Whether two traces of a function compute the same, as far as that can be read off them."""

from __future__ import annotations

from typing import Any

import jax
import jax.extend.core
import jax.numpy as jnp
import numpy as np

from funprop.verify.truth.internals import inner_jaxprs, is_rule, open_jaxpr, plain_jaxpr

# What computes by code, or from a state, that is not in the trace.
UNKNOWN = (
    "pure_callback", "io_callback", "debug_callback", "ffi_call", "pallas_call", "custom_call",
    "rng_uniform",
)  # fmt: skip


def surely_same(a: Any, b: Any) -> bool:
    """Whether two jaxprs have the same equations, of the same constants, custom rules aside, and
    nothing in them may give another result when it runs again; false where nobody knows."""
    (a, a_consts), (b, b_consts) = open_jaxpr(a), open_jaxpr(b)
    if len(a_consts) != len(b_consts) or not all(map(_equal, a_consts, b_consts)):
        return False
    if len(a.eqns) != len(b.eqns):
        return False
    names: dict[Any, Any] = {}

    def paired(ours: Any, theirs: Any) -> bool:
        if len(ours) != len(theirs):
            return False
        for x, y in zip(ours, theirs, strict=True):
            if isinstance(x, jax.extend.core.Literal):
                same = isinstance(y, jax.extend.core.Literal) and _equal(x.val, y.val)
            else:
                same = names.get(x, y) is y
            if not same:
                return False
        return True

    def bound(ours: Any, theirs: Any) -> bool:
        names.update(zip(ours, theirs, strict=False))
        return len(ours) == len(theirs)

    if not (bound(a.constvars, b.constvars) and bound(a.invars, b.invars)):
        return False
    for x, y in zip(a.eqns, b.eqns, strict=True):
        if not (_alike(x, y) and paired(x.invars, y.invars) and bound(x.outvars, y.outvars)):
            return False
    return paired(a.outvars, b.outvars)


def _alike(x: Any, y: Any) -> bool:
    """Whether two equations compute the same of the same inputs."""
    if x.primitive is not y.primitive or x.primitive.name in UNKNOWN:
        return False
    if is_rule(x):  # of these only the function itself is run
        return surely_same(plain_jaxpr(x), plain_jaxpr(y))
    inner = inner_jaxprs(x), inner_jaxprs(y)
    if len(inner[0]) != len(inner[1]) or not all(map(surely_same, *inner)):
        return False
    rest = [
        {k: v for k, v in e.params.items() if not any(_holds(v, jaxpr) for jaxpr in jaxprs)}
        for e, jaxprs in zip((x, y), inner, strict=True)
    ]
    return rest[0].keys() == rest[1].keys() and all(
        _equal(v, rest[1][k]) for k, v in rest[0].items()
    )


def _holds(value: Any, jaxpr: Any) -> bool:
    return value is jaxpr or (isinstance(value, (tuple, list)) and any(v is jaxpr for v in value))


def _equal(a: Any, b: Any) -> bool:
    if a is b:
        return True
    if isinstance(a, (jax.Array, np.ndarray, np.generic)):
        if (np.shape(a), type(a)) != (np.shape(b), type(b)) or a.dtype != b.dtype:
            return False
        if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):  # two keys that are not one object
            return False
        return np.asarray(a).tobytes() == np.asarray(b).tobytes()
    try:
        return type(a) is type(b) and bool(a == b)
    except Exception:  # whatever a parameter may be
        return False
