"""The backward pass as formulas: each layer's own, with the symbols of this model.

`x0` is the input; each layer's output is the next `x`, and its params bear its number. What several
layers read gets the sum of what they give back (`+=`).
"""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from typing import TYPE_CHECKING, Any, NamedTuple

import jax

from funprop.deriving.symbols import LATEX, PLAIN, Symbols
from funprop.layer import Layer
from funprop.maps import around
from funprop.names import below
from funprop.trees import Sum, is_float

if TYPE_CHECKING:
    from funprop.typing import PyTree

OF_PARAMS = r"(\\quad)?\s*d(w|W|b|s|E|P|table|scale|bias)(?![a-z])"  # where a part defines it
OWN = "wbsEWB"  # the letters of formulas that are a layer's own


class Line(NamedTuple):
    """One layer, or a node that computes something itself.

    Attributes:
      path: where in the model.
      layer: which.
      x, y: the numbers of what it takes and gives, of that which has a cotangent.
      f: of a node, those of what its last part gives.
      depth: how many repeated nodes it is in.
      opens: of a node with copies, before its parts: how many.
      whole: the numbers of all that it takes, as lengths and masks are.
    """

    path: str
    layer: Layer
    x: list[int]
    y: list[int]
    f: list[int]
    depth: int
    opens: int = 0
    whole: tuple[int, ...] = ()


@dataclasses.dataclass
class Notes:
    """What was seen in one run forward: which array is which `x`."""

    lines: list[Line] = dataclasses.field(default_factory=list)
    numbers: dict[int, int] = dataclasses.field(default_factory=dict)
    alive: list[Any] = dataclasses.field(default_factory=list)  # so that no id is used again
    copies: Counter[tuple[int, int]] = dataclasses.field(default_factory=Counter)
    silent: int = 0
    depth: int = 0

    def of(self, tree: PyTree) -> list[int]:
        return [self.number(leaf) for leaf in jax.tree.leaves(tree)]

    def moved(self, tree: PyTree) -> list[int]:
        """Of the floats alone, where there are any: all else has no cotangent."""
        floats = [leaf for leaf in jax.tree.leaves(tree) if is_float(leaf)]
        return self.of(floats or tree)

    def known(self, tree: PyTree, given: PyTree) -> bool:
        here = {id(leaf) for leaf in jax.tree.leaves(given)}
        return all(id(leaf) in self.numbers or id(leaf) in here for leaf in jax.tree.leaves(tree))

    def number(self, leaf: Any) -> int:
        if id(leaf) not in self.numbers:
            self.alive.append(leaf)
            self.numbers[id(leaf)] = len(set(self.numbers.values()))
        return self.numbers[id(leaf)]

    def noted(self, path: str, layer: Layer, parent: Layer | None, place: int = 0) -> Layer:
        """The same layer, which notes what it is given and gives."""
        children = [
            self.noted(below(path, layer)[i], child, layer, i)
            for i, child in enumerate(layer.children)
        ]
        inner = layer if _whole(layer) else layer.rebuild(*children)
        return self.noting(path, layer, inner, parent, place)

    def noting(
        self, path: str, layer: Layer, inner: Layer, parent: Layer | None, place: int
    ) -> Layer:
        """`inner`, which is `layer` with parts that note what they are given, noting it too."""

        def forward(params: PyTree, x: PyTree, key: Any = None) -> Any:
            if parent is not None and parent.copies:
                self.copies[id(parent), place] += 1
                again = self.copies[id(parent), place] > 1
            else:
                again = False
            self.silent += again
            try:
                return self.call(path, layer, inner, (params, x, key))
            finally:
                self.silent -= again

        def again(inner: Layer) -> Layer:
            return self.noting(path, layer, inner, parent, place)

        return around(inner, again, forward=forward)

    def call(self, path: str, layer: Layer, inner: Layer, given: tuple[Any, ...]) -> Any:
        if self.silent:
            return inner.forward(*given)
        if _whole(layer) or layer.copies:
            self.of(given[1])  # in the order in which they are read
        if layer.shares and not _whole(layer):
            self.lines.append(Line(path, layer, [], [], [], self.depth))
        if layer.copies:
            x = self.moved(given[1])
            self.lines.append(Line(path, layer, x, [], [], self.depth, layer.copies))
            self.depth += 1
        y, residuals = inner.forward(*given)
        self.depth -= bool(layer.copies)
        loss = isinstance(y, Sum)
        if (not loss and self.known(y, given[1])) or (loss and not _whole(layer)):
            return y, residuals  # what a part gave, or nothing but the input
        if layer.copies and layer.formula is not None:  # each copy computes something itself
            one, given_by = dataclasses.replace(layer, copies=None), self.lines[-1].y
            made = [self.number(object())]
            self.lines.append(Line(path, one, self.moved(given[1]), made, given_by, self.depth + 1))
        if not loss or _whole(layer):
            whole = tuple(self.of(given[1]))
            x, gives = self.moved(given[1]), [] if loss else self.moved(y)
            last = self.lines[-1].y if self.lines else []
            self.lines.append(Line(path, layer, x, gives, last, self.depth, whole=whole))
        return y, residuals


def _whole(layer: Layer) -> bool:
    """Whether its backward is not made of its parts': a leaf, or a node that says it is not meant
    to be the chain rule."""
    return not layer.children or layer.intended is not None


def lines_of(layer: Layer, params: PyTree, x: PyTree, key: Any) -> list[Line]:
    """Every layer in the order of the forward pass; of copies, the first."""
    notes = Notes()

    def run(params: PyTree, x: PyTree) -> None:
        notes.noted("", layer, None).forward(params, x, key)

    with jax.disable_jit():
        jax.eval_shape(run, params, x)
    return notes.lines


class Row(NamedTuple):
    """A line of the derivation: which layer, what it computes."""

    path: str
    formula: str
    depth: int


def passes(lines: list[Line], symbols: Symbols) -> tuple[list[Row], list[Row]]:
    """The rows of the forward pass, and those of the backward pass."""

    def row(line: Line, told: str) -> Row:
        return Row(line.path or line.layer.name, told, line.depth)

    forward = [row(line, _forward(line, symbols)) for line in lines]
    backward, given = [], set[int]()  # what has got a cotangent already
    for line in reversed(lines):
        if line.opens:
            continue
        backward.append(row(line, _backward(line, symbols, given)))
        given.update(() if line.layer.copies else line.x)
    return forward, backward


def _forward(line: Line, symbols: Symbols) -> str:
    x, y, f = (symbols.all("x", numbers) for numbers in (line.x, line.y, line.f))
    words = symbols.words
    if not line.x and not line.y:
        return "p = e(q)" + words(", p the params of what is below, made of its own, q")
    if line.opens:
        return (
            words(f"for each copy 1, ..., {line.opens}, which reads ")
            + x
            + words(" first, then what the one before gave:")
        )
    if line.layer.copies:
        return f"{y} = {f}" + words(" of the last copy")
    told = _formula(line, symbols, "forward")
    x = symbols.all("x", list(line.whole))
    return told or f"{y} = {words(line.layer.name)}({x})"


def _backward(line: Line, symbols: Symbols, given: set[int]) -> str:
    x, dx, dy, df = (
        symbols.all(letter, numbers)
        for letter, numbers in (("x", line.x), ("dx", line.x), ("dx", line.y), ("dx", line.f))
    )
    words = symbols.words
    if not line.x and not line.y:
        return rf"dq = e'(q)^{symbols.transposed} dp"
    if line.layer.copies:
        order = words(f"for each copy {line.layer.copies}, ..., 1, with ")
        return f"{order}{df} = {dy}" + words(" first, then what the one behind gave back:")
    told = (
        _formula(line, symbols, "backward")
        or f"{dx} = {words(line.layer.name + chr(39))}({x}) {dy}"
    )
    if given.intersection(line.x):
        told = told.replace(f"{dx} =", f"{dx} {symbols.plus}", 1)
    return told


def _formula(line: Line, symbols: Symbols, which: str) -> str:
    """The layer's own formula, in the symbols of the model; empty where it has none."""
    formula = line.layer.formula
    told = getattr(formula, f"latex_{which}" if symbols.latex else which, "")
    if which == "backward" and line.layer.frozen:
        told = ";".join(part for part in told.split(";") if not re.match(OF_PARAMS, part))
    x, y, number = "x", "y", (line.y or [0])[0]
    if formula is not None and not line.y:  # a loss; it calls the outputs x, or z, or y
        number = line.x[0] + 1
        x = next(letter for letter in "xzy" if _has(formula.forward, letter) or letter == "y")
    numbers = line.x if line.y else line.x[:1]
    tokens = {}
    for d in ("", "d"):
        if not line.layer.paramless and not line.layer.children:
            tokens.update({f"{d}{c}": symbols.one(f"{d}{c}", number) for c in OWN})
        tokens[f"{d}{x}"] = symbols.all(f"{d}x", numbers)
        tokens[f"{d}f"] = symbols.all(f"{d}x", line.f) if line.layer.children else f"{d}f"
        if line.y:
            tokens[f"{d}{y}"] = symbols.all(f"{d}x", line.y)
    return re.sub(TOKEN, lambda match: tokens.get(match[0], match[0]), told)


TOKEN = r"(?<![A-Za-z\\_])d?[A-Za-z](?![A-Za-z])"


def _has(formula: str, letter: str) -> bool:
    return letter in re.findall(TOKEN, formula)


def plain(lines: list[Line]) -> str:
    """Both passes as text: a column of layers, a column of formulas."""
    parts = []
    for title, rows in zip(("forward", "backward"), passes(lines, PLAIN), strict=True):
        wide = max((len(row.path) + 2 * row.depth for row in rows), default=0)
        parts.append(f"{title} pass")
        for row in rows:
            first, *rest = row.formula.split("; ")
            pad = "  " * row.depth
            parts.append(f"  {pad}{row.path:{wide - len(pad)}}  {first}")
            parts += [f"  {'':{wide}}  {more}" for more in rest]
        parts.append("")
    return "\n".join(parts).rstrip()


def latex(lines: list[Line]) -> str:
    """Both passes as `align*` of amsmath."""
    parts = []
    for rows in passes(lines, LATEX):
        body = []
        for row in rows:
            name = row.path.replace("_", r"\_")
            space = rf"\hspace{{{row.depth}em}}" if row.depth else ""
            body.append(rf"  &{space}\text{{{name}}} && {row.formula}")
        parts.append("\\begin{align*}\n" + " \\\\\n".join(body) + "\n\\end{align*}")
    return "\n".join(parts)
