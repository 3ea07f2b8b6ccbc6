"""`derive`: the backward pass of a model as Python on JAX alone, and as mathematics."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import jax

from funprop.arguments import check_given
from funprop.deriving.mathematics import latex, lines_of, plain
from funprop.deriving.module import module
from funprop.deriving.trace import Place, Program, traced, with_names
from funprop.gradients import backprop
from funprop.layer import Layer, check_layer
from funprop.located import check_params
from funprop.params.selection import by_name
from funprop.trees import Sum

if TYPE_CHECKING:
    from funprop.typing import PyTree


class Derivation(NamedTuple):
    """The backward pass of one model.

    Attributes:
      layer: the model, or the objective.
      python: a module with one function, which needs JAX and nothing else.
      text: the formulas, layer by layer, for a terminal.
      latex: the same for a paper: an `align*` environment of amsmath for each pass.
    """

    layer: Layer
    python: str
    text: str
    latex: str

    def __repr__(self) -> str:
        return f"Derivation({self.layer}, {self.python.count(chr(10))} lines of Python)"

    def __str__(self) -> str:
        return self.text

    def _repr_latex_(self) -> str:
        return self.latex


def derive(layer: Layer, params: PyTree, x: PyTree, *, key: Any = None) -> Derivation:
    """The backward pass of *your* model, to take away: as straight-line Python on JAX, and as
    mathematics.

    Of an objective the Python is `gradient(params, batch) -> (loss, weight, gradients)`: sums over
    the batch, as `backprop` gives them. Of a model it is `backward(params, x, dy) -> (y, gradients,
    dx)`. Params and gradients are dictionaries of arrays by name, as `fp.save` writes them. It is
    the layers' own backward pass, for these shapes and dtypes, on any platform.

    Args:
      layer: an objective, as `objective(model, loss)` makes it, or a model.
      params: its params, or what looks like them (`jax.ShapeDtypeStruct`).
      x: a batch or an input, or what looks like it.
      key: for what draws in training; the function takes one then. `None` for inference.

    Raises:
      TypeError: `layer` is none, or `params` and `x` are not what it takes.
      ValueError: it uses something of JAX that has no plain Python (a callback, a kernel).

    Example:
      >>> import jax, jax.numpy as jnp, funprop as fp
      >>> line = fp.dense(1)
      >>> x = jnp.ones((4, 2))
      >>> print(fp.derive(line, line.init(jax.random.key(0), x), x).python)  # doctest: +ELLIPSIS
      \"\"\"...
    """
    check_layer("layer", layer)
    specs = any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(x))
    check_given(() if specs else x, key, None, name="x")
    check_params(layer, params, x)
    places: list[Place] = []
    named = with_names(layer, places)
    spec = jax.eval_shape(lambda p, x: layer.forward(p, x, None)[0], params, x)
    whole = isinstance(spec, Sum)
    arguments: dict[str, Any] = {"params": params, "batch" if whole else "x": x}
    if not whole:
        arguments["dy"] = spec
    if key is not None:
        arguments["key"] = key

    def run(params: PyTree, x: PyTree, *rest: Any) -> tuple[Any, ...]:
        if whole:
            gradient = backprop(named)(params, x, rest[0] if key is not None else None)
            return gradient.loss, gradient.weight, by_name(gradient.grads)
        y, residuals = named.forward(params, x, rest[1] if key is not None else None)
        dparams, dx = named.backward(params, residuals, rest[0])
        return y, by_name(dparams), dx

    closed, gives = traced(run, arguments)
    lines = lines_of(layer, params, x, key)
    python = module(layer, Program(closed, places), arguments, gives)
    return Derivation(layer, python, plain(lines), latex(lines))
