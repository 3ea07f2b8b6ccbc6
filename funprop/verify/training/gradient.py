"""Is the update what the optimizer makes of the true gradient of the loss?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.extend.core
import jax.numpy as jnp
import numpy as np
import optax

from funprop.trees import is_float
from funprop.verify.training import draws
from funprop.verify.training.batches import Examples, unequal
from funprop.verify.training.case import Case, NotAsked
from funprop.verify.training.closeness import Difference, Noise, differences
from funprop.verify.training.layout import is_array, is_key, params_of, wide
from funprop.verify.training.objective import float_tree, gradient_of
from funprop.verify.training.report import StepCheck, percent
from funprop.verify.training.running import Result

NEAR = 1e-3  # how well one factor must explain all of an update to be told


def gradient(case: Case) -> Iterator[StepCheck]:
    """The new state is the optimizer's for the gradient of the loss; without an optimizer, the
    update goes down it."""
    if case.said["loss_fn"] is None:
        raise NotAsked("give loss_fn=, (params, batch) -> loss, and optimizer=, an optax transform")
    if case.said["optimizer"] is None:
        yield from _downhill(case)
        return

    def law(examples: Examples) -> list[Difference]:
        batch = unequal(examples, case.said["mask"]).batch
        places, want, narrow = expected(case, batch)
        got, found = case.run(batch), with_optimizer(case.noise(batch), want, narrow)
        return differences(got, want, case.here, found, case.layout.paths, places, metrics=False)

    def sentence(found: list[Difference]) -> str:
        batch = unequal(case.examples, case.said["mask"]).batch
        return explained(case, found, case.run(batch), expected(case, batch)[1])

    yield from case.broken("gradient", law, sentence, least=1)


def _downhill(case: Case) -> Iterator[StepCheck]:
    grads, _ = gradient_of(case, case.examples.batch)
    new = case.run(case.examples.batch)
    dots = [
        float(np.sum(g * (wide(new.arrays[i]) - wide(case.here[i]))))
        for g, i in zip(grads, case.layout.params, strict=True)
    ]
    if sum(dots) > 0 and all(dot >= 0 for dot in dots):
        yield StepCheck("gradient", "every param goes up the gradient: a sign is turned")
        return
    yield StepCheck("gradient", note="only that it goes downhill: give optimizer= to ask for more")


def expected(case: Case, batch: Any) -> tuple[list[int], Result, Result]:
    """Of which arrays the new ones are known; what they should be, in float64; and as the optimizer
    has them in the working precision.

    Raises:
      NotAsked: the optimizer's state is not in the step's, or it does not take these params.
    """
    grads, _ = gradient_of(case, batch)
    state = case.layout.state(case.here)
    tree = params_of(state, case.said["params"])
    optimizer = optax.with_extra_args_support(case.said["optimizer"])
    try:
        params, opt_state = _found(state, tree, optimizer)
    except (TypeError, ValueError) as error:
        raise NotAsked(f"optimizer does not take these params: {error}") from None
    by_id = {id(case.here[i]): g for i, g in zip(case.layout.params, grads, strict=True)}
    given = {id(leaf): i for i, leaf in enumerate(case.here)}
    want, narrow, places = list(case.here), list(case.here), []
    for result, of in ((narrow, _narrow), (want, _wide)):
        with (
            jax.enable_x64(of is _wide),
            jax.numpy_dtype_promotion("standard"),
            jax.numpy_rank_promotion("allow"),
        ):
            slopes = jax.tree.map(
                lambda leaf, of=of: of(by_id.get(id(leaf), _zero(leaf)), leaf), params
            )
            old, opt = (
                jax.tree.map(lambda leaf, of=of: of(leaf, leaf), t) for t in (params, opt_state)
            )
            try:
                updates, new = _updated(optimizer, (slopes, opt, old), case.steps.axis)
            except Exception as error:  # whatever a transform of somebody raises
                if of is _wide:  # it mixes dtypes: what it makes in the working precision it is
                    want = list(narrow)
                    break
                reason = str(error).strip().split("\n")[0][:120]
                raise NotAsked(f"optimizer does not take this gradient: {reason}") from None
            moved = jax.tree.map(lambda p, u: p + u, old, updates)
            for before, after in ((params, moved), (opt_state, new)):
                leaves = zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True)
                for leaf, other in leaves:
                    i = given.get(id(leaf))
                    if i is not None and i not in case.layout.frozen and not is_key(leaf):
                        result[i] = np.asarray(other)
                        places.append(i)
    return sorted(set(places)), Result(want, {}), Result(narrow, {})


def _updated(optimizer: Any, given: tuple[Any, Any, Any], axis: int) -> Any:
    """`optimizer.update`, what it draws held still as in the step."""
    jaxpr, spec = jax.make_jaxpr(optimizer.update, return_shape=True)(*given)
    run = jax.jit(jax.extend.core.jaxpr_as_fun(draws.quiet(jaxpr, axis)))
    return jax.tree.unflatten(jax.tree.structure(spec), run(*jax.tree.leaves(given)))


def with_optimizer(found: Noise, want: Result, narrow: Result) -> Noise:
    """The noise of a step, and what the optimizer itself loses in the working precision."""
    arrays = [
        m if m is None else np.fmax(m, np.abs(wide(a) - wide(b)))
        for m, a, b in zip(found.arrays, want.arrays, narrow.arrays, strict=True)
    ]
    return found._replace(arrays=arrays)


def _zero(leaf: Any) -> Any:
    return jnp.zeros_like(leaf) if is_array(leaf) and not is_key(leaf) else leaf


def _wide(leaf: Any, like: Any) -> Any:
    if not is_array(leaf) or is_key(leaf) or not is_float(leaf):
        return leaf
    return jnp.asarray(np.asarray(leaf, np.float64))


def _narrow(leaf: Any, like: Any) -> Any:
    return jnp.asarray(leaf, like.dtype) if is_array(leaf) and is_float(like) else leaf


def _found(state: Any, tree: Any, optimizer: Any) -> tuple[Any, Any]:
    """The params as the optimizer takes them, and its state, both of the step's own arrays."""
    arrays = jax.tree.map(lambda leaf: leaf if is_array(leaf) else None, tree)
    reasons = []
    for form in (tree, arrays, float_tree(tree)):
        try:
            want = jax.eval_shape(optimizer.init, form)
        except Exception as error:  # functions among the leaves, say
            reasons.append(str(error).strip().split("\n")[0][:80])
            continue
        if not jax.tree.leaves(want):
            return form, want
        for node in _nodes(state):
            if _fits(node, want):
                return form, jax.tree.unflatten(jax.tree.structure(want), jax.tree.leaves(node))
    if reasons and len(reasons) == 3:
        raise NotAsked(f"optimizer does not take these params: {reasons[0]}")
    raise NotAsked("the state of optimizer= is not found in the step's state")


def _fits(node: Any, want: Any) -> bool:
    """Whether a node has the leaves of an optimizer's state, in their order."""
    a, b = jax.tree.leaves(node), jax.tree.leaves(want)
    return len(a) == len(b) and all(
        is_array(x) and x.shape == y.shape and is_float(x) == is_float(y)
        for x, y in zip(a, b, strict=True)
    )


def _nodes(node: Any) -> Iterator[Any]:
    """A tree and all that is in it, the outermost first."""
    yield node
    children = jax.tree.leaves(node, is_leaf=lambda part: part is not node)
    for child in children:
        if child is not node:
            yield from _nodes(child)


def explained(case: Case, found: Sequence[Difference], got: Result, want: Result) -> str:
    """How the update differs from what it should be, in a sentence."""
    params = case.layout.trained
    changes = [[wide(r.arrays[i]) - wide(case.here[i]) for i in params] for r in (got, want)]
    if all(not a.any() for a in changes[0]):
        return "the params do not change: the gradient, or its update, is not applied"
    wrong = {d.path for d in found}
    names = [case.layout.paths[i] for i in params]
    factor = _factor(*changes)
    if factor is not None and abs(factor - 1) > NEAR:
        if abs(factor + 1) < NEAR:
            return "the update has the wrong sign: it goes up the loss"
        if abs(factor - 2) < NEAR:
            return "the update is applied twice, or twice as large as it should be"
        return f"the update is {factor:.4g} times what it should be"
    moments = [i for i in case.layout.moments(case.here) if case.layout.paths[i] in wrong]
    if factor is not None and moments:
        grown = _factor(*([wide(r.arrays[i]) for i in moments[:1]] for r in (got, want)))
        times = "" if grown is None else f", {grown:.4g} times what it should be"
        return (
            "the params change as they should and the optimizer's moments do not "
            f"({case.layout.paths[moments[0]]}{times}): the gradient is scaled or clipped otherwise"
        )
    bad = [n for n in names if n in wrong]
    still = [n for n, a, b in zip(names, *changes, strict=True) if not a.any() and b.any()]
    if still:
        return f"no gradient reaches {', '.join(still[:3])}: it is stopped, or not asked for"
    where = ""
    if bad and len(bad) < len(names):
        where = f" of {', '.join(bad[:3])}{' and more' if len(bad) > 3 else ''}"
    return (
        f"the update{where} is not what the optimizer makes of the gradient of loss_fn, "
        f"{percent(found[0].error)} off"
    )


def _factor(got: Sequence[np.ndarray], want: Sequence[np.ndarray]) -> float | None:
    """The one number that all of a change is off by; `None` where there is none."""
    a, b = (np.concatenate([x.ravel() for x in part]) for part in (got, want))
    if not np.isfinite(a).all() or not b.any():
        return None
    factor = float(a @ b / (b @ b))
    rest = np.abs(a - factor * b).max()
    return factor if rest < NEAR * abs(factor) * np.abs(b).max() else None
