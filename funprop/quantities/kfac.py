"""K-FAC: the natural gradient with the curvature of every layer as a product of two factors."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from funprop.checks import check_key
from funprop.layer import Layer
from funprop.params.frozen import trained, with_trained
from funprop.quantities.closed_form import closed_of
from funprop.quantities.columns import check_objective, with_columns
from funprop.quantities.each_example import is_trained
from funprop.quantities.ggn import Diagonal, check_sharing, factors_of, roots
from funprop.quantities.outer import Factors
from funprop.quantities.shared_params import divided, expansion, key_of, parts, placed
from funprop.quantities.squared_norms import is_shared
from funprop.trees import wide_dtype, widen
from funprop.values import FINITE, number_within, seed_number, whole_number

if TYPE_CHECKING:
    from funprop.typing import Array, Float, PyTree


class KfacState(NamedTuple):
    """The state of `kfac`.

    Attributes:
      count: how many updates were made.
      curvature: `Factors` or a `Diagonal` in the place of each layer's params, averaged.
      inverses: of the damped factors.
      momentum: like params.
    """

    count: Any
    curvature: Any
    inverses: Any
    momentum: Any
    reads_batch = True  # a step gives it the batch, in a chain of transforms too


def kfac(
    objective: Layer,
    learning_rate: float | Callable[[Any], Any],
    *,
    damping: float = 1e-3,
    momentum: float = 0.9,
    decay: float = 0.95,
    kl_clip: float = 1e-3,
    every: int = 1,
    inverse_every: int = 10,
    samples: int | None = 1,
    sharing: str = "expand",
    seed: int = 0,
) -> optax.GradientTransformationExtraArgs:
    """An optax transform by Kronecker-factored curvature: each layer's gradient times the inverse
    of its block of the Gauss-Newton matrix.

    With `(a, g)` a layer's factors (see `kfac_factors`), averaged over updates, and the gradient
    `d`, `[i, o]` with the bias as its last row,

        (a + p r I)^-1 d (g + r / p I)^-1,    r^2 = damping,  p^2 = mean eigenvalue of a / of g.

    A layer without factors (a norm, a table) is divided by the diagonal of its block, plus
    `damping`. The step is then shortened until the change of the outputs' distribution that it
    predicts is at most `kl_clip`, and momentum is added. The factors take a forward and a backward
    pass of their own, on the batch of the update, which `step` hands on (with the key and all
    params); so any grad_fn goes with it, and any wrapper.

    Args:
      objective: the one that is trained; its loss says its Hessian (see `ggn_diagonal`).
      learning_rate: a number, or a schedule of optax.
      damping: added to the curvature, of the mean loss.
      momentum: what remains of the last update.
      decay: what remains of the last average of factors.
      kl_clip: the largest change of the outputs that an update predicts, in squared norm.
      every: updates from one look at the factors to the next.
      inverse_every: updates from one inversion to the next; a multiple of `every` is sensible.
      samples, sharing: as of `kfac_factors`.
      seed: of the labels that are drawn.

    Source: Martens and Grosse, arXiv:1503.05671; the bound on the step: Ba, Grosse and Martens,
    ICLR 2017; for transformers: Eschenhagen et al., arXiv:2311.00636.

    Raises:
      TypeError: `objective` is no layer.
      ValueError: a number is out of its range; at an update, there is no `batch` (`fused_step` has
        none to give), or as `kfac_factors`.

    Example:
      >>> import funprop as fp
      >>> line = fp.objective(fp.dense(1, bias=False), fp.mean_squared())
      >>> optimizer = kfac(line, 0.3, momentum=0.0, kl_clip=1.0, samples=None)
      >>> train = fp.step(fp.backprop(line), optimizer)
      >>> batch = jnp.array([[1.0], [2.0]]), jnp.array([[2.0], [4.0]])
      >>> state = train.init(line.init(jax.random.key(0), batch), None)
      >>> for _ in range(50):
      ...     state, metrics = train.update(state, batch)
      >>> float(metrics["loss"].mean) < 1e-3
      True
    """
    check_objective(objective)
    if not callable(learning_rate):
        learning_rate = number_within(learning_rate, "learning_rate", *FINITE)
    damping = number_within(damping, "damping", *FINITE)
    kl_clip = number_within(kl_clip, "kl_clip", lambda x: x > 0, "positive")
    below_one = lambda x: 0 <= x < 1, "at least 0 and below 1"
    momentum = number_within(momentum, "momentum", *below_one)
    decay = number_within(decay, "decay", *below_one)
    every = whole_number(every, "every", 1)
    inverse_every = whole_number(inverse_every, "inverse_every", 1)
    samples = None if samples is None else whole_number(samples, "samples", 1)
    seed = seed_number(seed)
    check_sharing(sharing)

    def init(params: PyTree) -> KfacState:
        empty = _empty(objective, params, 0)
        zeros = jax.tree.map(jnp.zeros_like, params)
        return KfacState(jnp.zeros((), jnp.int32), empty, empty, zeros)

    def update(
        grads: PyTree,
        state: KfacState,
        params: PyTree = None,
        *,
        batch: Any = None,
        key: Any = None,
        all_params: Any = None,
        **_: Any,
    ) -> tuple[PyTree, KfacState]:
        if batch is None or params is None:
            raise ValueError(
                "kfac needs params and the batch of the update, as step(grad_fn, kfac(...)) gives "
                "them, got none"
            )
        check_key(key)
        whole = params if all_params is None else with_trained(all_params, params)
        sample_key = jax.random.fold_in(jax.random.key(seed), state.count)

        def seen(curvature: PyTree) -> PyTree:
            start = roots("kfac", samples, sample_key)
            quantity = factors_of(batch, sharing)
            found, loss = with_columns("kfac", objective, quantity, whole, batch, key, start)
            looked = state.count // every + 1
            rest = jnp.minimum(1 - 1 / looked, decay)
            return _map(lambda old, new: _averaged(old, new, loss.weight, rest), curvature, found)

        def inverted(curvature: PyTree) -> PyTree:
            return _map(lambda found: _inverse(found, damping), curvature)

        # No branch where it is always taken: XLA's convolutions on a CPU are slow within one.
        curvature = _every(every, state, seen, state.curvature, state.curvature)
        inverses = _every(inverse_every, state, inverted, curvature, state.inverses)
        steps = _map(_preconditioned, inverses, grads)
        rate = learning_rate(state.count) if callable(learning_rate) else learning_rate
        predicted = sum(
            jnp.vdot(widen(s), widen(g)).astype(jnp.float32)
            for s, g in zip(jax.tree.leaves(steps), jax.tree.leaves(grads), strict=True)
        )
        shorter = jnp.minimum(1, jnp.sqrt(kl_clip / jnp.maximum(rate**2 * predicted, 1e-30)))

        def moving(m: Array, s: Array) -> Array:
            return (momentum * widen(m) - (rate * shorter).astype(s.dtype) * s).astype(m.dtype)

        moved = jax.tree.map(moving, state.momentum, steps)
        return moved, KfacState(state.count + 1, curvature, inverses, moved)

    return optax.GradientTransformationExtraArgs(init, update)  # pyright: ignore


def _every(
    n: int, state: KfacState, function: Callable[[PyTree], PyTree], of: PyTree, old: PyTree
) -> PyTree:
    """`function(of)` at every `n`th update, else what there was."""
    if n == 1:
        return function(of)
    return jax.lax.cond(
        state.count % n == 0, lambda of, old: function(of), lambda of, old: old, of, old
    )


def _is_curvature(node: Any) -> bool:
    return isinstance(node, Factors | Diagonal)


def _map(function: Callable[..., Any], tree: PyTree, *rest: PyTree) -> PyTree:
    """`function` of every layer's curvature and what is in its place of the other trees."""
    return jax.tree.map(function, tree, *rest, is_leaf=_is_curvature)


def _empty(node: Layer, params: Any, lead: int) -> PyTree:
    """`Factors` and `Diagonal`s of zeros in the place of params, with `lead` axes of copies."""
    if is_shared(node):
        return _empty_shared(node, params, lead)
    if not node.children or node.shares:
        known = closed_of(node)
        if not is_trained(trained(params)):
            return trained(params)
        if known is None or known.outer is None:
            return _empty_diagonal(trained(params))
        w, copies = params.w, params.w.shape[:lead]
        dtype = wide_dtype(w.dtype)
        i = math.prod(w.shape[lead:-1]) + (params.b is not None)
        shapes = (*copies, i, i), (*copies, w.shape[-1], w.shape[-1]), copies
        return Factors(*(jnp.zeros(shape, dtype) for shape in shapes))
    lead += node.copies is not None
    each = zip(node.children, node.split(params), strict=True)
    return node.join(params, [_empty(child, own, lead) for child, own in each])


def _empty_shared(node: Layer, params: Any, lead: int) -> PyTree:
    """Of the parts with params of their own, and a `Diagonal` for what is left."""
    leaves = jax.tree.leaves(params)
    copies = leaves[0].shape[:lead] if leaves else ()
    one = jax.tree.map(lambda p: jnp.zeros(p.shape[lead:], p.dtype), params)
    expand = expansion(node)[0]
    of_parts = {p.place: p for p in parts(node.children[0], jax.eval_shape(expand, one))}
    whole, own, others = divided(node, one)
    values = {
        key_of(ids): _empty(of_parts[place].layer, of_parts[place].tree, of_parts[place].lead)
        for place, ids in own.items()
    }
    flat = jax.tree.leaves(one)
    for ids in others:
        values[key_of(ids)] = _empty_diagonal(jax.tree.map(flat.__getitem__, ids))
    found = placed(whole, values, lambda ids: ids)
    return jax.tree.map(lambda z: jnp.zeros((*copies, *z.shape), z.dtype), found)


def _empty_diagonal(params: PyTree) -> Diagonal:
    return Diagonal(jax.tree.map(lambda p: jnp.zeros(p.shape, wide_dtype(p.dtype)), params))


def _averaged(old: Any, new: Any, weight: Any, rest: Any) -> Any:
    """The average of what was seen, each in units in which `kron(a, g)` is of the mean loss."""

    def one(old: Array, new: Array, over: Any) -> Array:
        over = jnp.where(over == 0, 1, over).astype(old.dtype)
        over = over.reshape(*over.shape, *(1,) * (old.ndim - over.ndim))
        kept = rest.astype(old.dtype)
        return kept * old + (1 - kept) * new.astype(old.dtype) / over

    if isinstance(old, Diagonal):
        return Diagonal(jax.tree.map(lambda o, n: one(o, n, weight), old.diagonal, new.diagonal))
    a, g = one(old.a, new.a, new.weight), one(old.g, new.g, weight)
    return Factors(a, g, jnp.ones_like(old.weight))


def _inverse(found: Any, damping: float) -> Any:
    if isinstance(found, Diagonal):
        return Diagonal(jax.tree.map(lambda d: 1 / (d + damping), found.diagonal))
    size_a, size_g = (jnp.trace(m, axis1=-2, axis2=-1) / m.shape[-1] for m in found[:2])
    p = jnp.sqrt(jnp.maximum(size_a, 1e-12) / jnp.maximum(size_g, 1e-12))
    r = damping**0.5
    return Factors(_solved(found.a, r * p), _solved(found.g, r / p), found.weight)


def _solved(m: Float[Array, "*copies n n"], more: Float[Array, "*copies"]) -> Any:
    """The inverse of `m + more I`, which is positive."""
    eye = jnp.broadcast_to(jnp.eye(m.shape[-1], dtype=m.dtype), m.shape)
    root = jnp.linalg.cholesky(m + more[..., None, None] * eye)
    half = jax.lax.linalg.triangular_solve(root, eye, left_side=True, lower=True)
    return jnp.matmul(jnp.swapaxes(half, -1, -2), half, precision=jax.lax.Precision.HIGHEST)


def _preconditioned(inverse: Any, grads: Any) -> Any:
    if isinstance(inverse, Diagonal):
        return jax.tree.map(lambda d, g: d * widen(g), inverse.diagonal, grads)
    copies, (w, b) = inverse.weight.shape, (grads.w, grads.b)
    d = widen(w).reshape(*copies, -1, w.shape[-1])
    if b is not None:
        d = jnp.concatenate([d, widen(b)[..., None, :]], -2)
    d = inverse.a @ d @ inverse.g
    own = d if b is None else d[..., :-1, :]
    return grads._replace(w=own.reshape(w.shape), b=None if b is None else d[..., -1, :])
