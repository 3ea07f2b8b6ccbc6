"""The generalised Gauss-Newton matrix by layer: its diagonal, and its Kronecker factors.

`J^T H J` with the outputs' Jacobian `J` and the loss's Hessian `H` in them. `H = sum_c s_c s_c^T`,
so it is `sum_c g_c g_c^T` with `g_c = J^T s_c`, example by example: a backward pass at the
cotangents `s_c`. For labels drawn from what the outputs say, one cotangent does so in expectation:
this is the Fisher matrix, which for these losses is the Gauss-Newton matrix.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp

from funprop.checks import check_key, check_string, described
from funprop.layer import Layer
from funprop.quantities.closed_form import squares_over_first
from funprop.quantities.columns import Quantity, Start, check_objective, with_columns
from funprop.quantities.curvature import curvature_of
from funprop.quantities.outer import Factors, factors, second_moment
from funprop.trees import Sum, wide_dtype, widen
from funprop.values import whole_number

if TYPE_CHECKING:
    from funprop.typing import Array, Float, PyTree


def ggn_diagonal(objective: Layer, *, samples: int | None = None) -> Callable[..., PyTree]:
    """The diagonal of the generalised Gauss-Newton matrix, of the batch's sum.

    Exact, by a backward pass of as many cotangents as an example has outputs (classes, or with one
    term at every place, places times classes); or by `samples` of them, at labels drawn from what
    the outputs say: the diagonal of the Fisher matrix, without bias. That costs about as much as
    the gradient, for each sample.

    Args:
      objective: a model and a loss that says its Hessian: `softmax_cross_entropy`,
        `binary_cross_entropy`, `mean_squared`, or `linear_cross_entropy` without `z_loss`, whose
        outputs are its logits: all of them are made.
      samples: how many labels to draw for each term; exact if not given.

    Returns:
      `(params, batch, key=None, *, sample_key=None) -> diagonal`, like the gradient. `key` is the
      model's (for dropout), `sample_key` the one to draw labels from.

    Source: Dangel et al., arXiv:1912.10985 (BackPACK); Schraudolph, Neural Computation 14 (2002).

    Raises:
      TypeError: `objective` is no layer, or gives no `Sum`.
      ValueError: `samples` is not positive; or, when called, the loss does not say its Hessian,
        there are samples and no `sample_key`, or there is a key and a layer mixes examples
        (`batch_norm`).

    Example:
      >>> import funprop as fp
      >>> line = fp.objective(fp.dense(1, bias=False), fp.mean_squared())
      >>> params = fp.DenseParams(jnp.array([[1.0]]), None)
      >>> batch = jnp.array([[1.0], [2.0]]), jnp.array([[2.0], [4.0]])
      >>> round(float(ggn_diagonal(line)(params, batch).w[0, 0]), 4)  # 2 x^2, summed
      10.0
    """
    check_objective(objective)
    samples = None if samples is None else whole_number(samples, "samples", 1)
    quantity = Quantity(second_moment, _squares)

    def diagonal(
        params: PyTree, batch: PyTree, key: Any = None, *, sample_key: Any = None
    ) -> PyTree:
        start = roots("ggn_diagonal", samples, sample_key)
        return with_columns("ggn_diagonal", objective, quantity, params, batch, key, start)[0]

    return diagonal


class Diagonal(NamedTuple):
    """The diagonal of a layer's block of the Gauss-Newton matrix, in the place of its params.

    Attributes:
      diagonal: like the params.
    """

    diagonal: Any


def kfac_factors(
    objective: Layer, *, samples: int | None = 1, sharing: str = "expand"
) -> Callable[..., PyTree]:
    """The Kronecker factors of every layer's block of the Gauss-Newton matrix (K-FAC).

    Of a layer that is affine at each place, a dense layer (attention's projections are some) or a
    convolution (of its patches), `Factors`; of all others (norms, tables, recurrences, params that
    are used more than once), the `Diagonal` of their block, exactly or by the same samples.

    Args:
      objective: as of `ggn_diagonal`.
      samples: as of `ggn_diagonal`; exact with `None`.
      sharing: of a layer that is used at many places (time, space): "expand" takes each place by
        itself, "reduce" the mean of its inputs and the sum of its cotangents.

    Returns:
      `(params, batch, key=None, *, sample_key=None) -> found`, like params with `Factors` or
      `Diagonal` in the place of every layer's; within a `repeat`, each with an axis of copies in
      front. Sums over the batch, which add up over batches.

    Source: Martens and Grosse, arXiv:1503.05671; Grosse and Martens, arXiv:1602.01407;
    Eschenhagen et al., arXiv:2311.00636.

    Raises:
      TypeError, ValueError: as `ggn_diagonal`; `sharing` is neither.

    Example:
      >>> import funprop as fp
      >>> line = fp.objective(fp.dense(1), fp.mean_squared())
      >>> params = fp.DenseParams(jnp.array([[1.0]]), jnp.zeros(1))
      >>> batch = jnp.array([[1.0], [2.0]]), jnp.array([[2.0], [4.0]])
      >>> a, g, weight = kfac_factors(line, samples=None)(params, batch)
      >>> a.tolist(), g.round(3).tolist(), float(weight)
      ([[5.0, 3.0], [3.0, 2.0]], [[4.0]], 2.0)
    """
    check_objective(objective)
    samples = None if samples is None else whole_number(samples, "samples", 1)
    check_sharing(sharing)

    def found(params: PyTree, batch: PyTree, key: Any = None, *, sample_key: Any = None) -> PyTree:
        start = roots("kfac_factors", samples, sample_key)
        quantity = factors_of(batch, sharing)
        return with_columns("kfac_factors", objective, quantity, params, batch, key, start)[0]

    return found


def check_sharing(sharing: Any) -> None:
    """Raise where `sharing` is none that `kfac_factors` knows."""
    check_string("sharing", sharing)
    if sharing not in ("expand", "reduce"):
        raise ValueError(f'sharing must be "expand" or "reduce", got {described(sharing)}')


def factors_of(batch: PyTree, sharing: str) -> Quantity:
    """`Factors`, or a `Diagonal`, in the place of params."""

    def closed(params: Any, rows: Any, d: Any, moment: Any = None) -> Factors:
        return factors(params, rows, d, _weights(batch, rows), sharing, moment)

    return Quantity(closed, _in_place(_squares), closed)


def roots(who: str, samples: int | None, sample_key: Any) -> Start:
    """What starts the columns of a square root of the loss's Hessian.

    Raises:
      ValueError: there are samples, and no key to draw them from.
    """
    check_key(sample_key)
    if samples is not None and sample_key is None:
        raise ValueError(f"{who} needs sample_key to draw labels from, got none")

    def start(loss: Layer, residuals: PyTree, dy: Sum) -> PyTree:
        known = curvature_of(loss)
        if known is None:
            raise ValueError(
                f"{who} needs a loss that says its Hessian, as softmax_cross_entropy, "
                "binary_cross_entropy and mean_squared do with their own backward, got "
                f"{loss.name}"
            )
        if samples is None:
            columns = known.root(residuals, dy)
        else:
            keys = jax.random.split(sample_key, samples)
            drawn = [known.sampled(residuals, dy, key) for key in keys]
            columns = jnp.stack(drawn) / samples**0.5
        _, *others = loss.backward((), residuals, dy)[1]  # of targets and weights: none of these
        none = [jnp.zeros((len(columns), *d.shape), d.dtype) for d in jax.tree.leaves(others)]
        return columns, *jax.tree.unflatten(jax.tree.structure(others), none)

    return start


def _squares(params: Any, grads: PyTree) -> PyTree:
    return jax.tree.map(lambda g: squares_over_first(widen(g)), grads)


def _in_place(found: Callable[..., PyTree]) -> Callable[..., Diagonal]:
    return lambda *given: Diagonal(found(*given))


DIAGONAL = Quantity(_in_place(second_moment), _in_place(_squares))


def _weights(batch: Any, rows: Any) -> Float[Array, " b"] | None:
    """The weight of every example, if they have any: the mean of those of its places."""
    if not isinstance(batch, tuple) or len(batch) != 3:
        return None
    own = jnp.asarray(batch[2]).astype(wide_dtype(rows.dtype))
    return own.mean(tuple(range(1, own.ndim)))
