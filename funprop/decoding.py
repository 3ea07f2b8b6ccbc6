"""How a layer runs token by token: first places of a sequence at once, then one after the other.

A layer that treats all places alike (`pointwise`) runs as it is. One that looks back says beside
its two passes what it keeps of the past, its *cache*. Combinators hand their children's caches on.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp

from funprop.looping import looping
from funprop.trees import add, is_float, spec_string

if TYPE_CHECKING:
    from funprop.typing import PyTree


class Decoding(NamedTuple):
    """What a layer does along the time axis, the second of its input, one place after the other.

    Without a key, so in inference. What both give is what `forward` gives of the whole sequence.

    Attributes:
      prefill: `(params, x, length) -> (y, cache)`: the first places, `x [batch, time, ...]`, all at
        once; `y` is that of `forward`. The cache is any pytree of arrays, with room for a past of
        `length` places.
      advance: `(params, cache, x) -> (y, cache)`: the next place, `x [batch, 1, ...]`. The cache
        keeps its shapes and dtypes.
      forward: which forward pass it is of. `Layer` notes it: a layer that is given another forward
        has lost its decoding, and must be given that anew.

    Example (a running sum):
      >>> import funprop as fp
      >>> total = fp.layer(
      ...     forward=lambda params, x: (jnp.cumsum(x, 1), ()),
      ...     backward=lambda params, kept, dy: ((), jnp.cumsum(dy[:, ::-1], 1)[:, ::-1]),
      ...     decoding=Decoding(
      ...         prefill=lambda params, x, length: (jnp.cumsum(x, 1), x.sum(1, keepdims=True)),
      ...         advance=lambda params, cache, x: (cache + x, cache + x),
      ...     ),
      ... )
      >>> y, cache = total.decoding.prefill((), jnp.ones((1, 3, 1)), 4)
      >>> total.decoding.advance((), cache, jnp.ones((1, 1, 1)))[0].item()
      4.0
    """

    prefill: Callable[..., tuple[PyTree, PyTree]]
    advance: Callable[..., tuple[PyTree, PyTree]]
    forward: Any = None


def of_pointwise(forward: Callable[..., tuple[PyTree, PyTree]]) -> Decoding:
    """Of a layer that treats all places alike: `forward`, with nothing kept."""

    def prefill(params: PyTree, x: PyTree, length: int) -> tuple[PyTree, tuple[()]]:
        for leaf in jax.tree.leaves(x):
            if leaf.ndim < 2 + is_float(leaf):
                raise ValueError(
                    "x must be [batch, time, features], or integers [batch, time], to run token by "
                    f"token, got {spec_string(leaf)}"
                )
        y = forward(params, x)[0]
        ahead = {leaf.shape[:2] for leaf in jax.tree.leaves(x)}
        for leaf in jax.tree.leaves(y):
            if ahead != {leaf.shape[:2]}:
                raise ValueError(
                    "y of a pointwise layer must have batch and time as x has them, got "
                    f"{spec_string(leaf)}"
                )
        return y, ()

    def advance(params: PyTree, cache: tuple[()], x: PyTree) -> tuple[PyTree, tuple[()]]:
        return forward(params, x)[0], ()

    return Decoding(prefill, advance)


def one_decoding(
    forward: Callable[..., Any], pointwise: bool, decoding: Decoding | None
) -> Decoding | None:
    """What the author of a layer says of the time axis, in one of two ways."""
    if pointwise and decoding is not None:
        raise ValueError("a layer must be pointwise or have a decoding, got both")
    return of_pointwise(forward) if pointwise else decoding


def refused(reason: str) -> Decoding:
    """Of a layer that cannot run token by token: a `ValueError` that says so."""

    def refuse(*args: Any) -> Any:
        raise ValueError(reason)

    return Decoding(refuse, refuse)


def decoding_of(layer: Any) -> Decoding:
    """How `layer` runs token by token; one that does not say is refused where it should run."""
    known = layer.decoding
    if known is None:
        return refused(
            f"to run token by token, {layer.name} must say that it treats all places alike "
            "(pointwise=True) or how it looks back (decoding=...)"
        )
    if known.forward is not layer.forward:
        return refused(
            f"to run token by token, {layer.name} with another forward needs a new decoding"
        )
    return known


def through(
    layer: Any,
    params_of: Callable[[PyTree], PyTree] = lambda params: params,
    x_of: Callable[[PyTree], PyTree] = lambda x: x,
) -> Decoding:
    """Of a rewrite of `layer`, whose params and input are made from the rewrite's."""
    inner = decoding_of(layer)

    def prefill(params: PyTree, x: PyTree, length: int) -> tuple[PyTree, PyTree]:
        return inner.prefill(params_of(params), x_of(x), length)

    def advance(params: PyTree, cache: PyTree, x: PyTree) -> tuple[PyTree, PyTree]:
        return inner.advance(params_of(params), cache, x_of(x))

    return Decoding(prefill, advance)


# ----------------------------------------------------------------------------- of the combinators


def of_serial(parts: tuple[Any, ...], split: Callable[[PyTree], tuple[Any, ...]]) -> Decoding:
    """One after the other; the caches in a tuple."""
    each = [decoding_of(part) for part in parts]

    def prefill(params: Any, x: PyTree, length: int) -> tuple[PyTree, tuple[PyTree, ...]]:
        caches = []
        for part, p in zip(each, split(params), strict=True):
            x, cache = part.prefill(p, x, length)
            caches.append(cache)
        return x, tuple(caches)

    def advance(params: Any, caches: Any, x: PyTree) -> tuple[PyTree, tuple[PyTree, ...]]:
        new = []
        for part, p, cache in zip(each, split(params), caches, strict=True):
            x, cache = part.advance(p, cache, x)
            new.append(cache)
        return x, tuple(new)

    return Decoding(prefill, advance)


def of_residual(part: Any) -> Decoding:
    """`x + f(x)`; the cache is that of `f`."""
    inner = decoding_of(part)

    def prefill(params: PyTree, x: PyTree, length: int) -> tuple[PyTree, PyTree]:
        y, cache = inner.prefill(params, x, length)
        return add(x, y), cache

    def advance(params: PyTree, cache: PyTree, x: PyTree) -> tuple[PyTree, PyTree]:
        y, cache = inner.advance(params, cache, x)
        return add(x, y), cache

    return Decoding(prefill, advance)


def of_parallel(parts: tuple[Any, ...], split: Callable[[PyTree], tuple[Any, ...]]) -> Decoding:
    """Every branch on the same input; outputs and caches in tuples."""
    each = [decoding_of(part) for part in parts]

    def prefill(params: Any, x: PyTree, length: int) -> tuple[Any, Any]:
        both = [part.prefill(p, x, length) for part, p in zip(each, split(params), strict=True)]
        return tuple(y for y, _ in both), tuple(cache for _, cache in both)

    def advance(params: Any, caches: Any, x: PyTree) -> tuple[Any, Any]:
        given = zip(each, split(params), caches, strict=True)
        both = [part.advance(p, cache, x) for part, p, cache in given]
        return tuple(y for y, _ in both), tuple(cache for _, cache in both)

    return Decoding(prefill, advance)


def of_repeat(part: Any, n: int) -> Decoding:
    """A scan over the copies, their caches stacked as their params are."""
    inner = decoding_of(part)

    @looping("length")
    def prefill(params: PyTree, x: PyTree, length: int) -> tuple[PyTree, PyTree]:
        def one(x: PyTree, copy: PyTree) -> tuple[PyTree, PyTree]:
            return inner.prefill(copy, x, length)

        return jax.lax.scan(one, x, params, length=n)

    @looping()
    def advance(params: PyTree, caches: PyTree, x: PyTree) -> tuple[PyTree, PyTree]:
        def one(x: PyTree, copy: tuple[PyTree, PyTree]) -> tuple[PyTree, PyTree]:
            return inner.advance(*copy, x)

        return jax.lax.scan(one, x, (params, caches), length=n)

    return Decoding(prefill, advance)


# ------------------------------------------------------------------------- what layers' own share


def place(time: int) -> Any:
    """A cache that counts places, after the first `time`."""
    return jnp.asarray(time, jnp.int32)


def one_array(x: PyTree) -> Any:
    """`x`; raise where it comes with a mask or with lengths: a sequence that grows has none."""
    if isinstance(x, tuple):
        raise ValueError(f"x must be one array to run token by token, got {len(x)} parts")
    return x
