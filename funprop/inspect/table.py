"""Columns of text, aligned."""

from __future__ import annotations

import html
from collections.abc import Collection, Sequence


def aligned(rows: Sequence[Sequence[str]], left: Collection[int]) -> list[str]:
    r"""A line for each row, its cells as wide as their columns.

    Args:
      rows: of equal length.
      left: the columns that are flush left; the others are flush right.

    Example:
      >>> print("\n".join(aligned([("layer", "params"), ("dense", "8")], left=[0])))
      layer  params
      dense       8
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if i in left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def with_total(lines: Sequence[str]) -> str:
    """Lines as one text, the first and the last set off by a rule.

    Example:
      >>> print(with_total(["n", "1", "2", "3"]))
      n
      -
      1
      2
      -
      3
    """
    rule = "-" * max(map(len, lines))
    return "\n".join([lines[0], rule, *lines[1:-1], rule, lines[-1]])


def as_html(rows: Sequence[Sequence[str]], left: Collection[int], total: bool = False) -> str:
    """The rows as a table of HTML, for notebooks: the first its head, the last a sum if `total`.

    Example:
      >>> as_html([("layer", "params"), ("dense", "8")], left=[0]).count("<tr>")
      2
    """
    lines = []
    for n, row in enumerate(rows):
        tag = "th" if n == 0 or (total and n == len(rows) - 1) else "td"
        cells = (
            f'<{tag} style="text-align:{"left" if i in left else "right"};white-space:pre">'
            f"{html.escape(cell)}</{tag}>"
            for i, cell in enumerate(row)
        )
        lines.append(f"<tr>{''.join(cells)}</tr>")
    return f"<table>{''.join(lines)}</table>"
