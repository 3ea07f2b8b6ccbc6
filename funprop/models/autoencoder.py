"""A convolutional autoencoder for small pictures."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from funprop.combinators import serial
from funprop.layer import Layer, named
from funprop.layers import conv, conv_transpose, dense, flatten, relu, reshape

if TYPE_CHECKING:
    from collections.abc import Sequence


def autoencoder(
    shape: tuple[int, int, int], *, code: int = 32, widths: Sequence[int] = (16, 32)
) -> Layer:
    """Pictures to a few numbers and back: `encoder`, then `decoder`, mirror images of each other.

    The encoder halves space with a convolution and a relu for each width, and ends with a dense
    layer; the decoder begins with one and doubles space with transposed convolutions. Its outputs
    are unbounded.

    Args:
      shape: of a picture, `(h, w, c)`.
      code: how many numbers a picture becomes.
      widths: channels after each convolution of the encoder.

    Shapes: `x [batch, h, w, c]`, or with a picture's numbers in any other shape;
    `y [batch, h, w, c]`. The encoder alone gives `[batch, code]`, with the first of the two params.
    Source: Hinton and Salakhutdinov, Science 313 (2006); convolutions: Masci et al., ICANN (2011).

    Raises:
      ValueError: there are no widths, a number is not positive, or `h` or `w` cannot be halved as
        often as there are widths; or, at init or forward, `x` has more or fewer numbers a picture.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> model, x = autoencoder((8, 8, 1), code=3, widths=(4,)), jnp.zeros((2, 8, 8, 1))
      >>> model
      autoencoder(encoder(reshape, conv, relu, flatten, dense), \
decoder(dense, reshape, relu, conv_transpose))
      >>> params = model.init(jax.random.key(0), x)
      >>> model.children[0].forward(params[0], x)[0].shape, model.forward(params, x)[0].shape
      ((2, 3), (2, 8, 8, 1))
    """
    if not widths:
        raise ValueError("widths must have at least one number, got none")
    h, w, c = shape
    times = 2 ** len(widths)
    if h < 1 or w < 1 or h % times or w % times:
        raise ValueError(f"shape must have h and w that {times} divides, got {tuple(shape)}")
    small = (h // times, w // times, widths[-1])
    steps = list(zip((c, *widths), widths, strict=False))
    down, up = [], []
    for _, wider in steps:
        down += [conv(wider, (3, 3), stride=2), relu()]
    for narrower, _ in reversed(steps):
        up += [relu(), conv_transpose(narrower, (3, 3), stride=2)]
    encoder = serial(reshape(h, w, c), *down, flatten(), dense(code))
    decoder = serial(dense(math.prod(small)), reshape(*small), *up)
    return named("autoencoder", serial(named("encoder", encoder), named("decoder", decoder)))
