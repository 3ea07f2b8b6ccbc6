"""Stories of a product of matrices: a factor of its derivative not transposed, or out of order."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from funprop.verify.stories.flow import Change, Flow, always


def reordered(flow: Flow) -> Iterator[Change]:
    """`w @ dy` for `dy @ w.T` and the like, where the shapes allow it."""
    for step in flow.steps:
        if step.primitive != "dot_general" or len(step.operands) != 2:
            continue
        (end,) = step.outputs
        for here, other in (step.operands, step.operands[::-1]):
            if flow.places[here].alive and flow.places[here].values[0].ndim > 1:
                yield from _of_operand(flow, step.where, here, other, end)


def _of_operand(flow: Flow, where: str, here: int, other: int, end: int) -> Iterator[Change]:
    place, factor, output = flow.places[here], flow.places[other], flow.places[end]
    for turned_dy in (False, True):
        for turned_factor in (False, True):
            for dy_first in (True, False):

                def product(
                    s: int,
                    turned: tuple[bool, bool] = (turned_dy, turned_factor),
                    dy_first: bool = dy_first,
                ) -> np.ndarray:
                    pair = [
                        np.swapaxes(v, -1, -2) if t else v
                        for v, t in zip(
                            (output.cotangents[s], factor.values[s]), turned, strict=True
                        )
                    ]
                    return np.matmul(*pair) if dy_first else np.matmul(*pair[::-1])

                try:
                    found = product(0)
                except ValueError:
                    continue
                if found.shape != place.values[0].shape:
                    continue
                names = ("dy.T" if turned_dy else "dy", "b.T" if turned_factor else "b")
                words = " @ ".join(names if dy_first else names[::-1])
                # With both turned and exchanged it is the transpose of one with neither.
                straight = (turned_dy, turned_factor) in ((False, True), (True, False))
                kind = "swapped" if straight else "transposed"
                sentence = f"the factors in the derivative of {where} are wrong: it is {words}"
                yield Change(here, always(kind, sentence), product)
