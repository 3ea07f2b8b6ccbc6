"""What a model is made of: shapes, params, and the bytes that its backward pass keeps."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, NamedTuple

import jax

from funprop import trees
from funprop.inspect.table import aligned, with_total
from funprop.layer import Layer, child_names, map_nodes

if TYPE_CHECKING:
    from jaxtyping import PyTree


class Row(NamedTuple):
    """One layer of a `Summary`; the copies under a `repeat` share a row.

    Attributes:
      path: where in the model.
      output: dtype and shape of the output.
      params: how many numbers the layer trains.
      param_bytes: their bytes.
      residual_bytes: bytes that the layer keeps for the backward pass. An array that several
        layers keep counts once, in the row of the first.
    """

    path: str
    output: str
    params: int
    param_bytes: int
    residual_bytes: int


class Summary(NamedTuple):
    """One row a layer, and the totals. `print` shows it as a table."""

    rows: tuple[Row, ...]
    total: Row

    def __str__(self) -> str:
        head = ("layer", "output", "params", "param bytes", "residual bytes")
        cells = [head] + [
            (r.path, r.output, f"{r.params:,}", f"{r.param_bytes:,}", f"{r.residual_bytes:,}")
            for r in (*self.rows, self.total)
        ]
        return with_total(aligned(cells, left=(0, 1)))


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
    params = jax.eval_shape(model.init, jax.random.key(0), x_spec)
    outputs: dict[str, str] = {}
    structures: dict[str, Any] = {}

    def note(path: str, node: Layer) -> Layer:
        def forward(params: PyTree, x: PyTree, key: Any = None) -> tuple[PyTree, PyTree]:
            y, residuals = node.forward(params, x, key)
            outputs[path] = ", ".join(map(trees.spec_string, jax.tree.leaves(y)))
            structures[path] = jax.tree.structure(params)
            return y, residuals

        return dataclasses.replace(node, forward=forward)

    rows: list[Row] = []
    counted: set[int] = set()

    def add_rows(path: str, layer: Layer, params: Any, residuals: Any) -> None:
        """By the mirror law: what stands past the children's places is the layer's own."""
        names = [f"{path}/{name}" if path else name for name in child_names(layer)]
        mirrored = all(
            jax.tree.structure(p) == structures[name]
            for name, p in zip(names, params if names else (), strict=bool(names))
        )
        own_params = () if names and mirrored else params
        own = residuals[len(names) :] if names else residuals
        new = {id(leaf): leaf for leaf in jax.tree.leaves(own) if id(leaf) not in counted}
        counted.update(new)
        if not names or new or trees.size(own_params):
            rows.append(
                Row(
                    path or model.name,
                    outputs[path],
                    trees.size(own_params),
                    trees.nbytes(own_params),
                    trees.nbytes(new),
                )
            )
        for i, (name, child) in enumerate(zip(names, layer.children, strict=True)):
            computed = structures[name].unflatten([None] * structures[name].num_leaves)
            add_rows(name, child, params[i] if mirrored else computed, residuals[i])

    def run(params: PyTree, x: PyTree) -> None:
        _, residuals = map_nodes(note, model).forward(params, x)
        add_rows("", model, params, residuals)

    jax.eval_shape(run, params, x_spec)
    total = Row(
        model.name,
        outputs[""],
        trees.size(params),
        trees.nbytes(params),
        sum(row.residual_bytes for row in rows),
    )
    return Summary(tuple(rows), total)
