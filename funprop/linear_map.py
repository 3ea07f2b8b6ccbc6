"""A linear map whose transpose somebody wrote, as of `jax.custom_derivatives.linear_call`, but one
that `vmap` maps, and that is differentiated again by what it is not linear in.

JAX makes a gradient of a tangent by transposing the linear part of it. Here stands which function
that gives, so that reverse mode runs a hand-written backward pass as it is, and forward mode its
transpose, each traced only where it is run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from funprop.trees import is_float

if TYPE_CHECKING:
    from funprop.typing import PyTree

Flat = list[Any]
Map = Callable[[Flat, Flat], Flat]

linear_map_p = Primitive("linear_map")
linear_map_p.multiple_results = True


def linear_map(
    across: Map, back: Map, residuals: Sequence[Any], xs: Sequence[Any], like: Sequence[Any]
) -> Flat:
    """`across(residuals, xs)`, linear in `xs`, with `back(residuals, dys) -> dxs` as its transpose.

    Args:
      across, back: from flat lists of arrays to flat lists; `back` may give `None` for zeros.
      residuals: arrays of any dtype.
      xs: floating arrays.
      like: arrays of the types that `across` gives.
    """
    avals = tuple(map(jax.typeof, like))
    return linear_map_p.bind(
        *residuals, *xs, across=across, back=back, n=len(residuals), avals=avals
    )


def forward_only(told: str, tree: PyTree) -> Any:
    """`tree`, which is differentiated in forward mode as ever, and in reverse mode fails with what
    is told: for what has loops that JAX cannot run backwards.

    Raises:
      TypeError: in reverse mode.

    Example:
      >>> def sine(x):
      ...     return forward_only("sine has no reverse mode", jnp.sin(x))
      >>> float(jax.jvp(sine, (0.0,), (2.0,))[1])
      2.0
      >>> try:
      ...     jax.grad(sine)(0.0)
      ... except TypeError as error:
      ...     print(error)
      sine has no reverse mode
    """

    def back(_: Flat, dys: Flat) -> Flat:
        raise TypeError(told)

    @jax.custom_jvp
    def same(xs: Flat) -> Flat:
        return xs

    @same.defjvp
    def _(primals: Any, tangents: Any) -> tuple[Flat, Flat]:
        (xs,), (dxs,) = primals, tangents
        return xs, linear_map(lambda _, dxs: dxs, back, [], dxs, xs)

    leaves, structure = jax.tree.flatten(tree)
    floats = [is_float(leaf) for leaf in leaves]
    moved = iter(same([leaf for leaf, moves in zip(leaves, floats, strict=True) if moves]))
    return structure.unflatten(
        next(moved) if moves else leaf for leaf, moves in zip(leaves, floats, strict=True)
    )


def _run(*operands: Any, across: Map, back: Map, n: int, avals: Any) -> Flat:
    return list(across(list(operands[:n]), list(operands[n:])))


def _jvp(primals: Any, tangents: Any, *, across: Map, n: int, **rest: Any) -> tuple[Flat, Flat]:
    ys = linear_map_p.bind(*primals, across=across, n=n, **rest)
    residuals, xs = list(primals[:n]), list(primals[n:])
    dys: Flat = [ad.Zero(jax.typeof(y)) for y in ys]
    if any(type(dx) is not ad.Zero for dx in tangents[n:]):
        dxs = map(ad.instantiate_zeros, tangents[n:])
        dys = linear_map_p.bind(*residuals, *dxs, across=across, n=n, **rest)
    moved = [i for i, d in enumerate(tangents[:n]) if type(d) is not ad.Zero]
    if moved:

        def at(*some: Any) -> Flat:
            there = list(residuals)
            for i, value in zip(moved, some, strict=True):
                there[i] = value
            return across(there, xs)

        _, more = jax.jvp(at, [residuals[i] for i in moved], [tangents[i] for i in moved])
        dys = [ad.add_tangents(a, b) for a, b in zip(dys, more, strict=True)]
    return ys, dys


def _transpose(dys: Any, *operands: Any, back: Map, n: int, avals: Any, **_: Any) -> Flat:
    """`back` itself is run, not a call of it: JAX differentiates it as any other code."""
    dys = [
        jnp.zeros(aval.shape, aval.dtype) if type(dy) is ad.Zero else dy
        for dy, aval in zip(dys, avals, strict=True)
    ]
    dxs = [
        ad.Zero(x.aval) if dx is None else dx if ad.is_undefined_primal(x) else None
        for dx, x in zip(back(list(operands[:n]), dys), operands[n:], strict=True)
    ]
    return [None] * n + dxs


def _batch(
    axis: Any, operands: Any, dims: Any, *, across: Map, back: Map, n: int, avals: Any
) -> tuple[Flat, list[int | None]]:
    if all(dim is None for dim in dims):
        rest = {"across": across, "back": back, "n": n, "avals": avals}
        return linear_map_p.bind(*operands, **rest), [None] * len(avals)
    xs = [
        jnp.broadcast_to(x, (axis.size, *x.shape)) if dim is None else jnp.moveaxis(x, dim, 0)
        for x, dim in zip(operands[n:], dims[n:], strict=True)
    ]

    def mapped(function: Map) -> Map:
        return jax.vmap(
            function,
            in_axes=(list(dims[:n]), 0),
            axis_size=axis.size,
            axis_name=axis.name,
            spmd_axis_name=axis.spmd_name,
        )

    like = jax.make_jaxpr(mapped(across))(list(operands[:n]), xs).out_avals
    ys = linear_map_p.bind(
        *operands[:n], *xs, across=mapped(across), back=mapped(back), n=n, avals=tuple(like)
    )
    return ys, [0] * len(ys)


linear_map_p.def_impl(_run)
linear_map_p.def_abstract_eval(lambda *_, avals, **__: avals)
ad.primitive_jvps[linear_map_p] = _jvp
ad.primitive_transposes[linear_map_p] = _transpose
batching.fancy_primitive_batchers[linear_map_p] = _batch
mlir.register_lowering(linear_map_p, mlir.lower_fun(_run, multiple_results=True))
