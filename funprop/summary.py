"""What a model is made of: shapes, params, and the bytes that its backward pass keeps."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, NamedTuple

import jax

from funprop import trees
from funprop.layer import Layer
from funprop.visits import visits

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
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines = [
            "  ".join(
                cell.ljust(width) if i < 2 else cell.rjust(width)
                for i, (cell, width) in enumerate(zip(row, widths, strict=True))
            ).rstrip()
            for row in cells
        ]
        rule = "-" * max(map(len, lines))
        return "\n".join([lines[0], rule, *lines[1:-1], rule, lines[-1]])


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
      relu    float32[8,4]       0            0             128
      ---------------------------------------------------------
      serial  float32[8,4]      16           64             224
    """
    params = jax.eval_shape(model.init, jax.random.key(0), x_spec)
    rows: dict[str, Row] = {}

    def run(params: PyTree, x: PyTree) -> PyTree:
        # A scan stacks what its body keeps, also what lies outside already: so a set for each copy.
        kept: dict[tuple[int, ...], set[int]] = defaultdict(set)
        seen = visits(model, params, x)
        for visit in seen:
            if visit.layer.children:
                continue
            leaves = {id(leaf): leaf for leaf in jax.tree.leaves(visit.residuals)}
            new = [leaf for i, leaf in leaves.items() if i not in kept[visit.copies]]
            kept[visit.copies] |= leaves.keys()
            path = visit.static_path or model.name
            before = rows.get(path, Row(path, "", 0, 0, 0))
            rows[path] = Row(
                path,
                _spec_strings(visit.y),
                before.params + trees.size(visit.params),
                before.param_bytes + trees.nbytes(visit.params),
                before.residual_bytes + trees.nbytes(new),
            )
        return seen[0].y

    y = jax.eval_shape(run, params, x_spec)
    total = Row(
        model.name,
        _spec_strings(y),
        trees.size(params),
        trees.nbytes(params),
        sum(row.residual_bytes for row in rows.values()),
    )
    return Summary(tuple(rows.values()), total)


def _spec_strings(tree: PyTree) -> str:
    return ", ".join(trees.spec_string(leaf) for leaf in jax.tree.leaves(tree))
