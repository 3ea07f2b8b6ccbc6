"""What a layer computes, as a mathematician writes it: read by `explain`."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable
from typing import Any, NamedTuple, ParamSpec

from funprop.checks import described

P = ParamSpec("P")


class Formula(NamedTuple):
    """The formula of a layer, forward and backward, as text and as LaTeX.

    The symbols are those of the contract: `x`, `y`, and `dy`, `dx`, `dw` for the cotangents.

    Attributes:
      forward: such as `y = x w + b`.
      backward: such as `dw = x^T dy`; several, divided by `;`.
      latex_forward, latex_backward: the same; empty where nobody wrote it.
      elementwise: whether each number of `y` depends on the same number of `x` alone, so that
        `dx / dy` is the derivative there.

    Example:
      >>> Formula("y = x^2", "dx = 2 x dy", elementwise=True).backward
      'dx = 2 x dy'
    """

    forward: str
    backward: str
    latex_forward: str = ""
    latex_backward: str = ""
    elementwise: bool = False


def with_other(
    formula: Formula | None, letter: str, other: str, latex: str, *, only: str = ""
) -> Formula | None:
    """The formula with other params, or inputs, in the place of a `letter` and of those below it.

    Args:
      only: the parts that define this, as `dx`; without it, all.

    Example:
      >>> with_other(Formula("y = x w", "dx = dy w^T; dw = x^T dy"), "w", "B", "B", only="dx")[:2]
      ('y = x w', 'dx = dy B^T; dw = x^T dy')
    """
    if formula is None:
        return None
    symbol = rf"(?<![A-Za-z_\\]){letter}(?![A-Za-z])"

    def changed(text: str, new: str) -> str:
        parts = re.split(r"(;)", text)
        return "".join(
            re.sub(symbol, lambda _: new, part)
            if not only or re.match(rf"(\\quad)?\s*{only}(?![A-Za-z])", part)
            else part
            for part in parts
        )

    texts = changed(formula.forward, other), changed(formula.backward, other)
    return Formula(
        *texts,
        changed(formula.latex_forward, latex),
        changed(formula.latex_backward, latex),
    )


def told(formula: Formula) -> Callable[[Callable[P, Any]], Callable[P, Any]]:
    """A decorator of functions that make layers: each has this formula."""

    def decorated(make: Callable[P, Any]) -> Callable[P, Any]:
        @functools.wraps(make)
        def made(*args: P.args, **kwargs: P.kwargs) -> Any:
            layer = make(*args, **kwargs)
            again = layer.rebuild if layer.children else None  # a leaf rebuilds to itself
            return dataclasses.replace(layer, formula=formula, rebuild=again)

        return made

    return decorated


def checked(formula: Any) -> Formula | None:
    """The formula, or a `TypeError` where it is neither one nor `None`."""
    if formula is not None and not isinstance(formula, Formula):
        raise TypeError(f"formula must be a Formula, got {described(formula)}")
    return formula
