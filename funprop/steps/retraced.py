"""Saying once why a step is compiled again."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING

import jax

from funprop.trees import path_string, spec_string

if TYPE_CHECKING:
    from funprop.typing import PyTree

logger = logging.getLogger("funprop")
_expected: ContextVar[bool] = ContextVar("expected", default=False)


@contextmanager
def expected() -> Iterator[None]:
    """Within, batches of other shapes are meant: a last one that is short, or filled up."""
    token = _expected.set(True)
    try:
        yield
    finally:
        _expected.reset(token)


class Retraced:
    """Is told the batch of every trace; of the first that differs it logs a warning, with the leaf.

    A loop that is slow is often one whose last batch is shorter, or whose batches come as another
    dtype. Only traces run this: it costs compiled code nothing.
    """

    def __init__(self) -> None:
        self.first: dict[str, str] | None = None
        self.told = False

    def __call__(self, batch: PyTree) -> None:
        if _expected.get():
            return
        leaves = jax.tree_util.tree_flatten_with_path(batch)[0]
        specs = {path_string(path): spec_string(leaf) for path, leaf in leaves}
        self.first = self.first or specs
        changed = [path for path, spec in specs.items() if self.first.get(path) != spec]
        if changed and not self.told:
            self.told = True
            where = changed[0]
            logger.warning(
                "update is compiled again: batch%s is %s, was %s",
                f"/{where}" if where else "",
                specs[where],
                self.first.get(where, "not there"),
            )
