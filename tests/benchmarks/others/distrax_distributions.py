"""Calls of distrax."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax

from tests.benchmarks.others import tfp_on_new_jax
from tests.benchmarks.others.call import Calls, Table, array, by, normal, positive

tfp_on_new_jax.restore()
import distrax  # noqa: E402
from distrax._src.utils import math  # noqa: E402

KEY = 0


def _sample(make: Any) -> Any:
    return lambda _, *params: make(*params).sample(seed=jax.random.key(KEY))


CALLS: Calls = {
    "distrax.math": [
        by(lambda _, x, y: math.multiply_no_nan(x, y), array(1, 0, 2), array(2, 0, 0)),
        by(lambda _, x, y: math.power_no_nan(x, y), array(1.5, 0.0, 2.0), array(2.0, 2.0, 0.0)),
        by(lambda _, x, y: math.mul_exp(x, y), normal(3), normal(3)),
    ],
    "distrax.VonMises": [
        by(_sample(distrax.VonMises), array(0.3), array(2.0)),
        by(lambda _, x, m, k: distrax.VonMises(m, k).cdf(x), array(0.5), array(0.3), array(2.0)),
        by(lambda _, x, m, k: distrax.VonMises(m, k).cdf(x), array(0.5), array(0.3), array(20.0)),
        by(lambda _, x, m, k: distrax.VonMises(m, k).log_prob(x), *map(array, (0.5, 0.3, 2.0))),
        by(lambda _, m, k: distrax.VonMises(m, k).entropy(), array(0.3), array(2.0)),
    ],
    "distrax.samples": [
        by(_sample(distrax.Gamma), positive(3), positive(3)),
        by(_sample(distrax.Beta), positive(3), positive(3)),
        by(_sample(distrax.Dirichlet), positive(3)),
        by(_sample(distrax.Gumbel), normal(3), positive(3)),
    ],
    "distrax.log_prob": [
        by(lambda _, p: distrax.Categorical(probs=p).log_prob(1), array(0.2, 0.5, 0.3)),
        by(lambda _, p: distrax.Categorical(probs=p).entropy(), array(0.0, 0.6, 0.4)),
        by(lambda _, p: distrax.Bernoulli(probs=p).entropy(), array(0.2, 1.0, 0.0)),
        by(lambda _, p: distrax.Multinomial(4, probs=p).log_prob(array(1, 3, 0)), positive(3)),
        by(lambda _, x: distrax.Logistic(0.0, 1.0).cdf(x), normal(3)),
        by(lambda _, x: distrax.Softmax(x).log_prob(0), normal(3)),
    ],
    "distrax.bijectors": [
        by(lambda _, x: distrax.Tanh().forward_and_log_det(x), normal(3)),
        by(lambda _, x: distrax.Sigmoid().forward_and_log_det(x), normal(3)),
        by(lambda _, x, p: _spline(x, p), array(0.2, -0.4), normal(10)),
    ],
}


def _spline(x: Any, params: Any) -> Any:
    spline = distrax.RationalQuadraticSpline(params, range_min=-1.0, range_max=1.0)
    return spline.forward_and_log_det(x)


def tables() -> Iterator[Table]:
    """One table."""
    yield Table("distrax", distrax, CALLS, [], {})
