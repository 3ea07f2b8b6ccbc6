"""What a model is made of: shapes, params, and the bytes that its backward pass keeps."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import jax

from funprop import trees
from funprop.checks import check_arrays
from funprop.inspect.table import aligned, as_html, with_total
from funprop.inspect.visits import noting
from funprop.layer import Layer, check_layer
from funprop.names import below, title
from funprop.params.frozen import trained
from funprop.params.selection import Place
from funprop.residuals import of_children

if TYPE_CHECKING:
    from funprop.typing import PyTree


class Row(NamedTuple):
    """One layer of a `Summary`; the copies under a `repeat` share a row.

    Attributes:
      path: where in the model.
      output: dtype and shape of the output.
      params: how many numbers its params are.
      trained: how many of them are trained: neither frozen nor statistics.
      param_bytes: their bytes.
      residual_bytes: bytes that the layer keeps for the backward pass. An array that several
        layers keep counts once, in the row of the first.
    """

    path: str
    output: str
    params: int
    trained: int
    param_bytes: int
    residual_bytes: int


class Summary(NamedTuple):
    """One row a layer, and the totals. `print` shows it as a table."""

    rows: tuple[Row, ...]
    total: Row

    def __str__(self) -> str:
        return with_total(aligned(self._cells(), left=(0, 1)))

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return as_html(self._cells(), left=(0, 1), total=True)

    def _cells(self) -> list[tuple[str, ...]]:
        head = ("layer", "output", "params", "trained", "param bytes", "residual bytes")
        cells = [head] + [
            (row.path, row.output, *(f"{number:,}" for number in row[2:]))
            for row in (*self.rows, self.total)
        ]
        if self.total.trained == self.total.params:  # then there is nothing to tell
            cells = [(*row[:3], *row[4:]) for row in cells]
        return cells


def summary(model: Layer, x_spec: PyTree) -> Summary:
    """Shapes, params and residuals of every layer, from shapes alone: nothing is computed.

    Args:
      model: what to describe.
      x_spec: the input, or a pytree of `jax.ShapeDtypeStruct` like it, its batch axis included.

    Raises:
      ValueError: from the first layer whose input does not fit, with its path.

    Example:
      >>> import jax.numpy as jnp, funprop as fp
      >>> print(summary(fp.serial(fp.dense(4), fp.relu()), jnp.zeros((8, 3))))
      layer   output        params  param bytes  residual bytes
      ---------------------------------------------------------
      dense   float32[8,4]      16           64              96
      relu    float32[8,4]       0            0              32
      ---------------------------------------------------------
      serial  float32[8,4]      16           64             128
    """
    check_layer("model", model)
    check_arrays("x_spec", x_spec)
    params = jax.eval_shape(model.init, jax.random.key(0), x_spec)
    outputs: dict[Place, str] = {}
    given: dict[Place, Any] = {}

    def note(at: Place, call: tuple[Any, Any, Any], gives: tuple[Any, Any]) -> None:
        outputs[at] = ", ".join(map(trees.spec_string, jax.tree.leaves(gives[0])))
        given[at] = call[0]

    rows: list[Row] = []
    counted: set[int] = set()

    def add_rows(at: Place, path: str, layer: Layer, params: Any, residuals: Any) -> None:
        """By the mirror law: what stands past the children's places is the layer's own."""
        n = len(layer.children) if (*at, 0) in outputs else 0  # of one that runs none of them, none
        own_params, parts = params, layer.split(params) if n else ()
        if n and layer.shares:
            own_params, parts = _shared(layer, params, given[at], given[(*at, 0)])
        elif n:
            own_params = ()
        inside = of_children(layer, residuals)
        own = residuals[n:] if n and residuals is not None else residuals
        new = {id(leaf): leaf for leaf in jax.tree.leaves(own) if id(leaf) not in counted}
        counted.update(new)
        if not n or new or trees.size(own_params):
            rows.append(_row(title(path, layer), outputs[at], own_params, trees.nbytes(new)))
        for i, name in enumerate(below(path, layer)[:n]):
            add_rows((*at, i), name, layer.children[i], parts[i], inside[i])

    def run(params: PyTree, x: PyTree) -> None:
        _, residuals = noting(model, note).forward(params, x)
        add_rows((), "", model, params, residuals)

    jax.eval_shape(run, params, x_spec)
    kept = sum(row.residual_bytes for row in rows)
    return Summary(tuple(rows), _row(model.name, outputs[()], params, kept))


def _shared(
    layer: Layer, params: PyTree, given: PyTree, expanded: PyTree
) -> tuple[PyTree, list[PyTree]]:
    """Of a node that makes its child's params from its own: those that are counted as its own, and
    the child's, in which those that it hands on are counted, each where it is used first.

    Args:
      layer: the node.
      params: its own.
      given: the same, as its forward pass saw them.
      expanded: the child's, as its forward pass saw them.
    """
    pairs = zip(jax.tree.leaves(given), jax.tree.leaves(params), strict=True)
    own = {id(inner): outer for inner, outer in pairs}
    take = (lambda leaf: own.pop(id(leaf), None)) if layer.hands_on else (lambda leaf: None)
    child = jax.tree.map(take, expanded)
    left = {id(leaf) for leaf in own.values()}
    return jax.tree.map(lambda leaf: leaf if id(leaf) in left else None, params), [child]


def _row(path: str, output: str, params: PyTree, residual_bytes: int) -> Row:
    return Row(
        path,
        output,
        trees.size(params),
        trees.size(trained(params)),
        trees.nbytes(params),
        residual_bytes,
    )
