"""The loss that a step is said to minimise, and its true gradient: in float64, nothing of the
step's own code beside the loss."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.extend.core
import jax.numpy as jnp
import numpy as np

from funprop.trees import is_float
from funprop.verify.training import draws
from funprop.verify.training.case import Case, NotAsked
from funprop.verify.training.layout import is_array, of_tree, params_of
from funprop.verify.truth.evaluate import Evaluate, NotWideError

EPS64 = float(np.finfo(np.float64).eps)


def traced_loss(case: Case, of_batch: Any) -> Callable[..., tuple[Any, list[Any]]]:
    """`arrays -> (jaxpr, leaves)`: the loss traced at a state, random numbers held still."""
    loss_fn = case.said["loss_fn"]

    def trace(arrays: Sequence[Any]) -> tuple[Any, list[Any]]:
        tree = params_of(case.layout.state(list(arrays)), case.said["params"])
        layout, batch = of_tree(tree), of_tree(of_batch)
        wants = _wants_key(loss_fn, bool(case.draws))
        key = jax.random.key(0) if case.steps.key is None else case.steps.key

        def flat(params: Any, leaves: Any, key: Any) -> Any:
            args = (layout.state(params), batch.state(leaves))
            value = loss_fn(*args) if not wants else loss_fn(*args, key)
            value = value[0] if isinstance(value, tuple) else value
            if np.shape(value):
                raise NotAsked(f"loss_fn gives no scalar, but shape {np.shape(value)}")
            return value

        key = key if wants else None
        inputs = (
            list(map(jnp.asarray, layout.arrays(tree))),
            list(map(jnp.asarray, batch.arrays(of_batch))),
            key,
        )
        try:
            jaxpr = jax.make_jaxpr(flat)(*inputs)
        except NotAsked:
            raise
        except Exception as error:  # whatever a loss of somebody raises
            reason = str(error).strip().split("\n")[0][:120]
            raise NotAsked(f"loss_fn does not take (params, batch): {reason}") from None
        return draws.quiet(jaxpr, case.steps.axis), jax.tree.leaves(inputs)

    return trace


def _wants_key(loss_fn: Any, draws: bool) -> bool:
    """Whether a loss takes a key, or may, and the step draws."""
    try:
        wanted = inspect.signature(loss_fn).parameters.values()
    except (TypeError, ValueError):
        return False
    free = [p for p in wanted if p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]  # noqa: E501  # fmt: skip
    return len(free) > 2 or (draws and any(p.name in ("key", "rng", "rngs") for p in wanted))


def loss_of(case: Case, batch: Any) -> tuple[Callable[[Sequence[Any]], float], float]:
    """The loss of the batch as a function of the state's arrays, and its rounding unit."""
    trace = traced_loss(case, batch)

    def loss(arrays: Sequence[Any]) -> float:
        jaxpr, leaves = trace(arrays)
        try:
            with jax.enable_x64(True):
                run = jax.jit(lambda *xs: Evaluate(wide=True)(jaxpr, *xs))
                return float(run(*leaves)[0])
        except NotWideError:
            return float(jax.jit(jax.extend.core.jaxpr_as_fun(jaxpr))(*leaves)[0])

    return loss, EPS64


def gradient_of(case: Case, batch: Any) -> tuple[list[np.ndarray], float]:
    """The gradient of the loss with respect to each param, in float64, and its rounding unit."""
    jaxpr, leaves = traced_loss(case, batch)(case.here)
    tree = params_of(case.layout.state(case.here), case.said["params"])
    mine = of_tree(tree)
    by_id = {id(leaf): n for n, leaf in enumerate(mine.arrays(tree))}
    places = [by_id[id(case.here[i])] for i in case.layout.params]

    def loss(chosen: list[Any], rest: list[Any], evaluate: Any) -> Any:
        full = list(rest)
        for place, leaf in zip(places, chosen, strict=True):
            full[place] = leaf
        return evaluate(*full)[0]

    chosen = [leaves[place] for place in places]
    try:
        with jax.enable_x64(True):
            wide = [jnp.asarray(leaf, jnp.float64) for leaf in chosen]
            evaluate = lambda *xs: Evaluate(wide=True)(jaxpr, *xs)  # noqa: E731
            run = jax.jit(jax.grad(lambda c, r: loss(c, r, evaluate)))
            return [np.asarray(g) for g in run(wide, leaves)], EPS64
    except NotWideError:
        run = jax.jit(jax.grad(lambda c, r: loss(c, r, jax.extend.core.jaxpr_as_fun(jaxpr))))
        return [np.asarray(g, np.float64) for g in run(chosen, leaves)], case.eps(batch)


def float_tree(tree: Any) -> Any:
    """The tree with `None` for what is no floating array."""
    return jax.tree.map(lambda leaf: leaf if is_array(leaf) and is_float(leaf) else None, tree)
