"""A normal distribution of the params around those that training found: Laplace's approximation."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from funprop.arguments import check_given
from funprop.as_function import as_function
from funprop.checks import check_string, described, require_key
from funprop.jitted import Jitted
from funprop.layer import Layer, check_layer
from funprop.params.frozen import trained, with_trained
from funprop.params.selection import Pattern, where
from funprop.quantities.columns import check_objective, with_columns
from funprop.quantities.ggn import DIAGONAL, Diagonal, factors_of, roots
from funprop.quantities.outer import Factors
from funprop.trees import add, widen
from funprop.values import FINITE, number_within, whole_number

if TYPE_CHECKING:
    from funprop.typing import Array, Float, PyTree


@dataclasses.dataclass(frozen=True)
class Posterior:
    """What `laplace` finds: `N(params, (scale GGN + prior_precision I)^-1)`, block by block.

    Attributes:
      params: the mean.
      curvature: in the place of each layer's params, an `Eigen` or a `Diagonal`, or `Fixed`.
      loss: the sum of the losses at `params`.
      scale: how often the loss counts as a negative log likelihood.
      prior_precision: one over the variance of every param before the data; another one is a
        `dataclasses.replace` away.
    """

    params: Any
    curvature: Any
    loss: Any
    scale: Any
    prior_precision: Any

    def sample(self, key: Any) -> PyTree:
        """Params drawn from it; those that it is not of are as they are."""
        require_key(key)
        return with_trained(self.params, add(trained(self.params), self._deviations(key)))

    def outputs(self, model: Layer, x: PyTree, key: Any, *, samples: int = 100) -> Array:
        """`[samples, *outputs]` of the model at params drawn from it, the model being *linear* in
        them around the mean: the predictions that go with this approximation (Immer et al.,
        arXiv:2008.08400). Their variance is the model's own uncertainty; the mean over `softmax` of
        them is a calibrated prediction of classes.

        Raises:
          TypeError: `model` is no layer, or the key no random key.
          ValueError: `samples` is not positive.
        """
        check_layer("model", model)
        samples = whole_number(samples, "samples", 1)
        own, function = trained(self.params), as_function(model)
        require_key(key)
        keys = jax.random.split(key, samples)
        y, forward = jax.linearize(lambda p: function(with_trained(self.params, p), x), own)
        return jax.lax.map(lambda key: y + forward(self._deviations(key)), keys)

    def log_evidence(self) -> Float[Array, ""]:
        """The log of the data's probability under this prior, up to a constant of the likelihood:
        the best `prior_precision` is where it is largest. No data is held out for that.
        Source: MacKay, Neural Computation 4 (1992)."""
        total = -self.scale * self.loss
        for found, own in self._parts():
            size = sum(jnp.vdot(widen(p), widen(p)) for p in jax.tree.leaves(own))
            values = jax.tree.leaves(_eigenvalues(found))
            shares = sum(jnp.log1p(self.scale * v / self.prior_precision).sum() for v in values)
            total = total - (self.prior_precision * size + shares) / 2
        return total

    def _parts(self) -> list[tuple[Any, Any]]:
        """Every layer's curvature, with its params."""
        parts: list[tuple[Any, Any]] = []

        def note(found: Any, own: Any) -> None:
            if not isinstance(found, Fixed):
                parts.append((found, own))

        jax.tree.map(note, self.curvature, trained(self.params), is_leaf=_is_part)
        return parts

    def _deviations(self, key: Any) -> PyTree:
        own = trained(self.params)
        count = len(jax.tree.leaves(self.curvature, is_leaf=_is_part))
        keys = iter(jax.random.split(key, max(count, 1)))

        def draw(found: Any, own: Any) -> Any:
            return self._deviation(found, own, next(keys))

        return jax.tree.map(draw, self.curvature, own, is_leaf=_is_part)

    def _deviation(self, found: Any, own: Any, key: Any) -> Any:
        if isinstance(found, Fixed):
            return jax.tree.map(jnp.zeros_like, own)
        leaves, tree = jax.tree.flatten(_eigenvalues(found))
        keys = jax.random.split(key, len(leaves))
        drawn = tree.unflatten(
            jax.random.normal(k, v.shape, v.dtype)
            / jnp.sqrt(self.scale * v + self.prior_precision).astype(v.dtype)
            for k, v in zip(keys, leaves, strict=True)
        )
        if isinstance(found, Diagonal):
            return jax.tree.map(lambda d, p: d.astype(p.dtype), drawn, own)
        d = found.u @ drawn @ jnp.swapaxes(found.v, -1, -2)
        w = (d if own.b is None else d[..., :-1, :]).reshape(own.w.shape).astype(own.w.dtype)
        return own._replace(w=w, b=None if own.b is None else d[..., -1, :].astype(own.b.dtype))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Eigen:
    """A layer's curvature `kron(a, g) / weight`: its eigenvalues `[i, o]`, and the eigenvectors `u`
    of `a` and `v` of `g`."""

    u: Any
    v: Any
    values: Any


class Fixed:
    """In the place of a layer's params that the distribution is not of."""


def laplace(
    objective: Layer,
    params: PyTree,
    batches: Iterable[PyTree],
    *,
    structure: str = "kronecker",
    pattern: Pattern | None = None,
    prior_precision: float = 1.0,
    scale: float = 1.0,
) -> Posterior:
    """Laplace's approximation of the posterior of a trained model, from its Gauss-Newton matrix.

    Args:
      objective: a model and a loss that says its Hessian (see `ggn_diagonal`).
      params: after training.
      batches: of the data, each once; the curvature is summed over them.
      structure: "kronecker" for the factors of `kfac_factors`, exact ones, with a diagonal for
        layers that have none, or "diagonal".
      pattern: names of the layers that it is of, as of `where`: `"dense_1"` for the last one alone;
        all if not given.
      prior_precision: one over the variance of every param before the data.
      scale: how often the loss counts as a negative log likelihood: once for a cross-entropy; for
        `mean_squared` with noise of deviation `s`, `1 / (2 s^2)`.

    Source: MacKay, Neural Computation 4 (1992); Ritter et al., ICLR 2018; Daxberger et al.,
    arXiv:2106.14806.

    Raises:
      TypeError: `objective` is no layer.
      ValueError: `structure` is neither; a number is not positive and finite; there are no batches;
        the pattern matches nothing, or a part of a layer with factors; or as `ggn_diagonal`.

    Example:
      >>> import funprop as fp
      >>> line = fp.objective(fp.dense(1, bias=False), fp.mean_squared())
      >>> params = fp.DenseParams(jnp.array([[2.0]]), None)
      >>> data = jnp.array([[1.0], [2.0]]), jnp.array([[2.0], [4.0]])
      >>> found = laplace(line, params, [data])
      >>> drawn = found.outputs(fp.dense(1, bias=False), jnp.ones((1, 1)), jax.random.key(0))
      >>> drawn.shape, 0.2 < float(drawn.std()) < 0.4  # one over the root of 10 + 1
      ((100, 1, 1), True)
    """
    check_objective(objective)
    check_string("structure", structure)
    if structure not in ("kronecker", "diagonal"):
        raise ValueError(f'structure must be "kronecker" or "diagonal", got {described(structure)}')
    given = {"prior_precision": prior_precision, "scale": scale}
    tau, scale = (number_within(n, name, *FINITE) for name, n in given.items())
    mask = None if pattern is None else where(pattern, trained(params))

    @Jitted
    def of_batch(params: PyTree, batch: PyTree) -> tuple[PyTree, Any]:
        quantity = DIAGONAL if structure == "diagonal" else factors_of(batch, "expand")
        start = roots("laplace", None, None)
        found, loss = with_columns("laplace", objective, quantity, params, batch, None, start)
        return found, loss.total

    total = None
    if not isinstance(batches, Iterable) or isinstance(batches, str | bytes | jax.Array):
        raise TypeError(f"batches must be a list or an iterator of them, got {described(batches)}")
    for batch in batches:
        check_given(batch, None, None)
        new = of_batch(params, batch)
        total = new if total is None else add(total, new)
    if total is None:
        raise ValueError("batches must hold at least one batch, got none")
    masks = () if mask is None else (mask,)
    curvature = jax.tree.map(_of_part, total[0], *masks, is_leaf=_is_part)
    return Posterior(params, curvature, total[1], scale, tau)


def _of_part(found: Any, mask: Any = True) -> Any:
    chosen = jax.tree.leaves(mask)
    if not any(chosen):
        return Fixed()
    if not all(chosen):
        raise ValueError("pattern must mean whole layers, got one that means a part of one")
    if isinstance(found, Diagonal):
        return found
    (a, u), (g, v) = (jnp.linalg.eigh(m) for m in (found.a, found.g))
    weight = jnp.where(found.weight == 0, 1, found.weight)  # of nothing, both factors are zero
    values = a[..., :, None] * g[..., None, :] / weight[..., None, None]
    return Eigen(u, v, jnp.maximum(values, 0))


def _is_part(node: Any) -> bool:
    return isinstance(node, Factors | Diagonal | Eigen | Fixed)


def _eigenvalues(found: Any) -> PyTree:
    return found.values if isinstance(found, Eigen) else found.diagonal
