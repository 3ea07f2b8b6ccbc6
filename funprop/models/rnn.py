"""A recurrent classifier of sequences."""

from __future__ import annotations

from funprop.combinators import serial
from funprop.layer import Layer, named
from funprop.layers import dense, last_step
from funprop.values import whole_number


def rnn(classes: int, *cells: Layer) -> Layer:
    """Layers over a sequence, one after the other; logits from the last step of the last.

    Args:
      classes: how many logits.
      *cells: such as `lstm(64)` or `gru(64)`; before or between them also what goes step by step,
        such as `embedding` (for padded sequences within `with_lengths`).

    Shapes: `x [batch, time, i]`, or `(x, lengths)` for sequences padded behind;
    `y [batch, classes]`.
    Source: Graves, Mohamed and Hinton, arXiv:1303.5778 (recurrent layers on top of each other).

    Raises:
      ValueError: there are no cells, or `classes` is not positive.

    Example:
      >>> import jax, jax.numpy as jnp, funprop as fp
      >>> model, x = rnn(10, fp.lstm(16), fp.gru(8)), (jnp.zeros((2, 5, 3)), jnp.array([5, 2]))
      >>> model.forward(model.init(jax.random.key(0), x), x)[0].shape
      (2, 10)
    """
    if not cells:
        raise ValueError("cells must have at least one layer, got none")
    classes = whole_number(classes, "classes", 1)
    return named("rnn", serial(*cells, last_step(), named("head", dense(classes))))
