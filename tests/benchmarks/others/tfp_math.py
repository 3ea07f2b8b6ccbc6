"""Calls of TensorFlow Probability's JAX substrate: special functions, solves, samples."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp

from tests.benchmarks.others import tfp_on_new_jax
from tests.benchmarks.others.call import Calls, Table, array, by, normal, positive, unit

tfp_on_new_jax.restore()
import tensorflow_probability.substrates.jax as tfp  # noqa: E402
from tensorflow_probability.substrates.jax.math import hypergeometric  # noqa: E402

tfm, tfd = tfp.math, tfp.distributions
P, Q, U = positive(3), positive(3), unit(3)
A = normal(3, 3)


def _call(name: str, *args: Any) -> Any:
    return by(lambda _, *given: getattr(tfm, name)(*given), *args)


def _hpsd(a: Any) -> Any:
    return a @ a.T + jnp.eye(3)


def _linear(name: str, *args: Any) -> Any:
    return by(lambda _, a, *given: getattr(tfm, name)(_hpsd(a), *given), A, *args)


def _sample(make: Any, *params: Any) -> Any:
    return by(lambda _, *given: make(*given).sample(seed=jax.random.PRNGKey(0)), *params)


MATH: Calls = {
    "tfp.math.one": [
        _call(name, x)
        for name, x in (
            ("log_cosh", normal(3)),
            ("dawsn", normal(3)),
            ("erfcx", normal(3)),
            ("lambertw", P),
            ("log1psquare", normal(3)),
            ("softplus_inverse", P),
            ("sqrt1pm1", U),
            ("log_gamma_correction", 8 + P),
        )
    ],
    "tfp.math.two": [
        _call(name, *given)
        for name, given in (
            ("bessel_iv_ratio", (P, Q)),
            ("bessel_ive", (P, Q)),
            ("bessel_kve", (P, Q)),
            ("log_bessel_ive", (P, Q)),
            ("log_bessel_kve", (P, Q)),
            ("betainc", (P, Q, U)),
            ("betaincinv", (P, Q, U)),
            ("igammainv", (P, U)),
            ("igammacinv", (P, U)),
            ("log_gamma_difference", (P, 8 + Q)),
            ("lbeta", (P, Q)),
            ("owens_t", (normal(3), U)),
            ("log_sub_exp", (2 + P, P)),
            ("log_add_exp", (normal(3), normal(3))),
            ("smootherstep", (U,)),
        )
    ],
    "tfp.math.hyp2f1_small_argument": [
        by(lambda _, a, b, c, z: hypergeometric.hyp2f1_small_argument(a, b, c, z), P, Q, 1 + P, U),
    ],
    "tfp.math.linalg": [
        _linear("hpsd_logdet"),
        _linear("hpsd_solve", normal(3, 2)),
        _linear("hpsd_solvevec", normal(3)),
        _linear("hpsd_quadratic_form_solve", normal(3, 2)),
        _linear("hpsd_quadratic_form_solvevec", normal(3)),
    ],
    "tfp.math.ode": [
        by(
            lambda _, y, k: (
                tfm.ode.DormandPrince(rtol=1e-3, atol=1e-4)
                .solve(lambda t, y, k: -k * y, 0.0, y, [1.0], constants={"k": k})
                .states
            ),
            array(1, 2),
            array(0.5),
        ),
    ],
}

DISTRIBUTIONS: Calls = {
    "tfd.samples": [
        _sample(tfd.Gamma, P, Q),
        _sample(tfd.Beta, P, Q),
        _sample(tfd.InverseGaussian, P, Q),
        _sample(tfd.TwoPieceNormal, normal(3), P, Q),
        _sample(tfd.VonMises, normal(3), P),
        _sample(tfd.StudentT, 2 + P, normal(3), Q),
        _sample(tfd.Dirichlet, P),
    ],
    "tfd.cdf": [
        by(lambda _, x, df: tfd.StudentT(df, 0.0, 1.0).cdf(x), normal(3), P),
        by(lambda _, u, df: tfd.StudentT(df, 0.0, 1.0).quantile(u), U, P),
        by(lambda _, x, df, nc: tfd.NoncentralChi2(df, nc).cdf(x), P, P, Q),
        by(lambda _, u, df, nc: tfd.NoncentralChi2(df, nc).quantile(u), U, P, Q),
        by(lambda _, x, k: tfd.VonMises(0.1, k).cdf(x), U, P),
        by(lambda _, x, a: tfd.Gamma(a, 1.0).cdf(x), P, Q),
    ],
    "tfb.bijectors": [
        by(lambda _, x: tfp.bijectors.Softplus()(x), normal(3)),
        by(lambda _, x: tfp.bijectors.Softplus(low=0.3)(x), normal(3)),
        by(lambda _, x: tfp.bijectors.Sigmoid(low=-1.0, high=2.0)(x), normal(3)),
        by(lambda _, x: tfp.bijectors.Sinh().inverse(x), normal(3)),
    ],
    "tfd.mixtures": [
        by(
            lambda _, logits, m: tfd.MixtureSameFamily(
                tfd.Categorical(logits=logits), tfd.Normal(m, 1.0), reparameterize=True
            ).sample(seed=jax.random.PRNGKey(0)),
            normal(3),
            normal(3),
        ),
        by(
            lambda _, a: tfp.experimental.distributions.marginal_fns.retrying_cholesky(_hpsd(a))[0],
            A,
        ),
    ],
    "tfp.kernels": [
        by(
            lambda _, x, s: tfp.math.psd_kernels.MaternThreeHalves(1.0, s[0]).matrix(x, x),
            normal(3, 2),
            array(0.7),
        ),
        by(
            lambda _, x, s: tfp.math.psd_kernels.GeneralizedMatern(0.8, 1.0, s[0]).matrix(x, x + 1),
            normal(3, 2),
            array(0.7),
        ),
    ],
    "tfp.pade": [
        by(
            lambda _, x, name=name: getattr(tfp.experimental.math.manual_special_functions, name)(
                x
            ),
            U,
        )
        for name in ("exp_pade_4_4", "log_pade_4_4", "expm1_pade_4_4", "log1p_pade_4_4")
    ],
}


def tables() -> Iterator[Table]:
    """The mathematics, and the distributions that rest on it."""
    yield Table("tfp", tfp, MATH, [], {})
    yield Table("tfp distributions", tfp, DISTRIBUTIONS, [], {})
