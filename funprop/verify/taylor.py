"""The Taylor remainder test: for functions too large for anything else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from funprop.verify.subject import floats
from funprop.verify.subjects.of_function import of_function
from funprop.verify.truth.differences import taylor_order
from funprop.verify.truth.samples import random_numbers

STEPS = tuple(2.0**-k for k in range(3, 13))
LEAST_ORDER = 1.8  # two, less what rounding bends of a line through few points


class Remainder(NamedTuple):
    """How the remainder falls along a random direction in one leaf.

    Attributes:
      path: of the leaf.
      order: the exponent of the step; infinite where no remainder is left above rounding.
      remainders: at each of the steps, relative to the function's terms.
    """

    path: str
    order: float
    remainders: tuple[float, ...]

    @property
    def ok(self) -> bool:
        """Whether it falls as a second order term does."""
        return self.order >= LEAST_ORDER


class TaylorReport(NamedTuple):
    """`rows`, one for each differentiable leaf of the arguments. `print` shows them as a table."""

    rows: tuple[Remainder, ...]

    @property
    def ok(self) -> bool:
        """Whether every remainder falls with the square of the step, or faster."""
        return all(row.ok for row in self.rows)

    def raise_if_wrong(self) -> None:
        """Raise an `AssertionError`, the table its message, where a remainder does not."""
        if not self.ok:
            raise AssertionError(f"the remainder does not fall with the square of the step\n{self}")

    def __str__(self) -> str:
        width = max(map(len, ["gradient of", *(row.path for row in self.rows)]))
        lines = [f"{'gradient of':{width}}  order of the remainder"]
        for row in self.rows:
            verdict = "ok" if row.ok else "wrong: it must be 2"
            lines.append(f"{row.path:{width}}  {row.order:22.2f}  {verdict}")
        return "\n".join(lines)


def taylor_test(function: Callable[..., Any], *args: Any, seed: int = 0) -> TaylorReport:
    """Whether `f(x + h v) - f(x) - h g(x) v` falls with the square of `h`, leaf by leaf.

    Costs one gradient and ten forward passes a leaf, in the precision that the arguments have, and
    no memory beside. An error that is smaller than the function's own rounding, or than the
    remainder at the steps where that is above it, is not seen: `verify` sees it.

    Args:
      function: differentiable, with any outputs: `f` is their product with random numbers.
      *args: the point.
      seed: of the numbers and the directions.

    Raises:
      TypeError: an argument is not an array or not real, or does not fit the function.
      ValueError: nothing can be differentiated.

    Example:
      >>> @jax.custom_vjp
      ... def cube(x):
      ...     return x**3
      >>> cube.defvjp(lambda x: (x**3, x), lambda x, dy: (2 * x**2 * dy,))
      >>> taylor_test(cube, jnp.linspace(1, 2, 5)).ok, taylor_test(jnp.sin, jnp.ones(3)).ok
      (False, True)
    """
    subject = of_function(function, args)
    if not subject.differentiable:
        raise ValueError(f"{subject.name} has no input of floating dtype to differentiate")
    rng = random_numbers(seed)
    forward = jax.jit(lambda *inputs: floats((subject.forward or subject.plain)(*inputs)))
    middle = forward(*subject.args)
    dys = [jnp.asarray(rng.standard_normal(y.shape), y.dtype) for y in middle]
    grads = jax.jit(subject.backward)(list(subject.args), dys)
    eps = max(float(jnp.finfo(y.dtype).eps) for y in middle)

    def terms(ys: Any) -> np.ndarray:
        pairs = zip(ys, dys, strict=True)
        return np.concatenate([np.ravel(np.float64(y) * np.float64(d)) for y, d in pairs])

    there = terms(middle)
    size = float(np.sum(np.abs(there))) or 1.0
    rows = []
    for i, grad in zip(subject.differentiable, grads, strict=True):
        x = np.asarray(subject.args[i], np.float64)
        scale = float(np.sqrt(np.mean(np.square(x)))) if x.size else 0.0
        direction = (scale or 1.0) * rng.standard_normal(x.shape)
        remainders = []
        for h in STEPS:
            moved = jnp.asarray(x + h * direction, subject.args[i].dtype)
            step = np.asarray(moved, np.float64) - x  # as it was rounded
            ys = forward(*subject.args[:i], moved, *subject.args[i + 1 :])
            slope = float(np.sum(np.asarray(grad, np.float64) * step))
            remainders.append(abs(float(np.sum(terms(ys) - there)) - slope) / size)
        order = taylor_order(STEPS, remainders, 8 * eps)
        rows.append(Remainder(subject.paths[i], order, tuple(remainders)))
    return TaylorReport(tuple(rows))
