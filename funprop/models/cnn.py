"""A small residual network for pictures."""

from __future__ import annotations

from typing import TYPE_CHECKING

from funprop.combinators import parallel, repeat, residual, serial
from funprop.layer import Layer, named
from funprop.layers import add, conv, dense, global_average_pool, group_norm, relu
from funprop.values import whole_number

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


def cnn(
    classes: int,
    *,
    widths: Sequence[int] = (16, 32, 64),
    blocks: int = 1,
    norm: Callable[[], Layer] = lambda: group_norm(8),
) -> Layer:
    """A residual network with normalisation in front, from pictures to logits.

    A convolution; a stage for each width, which halves space but for the first; normalisation,
    relu, the mean over space, and a dense layer. A branch of a block is twice normalisation, relu
    and a convolution; no convolution of a branch has a bias, as a normalisation follows or a sum.

    Args:
      classes: how many logits.
      widths: channels of each stage.
      blocks: of a stage; those after its first are one block repeated under a scan.
      norm: makes each normalisation: `batch_norm`, or `group_norm` with a number of groups that
        divides every width.

    Shapes: `x [batch, h, w, c]`, `y [batch, classes]`.
    Source: He et al., arXiv:1603.05027 (figure 1b: "full pre-activation").

    Raises:
      ValueError: there are no widths, or a number is not positive; or, at init or forward, `x` is
        not `[batch, h, w, c]`.

    Example:
      >>> import jax, jax.numpy as jnp, funprop as fp
      >>> model = cnn(10, widths=(4, 8), norm=fp.batch_norm)
      >>> params = model.init(jax.random.key(0), jnp.zeros((2, 8, 8, 1)))
      >>> model.forward(params, jnp.zeros((2, 8, 8, 1)))[0].shape
      (2, 10)
    """
    if not widths:
        raise ValueError("widths must have at least one number, got none")
    blocks = whole_number(blocks, "blocks", 1)
    layers = [named("stem", conv(widths[0], (3, 3), bias=False))]
    for i, width in enumerate(widths):
        parts = [named("first", _widening(width, norm) if i else residual(_branch(width, norm)))]
        if blocks > 1:
            parts.append(named("rest", repeat(residual(_branch(width, norm)), blocks - 1)))
        layers.append(named("stage", serial(*parts)))
    layers += [named("norm", norm()), relu(), global_average_pool(), named("head", dense(classes))]
    return named("cnn", serial(*layers))


def _branch(width: int, norm: Callable[[], Layer], stride: int = 1) -> Layer:
    first, second = conv(width, (3, 3), stride=stride, bias=False), conv(width, (3, 3), bias=False)
    one, two = named("norm", norm()), named("norm", norm())
    return named("branch", serial(one, relu(), first, two, relu(), second))


def _widening(width: int, norm: Callable[[], Layer]) -> Layer:
    """The first block of a stage: space is halved, so a convolution takes the place of `x`."""
    short = named("short", conv(width, (1, 1), stride=2, bias=False))
    return named("widening", serial(parallel(short, _branch(width, norm, stride=2)), add()))
