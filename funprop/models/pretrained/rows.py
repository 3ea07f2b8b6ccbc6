"""A leaf of our params, and the tensors that it is in somebody else's file: both ways."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

ROWS = 64  # of a matrix that is turned: what a cache holds of it


class Row(NamedTuple):
    """A leaf of ours and its tensors.

    Attributes:
      ours: the leaf's path, in the model's params.
      theirs: their names, side by side along the leaf's last axis; `{}` is the number of a block,
        the leaf's first axis.
      widths: how wide each of them is; of one, the leaf's width.
      turned: whether they are stored `[o, i]`, as those of `torch.nn.Linear`.
    """

    ours: str
    theirs: tuple[str, ...]
    widths: tuple[int, ...] = ()
    turned: bool = False

    @property
    def stacked(self) -> bool:
        return "{}" in self.theirs[0]

    def tensors(self, shape: tuple[int, ...]) -> Iterator[tuple[str, tuple[int, ...], Any]]:
        """Of a leaf of this shape: each tensor's name and shape, and its place in the leaf.

        Example:
          >>> row = Row("qkv/w", ("{}.q", "{}.k"), (2, 1), turned=True)
          >>> [(name, shape) for name, shape, _ in row.tensors((1, 5, 3))]
          [('0.q', (2, 5)), ('0.k', (1, 5))]
        """
        blocks = range(shape[0]) if self.stacked else [None]
        of_one = shape[1:] if self.stacked else shape
        for block in blocks:
            start = 0
            for name, width in zip(self.theirs, self.widths or of_one[-1:], strict=True):
                end, outer = start + width, of_one[:-1]
                part = (..., slice(start, end))
                stored = (width, *outer) if self.turned else (*outer, width)
                yield name.format(block), stored, part if block is None else (block, *part)
                start = end

    def read(
        self, shape: tuple[int, ...], dtype: Any, tensor: Callable[[str], np.ndarray]
    ) -> np.ndarray:
        """Our leaf, of their tensors, one at a time.

        Example:
          >>> row = Row("w", ("a", "b"), (1, 2), turned=True)
          >>> theirs = {"a": np.array([[1, 2]]), "b": np.array([[3, 4], [5, 6]])}
          >>> leaf = row.read((2, 3), int, theirs.get)
          >>> leaf.tolist()
          [[1, 3, 5], [2, 4, 6]]
          >>> [part.tolist() for _, part in row.written(leaf)]
          [[[1, 2]], [[3, 4], [5, 6]]]
        """
        leaf = np.empty(shape, dtype)
        for name, _, place in self.tensors(shape):
            found = tensor(name)
            if self.turned:
                turn(found, leaf[place])
            else:
                leaf[place] = found
        return leaf

    def written(self, leaf: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
        """Their tensors, of our leaf."""
        for name, shape, place in self.tensors(leaf.shape):
            part = leaf[place]
            yield name, turn(part, np.empty(shape, leaf.dtype)) if self.turned else part


def turn(x: np.ndarray, out: np.ndarray) -> np.ndarray:
    """`out[...] = x.T`, some rows at a time: twice as fast where they are large."""
    for start in range(0, len(x), ROWS):
        out[:, start : start + ROWS] = x[start : start + ROWS].T
    return out


def dense(
    ours: str, *theirs: str, widths: tuple[int, ...] = (), turned: bool, bias: bool
) -> list[Row]:
    """The rows of a dense layer: its weights and, where there are any, its biases."""
    rows = [Row(f"{ours}/w", tuple(f"{name}.weight" for name in theirs), widths, turned)]
    return rows + bias * [Row(f"{ours}/b", tuple(f"{name}.bias" for name in theirs), widths)]


def norm(ours: str, theirs: str, *, bias: bool) -> list[Row]:
    """The rows of a normalisation."""
    rows = [Row(f"{ours}/scale", (f"{theirs}.weight",))]
    return rows + bias * [Row(f"{ours}/bias", (f"{theirs}.bias",))]
