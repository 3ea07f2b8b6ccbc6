"""Calls of `jax.scipy.special`."""

from __future__ import annotations

import jax
import jax.scipy.special as special
import numpy as np

from tests.benchmarks.others.call import (
    POINTS,
    Calls,
    Table,
    array,
    at,
    by,
    every,
    normal,
    positive,
    unit,
)
from tests.benchmarks.others.names import functions

X, P, Q, U, V = normal(3, 4), positive(3, 4), positive(3, 4), unit(3, 4), unit(3, 4)
SMALL = array(-3, -1, -0.3, -1e-3, 0, 1e-3, 0.3, 1, 3)
PLUS = array(1e-3, 0.1, 0.5, 1, 1.5, 2, 4, 8, 20)
EDGES = array(0.01, 0.1, 0.4, 0.5, 0.9, 0.99)
ZEROS = array(0, 0, 0.5, 2), array(0.5, 2, 0.5, 2)

CALLS: Calls = {
    **every("erf erfc erfcx i0 i0e i1 i1e ndtr expit", at(SMALL), at(X), at(POINTS[1:-1])),
    **every("digamma gamma gammaln loggamma gammasgn factorial exp1 entr", at(PLUS), at(P)),
    **every("dawsn fresnel sici", at(SMALL), at(array(-20, -8, -4.5, 4.5, 8, 20))),
    **every("beta betaln rel_entr kl_div gammainc gammaincc boxcox boxcox1p", at(P, Q)),
    **every("xlogy", at(P, Q), at(*ZEROS), at(array(-1, 0, 2), array(1, 1, 1))),
    **every("xlog1py", at(P, Q), at(*ZEROS), at(array(-1, 0, 2), array(0, 0, 0))),
    "bernoulli": [by(lambda f: f(5))],
    "bessel_jn": [by(lambda f, z: f(z, v=3), P)],
    "betainc": [at(P, Q, U)],
    "comb": [at(array(5, 6.5), array(2, 3))],
    "entr": [at(PLUS), at(P), at(array(0, 1))],
    "erfinv": [at(array(-0.9, -0.5, 0, 0.5, 0.9)), at(U)],
    "expi": [at(PLUS), at(P), at(-P), at(array(-20, -4, -1, -0.1, 0.1, 1, 4, 20, 60))],
    "expn": [by(lambda f, x, n=n: f(n, x), PLUS) for n in (1, 2, 3, 7)]
    + [by(lambda f, x: f(np.array([0, 1, 2, 3]), x), P), at(np.array([1, 2, 3, 9]), P)],
    "exp1": [at(PLUS), at(P)],
    "gamma": [at(PLUS), at(P), at(array(-2.5, -1.3, -0.5))],
    "hyp1f1": [
        at(P, Q, X),
        at(array(1, 2, 0.5), array(2, 2, 1.5), array(0, 1, -1)),
        at(P, Q, 8 * X),
    ],
    "hyp2f1": [
        at(U, V, 1 + P, U),
        at(array(1, 2, 0.5), array(1, 1, 0.5), array(2, 3, 1.5), array(0.0, 0.3, -0.5)),
        at(P, Q, 1 + P + Q, -U),
    ],
    "log_ndtr": [
        at(POINTS[1:-1]),
        at(X),
        at(array(-200, -30, -20, -15, -5, -4.9, 4.9, 5, 8, 20)),
        at(X, series_order=1),
        at(4 * X, series_order=5),
    ],
    "log_softmax": [at(X)],
    "logit": [at(EDGES), at(U), at(array(1e-6, 1 - 1e-6))],
    "logsumexp": [at(X)],
    "multigammaln": [at(2 + P, d=3)],
    "ndtri": [at(EDGES), at(U)],
    "owens_t": [
        at(X, normal(3, 4)),
        at(array(0, 0, 1, -1, 2), array(0, 2, 0, 1, -1)),
        at(4 * X, X),
    ],
    "poch": [at(P, Q), at(array(1, 2, 3, 0.5), array(0, 1, 2, -0.2)), at(array(-0.5), array(1.3))],
    "polygamma": [at(np.array([0, 1, 2, 3]), P), at(np.array([1, 2, 3]), array(0.5, 1, 4))],
    "softmax": [at(X)],
    "spence": [at(PLUS), at(P), at(array(0, 1))],
    "sph_harm_y": [
        by(
            lambda f, t, p: f(np.array([2]), np.array([1]), t, p, n_max=2).real,
            U[0, :1],
            V[0, :1],
        )
    ],
    "wofz": [by(lambda f, x, y: f(jax.lax.complex(x, y)).real, X, P)],
    "zeta": [at(1.5 + P, Q), at(array(1.1, 2, 3, 10), array(1, 1, 0.5, 3))],
}


def tables() -> list[Table]:
    """The one table of this file."""
    return [Table("jax.scipy.special", special, CALLS, functions(special), {})]
