"""docs/how-to/private-training.md: its epsilon is that of the mechanism that it runs."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import funprop as fp
from tests.test_docs import blocks


def by_formula(q, noise, updates, delta, orders=range(2, 257)):
    """Mironov, Talwar and Zhang, arXiv:1908.10530, section 3.3, for whole orders; to epsilon by
    Canonne, Kamath and Steinke, arXiv:2004.00010, proposition 12."""
    found = []
    for a in orders:
        terms = [
            math.lgamma(a + 1)
            - math.lgamma(k + 1)
            - math.lgamma(a - k + 1)
            + k * math.log(q)
            + (a - k) * math.log1p(-q)
            + (k * k - k) / (2 * noise**2)
            for k in range(a + 1)
        ]
        renyi = np.logaddexp.reduce(terms) / (a - 1)
        found.append(updates * renyi + math.log1p(-1 / a) - math.log(delta * a) / (a - 1))
    return min(found)


@pytest.mark.slow
@pytest.mark.parametrize("case", [(60_000, 256, 1.1, 14_062, 1e-5), (2_000, 100, 1.1, 60, 1e-5)])
def test_the_epsilon_of_the_page(case):
    pytest.importorskip("dp_accounting")
    names = {}
    exec(blocks("how-to/private-training")[0]["code"], names)
    n, expected, noise, updates, delta = case
    # The accountant knows orders between the whole ones too, and fewer of the large.
    formula = by_formula(expected / n, noise, updates, delta)
    assert names["epsilon"](n, expected, noise, updates, delta) == pytest.approx(formula, rel=0.02)


def test_padding_of_weight_zero_is_no_example():
    """A padded batch of the page has the gradient of its examples, however padded."""
    x = jax.random.normal(jax.random.key(0), (6, 4))
    y = jnp.arange(6) % 3
    objective = fp.objective(fp.mlp(5, 3), fp.softmax_cross_entropy())
    params = objective.init(jax.random.key(1), (x, y))
    clipped = jax.jit(fp.clip_per_example(objective, 0.5))
    rows, weights = jnp.array([1, 3, 4, 0, 0]), jnp.array([1.0, 1, 1, 0, 0])
    padded = clipped(params, (x[rows], y[rows], weights))
    alone = clipped(params, (x[rows[:3]], y[rows[:3]], weights[:3]))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), padded.grads, alone.grads
    )
    assert padded.weight == 3
