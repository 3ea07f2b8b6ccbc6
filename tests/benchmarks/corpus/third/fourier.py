"""Fourier transforms: spectra, convolutions by them, filters with complex numbers inside."""

import jax.numpy as jnp
import numpy as np

from tests.benchmarks.corpus.third.case import case, floats


def power_spectrum(x):
    return abs(jnp.fft.rfft(x)) ** 2


def power_spectrum_bwd(wrong, args, y, dy):
    (x,) = args
    n = x.shape[-1]
    z = jnp.fft.rfft(x)
    if wrong == "conjugate forgotten":
        z = jnp.conj(z)
    both = jnp.ones(n // 2 + 1).at[1:-1].set(2).astype(dy.dtype)
    g = 2 * dy * z / both
    if wrong == "one-sided bins not halved":
        g = 2 * dy * z
    dx = n * jnp.fft.irfft(g, n)
    if wrong == "length forgotten":
        dx = dx / n
    if wrong == "two forgotten":
        dx = dx / 2
    return (dx,)


def circular_convolution(x, kernel):
    return jnp.fft.irfft(jnp.fft.rfft(x) * jnp.fft.rfft(kernel), x.shape[-1])


def circular_convolution_bwd(wrong, args, y, dy):
    x, kernel = args
    n = x.shape[-1]
    d = jnp.fft.rfft(dy)
    conj = jnp.conj
    if wrong == "conjugate forgotten":
        return jnp.fft.irfft(d * jnp.fft.rfft(kernel), n), jnp.fft.irfft(
            d * conj(jnp.fft.rfft(x)), n
        ).sum(0)
    dx = jnp.fft.irfft(d * conj(jnp.fft.rfft(kernel)), n)
    dkernel = jnp.fft.irfft((d * conj(jnp.fft.rfft(x))), n).sum(0)
    if wrong == "cotangent conjugated for the kernel":
        dkernel = jnp.fft.irfft((conj(d) * jnp.fft.rfft(x)), n).sum(0)
    if wrong == "kernel averaged over the batch":
        dkernel = dkernel / x.shape[0]
    if wrong == "first of the batch only":
        dkernel = jnp.fft.irfft((d * conj(jnp.fft.rfft(x)))[0], n)
    return dx, dkernel


def long_convolution(x, kernel):
    n = x.shape[-1]
    both = jnp.fft.rfft(x, 2 * n) * jnp.fft.rfft(kernel, 2 * n)
    return jnp.fft.irfft(both, 2 * n)[..., :n]


def long_convolution_bwd(wrong, args, y, dy):
    x, kernel = args
    n = x.shape[-1]
    m = n if wrong == "not padded" else 2 * n
    d = jnp.fft.rfft(dy, m)
    dx = jnp.fft.irfft(d * jnp.conj(jnp.fft.rfft(kernel, m)), m)[..., :n]
    dkernel = jnp.fft.irfft(d * jnp.conj(jnp.fft.rfft(x, m)), m)[..., :n]
    if wrong == "second half taken":
        dx = jnp.fft.irfft(d * jnp.conj(jnp.fft.rfft(kernel, m)), m)[..., n:]
    if wrong == "shifted by one":
        dkernel = jnp.roll(dkernel, 1, -1)
    if wrong == "as a convolution forwards":
        dx = jnp.fft.irfft(d * jnp.fft.rfft(kernel, m), m)[..., :n]
    return dx, dkernel


def spectral_filter(x, real, imag):
    return jnp.fft.ifft(jnp.fft.fft(x) * (real + 1j * imag)).real


def spectral_filter_bwd(wrong, args, y, dy):
    x, real, imag = args
    n = x.shape[-1]
    z, g = jnp.fft.fft(x), jnp.fft.fft(dy) / n
    w = real - 1j * imag
    if wrong == "imaginary part forgotten":
        w = real
    if wrong == "filter not conjugated":
        w = real + 1j * imag
    dx = jnp.fft.ifft(jnp.fft.fft(dy) * w).real
    dw = jnp.conj(z) * g
    dreal, dimag = dw.real, dw.imag
    if wrong == "sign of imag":
        dimag = -dimag
    if wrong == "length forgotten":
        dreal, dimag = n * dreal, n * dimag
    return dx, dreal, dimag


def dct(x):
    n = x.shape[-1]
    return x @ cosines(n).astype(x.dtype)


def cosines(n):
    k = np.arange(n)
    return jnp.asarray(2 * np.cos(np.pi * (2 * k[:, None] + 1) * k / (2 * n)))


def dct_bwd(wrong, args, y, dy):
    n = dy.shape[-1]
    c = cosines(n).astype(dy.dtype)
    if wrong == "not transposed":
        return (dy @ c,)
    if wrong == "inverse for the transpose":
        return (dy @ jnp.linalg.inv(c),)
    if wrong == "first coefficient halved":
        return ((dy * jnp.ones(n).at[0].set(0.5)) @ c.T,)
    return (dy @ c.T,)


def phase_rotation(angle, amplitude):
    z = amplitude * jnp.exp(1j * angle)
    return jnp.stack([z.real, z.imag], -1)


def phase_rotation_bwd(wrong, args, y, dy):
    angle, amplitude = args
    c, s = jnp.cos(angle), jnp.sin(angle)
    dangle = amplitude * (c * dy[..., 1] - s * dy[..., 0])
    damplitude = c * dy[..., 0] + s * dy[..., 1]
    if wrong == "sign in the angle":
        dangle = amplitude * (c * dy[..., 1] + s * dy[..., 0])
    if wrong == "amplitude forgotten":
        dangle = dangle / amplitude
    if wrong == "imaginary part forgotten":
        damplitude = c * dy[..., 0]
    return dangle, damplitude


CASES = [
    case(power_spectrum, power_spectrum_bwd, floats((2, 8)),
        ("conjugate forgotten", "x", "conjugate"), ("one-sided bins not halved", "x", "factor of some"),
        ("length forgotten", "x", "factor 1/n"), ("two forgotten", "x", "factor 1/2")),
    case(circular_convolution, circular_convolution_bwd, floats((3, 8), (8,)),
        ("conjugate forgotten", "x", "conjugate: convolution for correlation"),
        ("cotangent conjugated for the kernel", "kernel", "time turned round"),
        ("kernel averaged over the batch", "kernel", "factor 1/batch"),
        ("first of the batch only", "kernel", "sum over batch forgotten")),
    case(long_convolution, long_convolution_bwd, floats((6,), (6,)),
        ("not padded", "x kernel", "wraps round"), ("second half taken", "x", "wrong part"),
        ("shifted by one", "kernel", "off by one"), ("as a convolution forwards", "x", "conjugate forgotten")),
    case(spectral_filter, spectral_filter_bwd, floats((8,), (8,), (8,)),
        ("imaginary part forgotten", "x", "term forgotten"), ("filter not conjugated", "x", "conjugate"),
        ("sign of imag", "imag", "sign"), ("length forgotten", "real imag", "factor n")),
    case(dct, dct_bwd, floats((2, 6)),
        ("not transposed", "x", "transpose forgotten"), ("inverse for the transpose", "x", "inverse"),
        ("first coefficient halved", "x", "factor of a part")),
    case(phase_rotation, phase_rotation_bwd, floats((5,), (5,)),
        ("sign in the angle", "angle", "sign of a term"), ("amplitude forgotten", "angle", "factor forgotten"),
        ("imaginary part forgotten", "amplitude", "term forgotten")),
]  # fmt: skip
