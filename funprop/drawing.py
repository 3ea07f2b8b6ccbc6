"""How first params are drawn: by programs that XLA makes in haste, as each runs once.

From `init` to the first update on a CPU, most of the time was XLA's, spent on making random
numbers fast that are drawn once: 2.5 of 4.6 seconds for a network of 17,226 params. Without
optimisation its code gives the same numbers, to rounding, in less than half of the time.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
from jax.core import Tracer
from jax.nn import initializers

from funprop.checks import require_key
from funprop.trees import spec

if TYPE_CHECKING:
    from funprop.typing import Array, Key, PyTree

HASTE = {"xla_backend_optimization_level": 0}
# From here on slow code costs more than it spares: 0.15 microseconds a number, or half a second.
LARGE = 2**21


def in_haste(
    function: Callable[..., Any], size: Callable[..., int] = lambda key, shape, *_: math.prod(shape)
) -> Callable[..., Any]:
    """`function(key, *static)` as one program, compiled without optimisation where that pays.

    Where it is traced, and on anything but a CPU, it runs as it is.

    Args:
      function: of a key and of what can be hashed, by default as an initialiser, of a shape first.
      size: how many numbers it draws of the same arguments.

    Example:
      >>> import jax.numpy as jnp
      >>> draw = in_haste(lambda key, shape: jax.random.normal(key, shape))
      >>> bool((draw(jax.random.key(0), (3,)) == jax.random.normal(jax.random.key(0), (3,))).all())
      True
    """
    # The number of static arguments varies, so they travel as one.
    jitted = jax.jit(
        lambda key, static: function(key, *static), static_argnums=1, compiler_options=HASTE
    )

    def call(key: Any, *static: Any) -> Any:
        require_key(key)
        quick = size(key, *static) <= LARGE and _may(key)
        return jitted(key, static) if quick else function(key, *static)

    return functools.update_wrapper(call, function)


def _may(key: Any) -> bool:
    if not isinstance(key, jax.Array) or isinstance(key, Tracer):
        return False
    # A key that is known may be used within what is traced, where no program has its own options.
    traced = isinstance(jax.lax.full((), 0), Tracer)
    on = {device.platform for device in key.devices()}
    return on == {"cpu"} and not traced


_keys = in_haste(lambda key, n: tuple(jax.random.split(key, n)), size=lambda key, n: n)


def split(key: Key[Array, ""], n: int = 2) -> tuple[Key[Array, ""], ...]:
    """`jax.random.split` as a tuple.

    Example:
      >>> one, two = split(jax.random.key(0))
      >>> bool(two == jax.random.split(jax.random.key(0))[1])
      True
    """
    return _keys(key, n)


def copies(init: Callable[..., PyTree], n: int) -> Callable[[Any, PyTree], PyTree]:
    """`n` times what a layer's `init` gives, each by its own key, as one program."""

    def draw(key: Any, tree: Any, specs: tuple[Any, ...]) -> PyTree:
        x = tree.unflatten(specs)
        return jax.vmap(lambda key: init(key, x))(jax.random.split(key, n))

    def size(key: Any, *static: Any) -> int:
        made = jax.eval_shape(lambda key: draw(key, *static), key)
        return sum(leaf.size for leaf in jax.tree.leaves(made))

    quick = in_haste(draw, size)

    def drawn(key: Any, x: PyTree) -> PyTree:
        specs, tree = jax.tree.flatten(spec(x))
        return quick(key, tree, tuple(specs))

    return drawn


he_normal = in_haste(initializers.he_normal())
lecun_normal = in_haste(initializers.lecun_normal())
orthogonal = in_haste(initializers.orthogonal())


@functools.lru_cache(maxsize=64)
def normal(deviation: float) -> Callable[..., Array]:
    """`jax.nn.initializers.normal`; kept, so that another layer compiles nothing."""
    return in_haste(initializers.normal(deviation))
