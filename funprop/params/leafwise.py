"""Does an optimizer update each leaf of params from that leaf alone?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jax.extend.core import Literal

if TYPE_CHECKING:
    import optax

Leaves = frozenset[str]  # which leaves of params a value was computed from
NONE, BOTH = frozenset[str](), frozenset("ab")
CALLS = ("jit", "pjit", "closed_call", "custom_jvp_call")


def require_leafwise(optimizer: optax.GradientTransformation) -> None:
    """Raise where an update of one leaf depends on another leaf, on random numbers or on the loss.

    The optimizer is traced on a tree of two leaves, and each value of the trace marked with the
    leaves that it was computed from; again with what was found of its state, until all is found.

    Raises:
      ValueError: a leaf depends on another, or on random numbers, drawn for all leaves together; or
        the optimizer has a mask for one tree.
      TypeError: the optimizer wants more than gradients, state and params.
    """
    params = {name: jax.ShapeDtypeStruct((4, 4), jnp.float32) for name in "ab"}
    with jax.numpy_dtype_promotion("standard"):  # optax's own code promotes
        try:
            first, state = jax.make_jaxpr(optimizer.init, return_shape=True)(params)
            again = jax.make_jaxpr(optimizer.update)(params, state, params)
        except TypeError as error:
            raise TypeError(
                f"optimizer must want gradients, state and params only, got one of which {error}"
            ) from None
        except (AttributeError, KeyError, ValueError):
            raise ValueError(
                "optimizer must take any tree of params, got one with a mask (or labels) for one "
                "tree alone: give it as a function that each leaf of the model is given to, as "
                "mask=fp.decayed"
            ) from None
    one_each = [frozenset("a"), frozenset("b")]
    before, found = None, _origins(first.jaxpr, one_each)
    while found != before:
        before = found
        updates_and_state = _origins(again.jaxpr, [*one_each, *before, *one_each])
        found = [old | new for old, new in zip(before, updates_and_state[2:], strict=True)]
        if BOTH in updates_and_state:
            raise ValueError(
                "optimizer must update each leaf from that leaf alone, got one that looks at "
                "several (a global norm?): use optax.clip, clip_by_block_rms or "
                "adaptive_grad_clip instead"
            )


def _origins(jaxpr: Any, inputs: Sequence[Leaves]) -> list[Leaves]:
    """For each output of `jaxpr`, the leaves that it depends on, given those of each input."""
    known = dict(zip(jaxpr.invars, inputs, strict=True))

    def of(atom: Any) -> Leaves:
        return NONE if isinstance(atom, Literal) else known.get(atom, NONE)

    for eqn in jaxpr.eqns:
        origins = [of(atom) for atom in eqn.invars]
        inner = eqn.params.get("jaxpr", eqn.params.get("call_jaxpr"))
        if eqn.primitive.name in CALLS and inner is not None:
            outputs = _origins(getattr(inner, "jaxpr", inner), origins)
        elif eqn.primitive.name.startswith("random_"):
            outputs = [BOTH] * len(eqn.outvars)  # each layer would draw the same numbers
        else:
            outputs = [NONE.union(*origins)] * len(eqn.outvars)
        known.update(zip(eqn.outvars, outputs, strict=True))
    return [of(atom) for atom in jaxpr.outvars]
