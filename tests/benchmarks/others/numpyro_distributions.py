"""Calls of numpyro: densities, distribution functions and their inverses."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import numpyro
import numpyro.distributions as dist
from numpyro.distributions import util

from tests.benchmarks.others.call import Calls, Table, array, by, normal, positive

POWERS = [(-2.3, 1.0, 4.0), (-1.0, 1.3, 4.0), (0.5, 1.0, 3.0)]


def _power(method: str) -> Any:
    def value(_: Any, x: Any, alpha: Any, low: Any, high: Any) -> Any:
        return getattr(dist.DoublyTruncatedPowerLaw(alpha, low, high), method)(x)

    return value


def _at(x: float, *params: float) -> tuple[Any, ...]:
    return tuple(map(array, (x, *params)))


CALLS: Calls = {
    "numpyro.DoublyTruncatedPowerLaw": [
        by(_power(method), *_at(x, *powers))
        for method, x in (("log_prob", 1.5), ("icdf", 0.2), ("cdf", 1.5))
        for powers in POWERS
    ]
    + [by(_power("cdf"), *_at(1.1, -1.0, 1.3, 4.0))],
    "numpyro.LowerTruncatedPowerLaw": [
        by(lambda _, x, a, low: dist.LowerTruncatedPowerLaw(a, low).log_prob(x), *_at(2, -2.3, 1)),
    ],
    "numpyro.util": [
        by(lambda _, x: util.log1mexp(x), array(-5, -1, -0.69, -0.1, -1e-3)),
        by(lambda _, x: util.logmatmulexp(x, x.T), normal(2, 3)),
    ],
    "numpyro.sample": [
        by(lambda _, a: dist.Gamma(a, 2.0).sample(jax.random.key(0)), positive(3)),
        by(lambda _, a: dist.Dirichlet(a).sample(jax.random.key(0)), positive(3)),
        by(lambda _, a: dist.StudentT(3 + a, 0.0, a).sample(jax.random.key(0)), positive(3)),
        by(lambda _, a: dist.Beta(a, 2.0).sample(jax.random.key(0)), positive(3)),
        by(lambda _, a: dist.VonMises(0.3, a).log_prob(0.5 * a), positive(3)),
    ],
    "numpyro.truncated": [
        by(lambda _, a: dist.TruncatedNormal(a, 1.0, low=-1.0, high=2.0).log_prob(1.0), array(0.3)),
        by(lambda _, a: dist.TruncatedCauchy(a, 1.0, low=-1.0).log_prob(1.0), array(0.3)),
    ],
    "numpyro.log_prob": [
        by(lambda _, x, a: dist.BetaBinomial(a, a + 1, 5).log_prob(2), normal(2), positive(2)),
        by(lambda _, x: dist.NegativeBinomial2(x, 2.0).log_prob(3), positive(2)),
        by(lambda _, x: dist.Categorical(logits=x).log_prob(1), normal(4)),
        by(lambda _, x: dist.OrderedLogistic(x, array(-1, 0.5)).log_prob(1), normal(2)),
        by(lambda _, c: dist.LKJCholesky(3, c[0]).sample(jax.random.key(0)), positive(1)),
    ],
}


def tables() -> Iterator[Table]:
    """One table."""
    yield Table("numpyro", numpyro, CALLS, [], {})
