"""How formulas are written: as text for a terminal, or as LaTeX."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple


class Symbols(NamedTuple):
    """How things are written.

    Attributes:
      one: a letter with its number: `x3`, or `x_{3}`.
      several: a tuple of them.
      words: words between formulas.
      plus: added to what is there.
      transposed: the exponent of what is.
      latex: which formula of a layer's is read.
    """

    one: Callable[[str, int], str]
    several: Callable[[list[str]], str]
    words: Callable[[str], str]
    plus: str
    transposed: str
    latex: bool

    def all(self, letter: str, numbers: list[int]) -> str:
        each = [self.one(letter, n) for n in numbers]
        return each[0] if len(each) == 1 else self.several(each)


PLAIN = Symbols(
    one=lambda letter, n: f"{letter}{n}",
    several=lambda each: f"({', '.join(each)})",
    words=lambda words: words,
    plus="+=",
    transposed="T",
    latex=False,
)
LATEX = Symbols(
    one=lambda letter, n: f"{{{letter}_{{{n}}}}}",
    several=lambda each: rf"\left({', '.join(each)}\right)",
    words=lambda words: rf"\text{{{words}}}",
    plus=r"\mathrel{+}=",
    transposed=r"\top",
    latex=True,
)
