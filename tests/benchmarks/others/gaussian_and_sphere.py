"""Calls of tinygp, s2fft, e3nn-jax and kfac-jax."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import e3nn_jax as e3nn
import jax.numpy as jnp
import s2fft
import tinygp
from e3nn_jax._src.utils import einsum

from tests.benchmarks.others import tfp_on_new_jax
from tests.benchmarks.others.call import Calls, Table, array, by, normal, positive

tfp_on_new_jax.restore()
import kfac_jax  # noqa: E402

T = array(0.1, 0.5, 0.9, 1.6)


def _gp(kernel: Any) -> Any:
    def log_probability(_: Any, scale: Any, y: Any) -> Any:
        return tinygp.GaussianProcess(kernel(scale[0]), T, diag=0.1).log_probability(y)

    return log_probability


TINYGP: Calls = {
    "tinygp.kernels": [
        by(_gp(kernel), array(0.8), normal(4))
        for kernel in (
            tinygp.kernels.ExpSquared,
            tinygp.kernels.Matern32,
            tinygp.kernels.Matern52,
            lambda s: tinygp.kernels.RationalQuadratic(s, alpha=1.5),
            lambda s: tinygp.kernels.quasisep.Matern32(s, sigma=1.2),
            lambda s: tinygp.kernels.quasisep.Celerite(1.0, 0.1, s, s),
        )
    ],
}


def _ylm(_: Any, f: Any) -> Any:
    flm = s2fft.forward(f, L=4, method="jax")
    return jnp.real(s2fft.inverse(flm, L=4, method="jax"))


S2FFT: Calls = {
    "s2fft.transforms": [
        by(_ylm, normal(4, 7)),
        by(lambda _, f: jnp.abs(s2fft.forward(f, L=4, method="jax")).sum(), normal(4, 7)),
    ],
}


def _harmonics(normalize: bool) -> Any:
    def harmonics(_: Any, x: Any) -> Any:
        return e3nn.spherical_harmonics([0, 1, 2], e3nn.IrrepsArray("1o", x), normalize).array

    return harmonics


E3NN: Calls = {
    "e3nn.spherical_harmonics": [
        by(_harmonics(False), normal(2, 3)),
        by(_harmonics(True), normal(2, 3)),
        by(
            lambda _, x: e3nn.sh(3, x, False, algorithm=("legendre", "dense", "custom_jvp")),
            normal(3),
        ),
    ],
    "e3nn.operations": [
        by(lambda _, x: e3nn.norm(e3nn.IrrepsArray("1o + 0e", x)).array, normal(2, 4)),
        by(lambda _, x: e3nn.norm(e3nn.IrrepsArray("1o", x)).array, 0 * normal(2, 3)),
        by(lambda _, x: e3nn.gate(e3nn.IrrepsArray("2x0e + 1o", x)).array, normal(2, 5)),
        by(lambda _, x: e3nn.tensor_square(e3nn.IrrepsArray("1o", x)).array, normal(3)),
        by(lambda _, x: e3nn.soft_envelope(x, 2.0), positive(3)),
        by(
            lambda _, x: e3nn.soft_one_hot_linspace(
                x, start=0.0, end=2.0, number=3, basis="smooth_finite", cutoff=True
            ),
            positive(3),
        ),
        by(lambda _, x: e3nn.sus(x), normal(3)),
        by(lambda _, x, y: einsum.einsum("ij,jk->ik", x, y), normal(2, 3), normal(3, 2)),
    ],
}


def _stable_sqrt(_: Any, x: Any) -> Any:
    from kfac_jax._src.utils import math

    return math.stable_sqrt(x)


KFAC: Calls = {
    "kfac_jax.utils": [
        by(_stable_sqrt, positive(3)),
        by(_stable_sqrt, array(0.0, 1e-10, 4.0)),
    ],
}


def tables() -> Iterator[Table]:
    """Four packages."""
    yield Table("tinygp", tinygp, TINYGP, [], {})
    yield Table("s2fft", s2fft, S2FFT, [], {})
    yield Table("e3nn", e3nn, E3NN, [], {})
    yield Table("kfac_jax", kfac_jax, KFAC, [], {})
