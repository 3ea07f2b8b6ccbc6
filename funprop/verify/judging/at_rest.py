"""Whether the loops of a forward pass have come to rest.

The derivative of a fixed point is that of the equation that it solves, where it solves it. At
inputs that nobody gave, the turns that were enough for the given ones may not be: then such a rule
and the derivative of the loop are not the same, and neither is wrong.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from funprop.verify.subject import is_floating
from funprop.verify.truth.evaluate import Evaluate, NotWideError
from funprop.verify.truth.instruments import Instruments
from funprop.verify.truth.internals import equations, scan_sizes
from funprop.verify.truth.samples import Sample

AT_REST = 1e-4  # how far the last turn may move what it carries, relative
STILL = 1e-9  # moved by less, a loop is as near to its end as it will come
TURNS = 3  # so many, or it is no iteration


class Given(NamedTuple):
    """The given inputs, and what measures a part there."""

    tools: Instruments
    sample: Sample

    def comparable(self, tools: Instruments, *others: Sample) -> bool:
        """Whether the loops that come to rest at the given inputs do so at others too."""
        return not any(a < AT_REST <= b for a, b in self._moves_here_and_there(tools, others))

    def as_near(self, tools: Instruments, *others: Sample) -> bool:
        """Whether those loops are as near to rest at others: for what is almost right there."""
        pairs = self._moves_here_and_there(tools, others)
        return not any(a < AT_REST and b > max(10 * a, STILL) for a, b in pairs)

    def _moves_here_and_there(
        self, tools: Instruments, others: Sequence[Sample]
    ) -> list[tuple[float, float]]:
        if not any(map(_iterates, equations(self.tools.wide_plain))):
            return []
        here = _moves(self.tools, self.sample)
        there = [_moves(tools, other) for other in others]
        return [pair for moves in there for pair in zip(here, moves, strict=False)]


def _iterates(eqn: Any) -> bool:
    """Whether the equation is a loop that does the same again and again."""
    if eqn.primitive.name != "scan" or eqn.params["length"] < TURNS:
        return False
    consts, carry = scan_sizes(eqn.params)
    floats = any(is_floating(v.aval) for v in eqn.invars[consts : consts + carry])
    return floats and len(eqn.invars) == consts + carry


def _moves(tools: Instruments, sample: Sample) -> list[float]:
    """How far the last turn of each loop, outside of others, moves what it carries."""
    run = tools.kept("turns", tools, lambda: _last_turns(tools))
    try:
        with jax.enable_x64(True):
            return [float(move) for move in tools.kept("moves", sample, lambda: run(sample.inputs))]
    except NotWideError:
        return []


def _last_turns(tools: Instruments) -> Any:
    def moved(inputs: list[Any]) -> list[Any]:
        found: list[Any] = []

        def around(eqn: Any, inputs: list[Any], run: Any) -> list[Any]:
            outputs = run(inputs)
            if _iterates(eqn):
                shorter = eqn.replace(params={**eqn.params, "length": eqn.params["length"] - 1})
                before = Evaluate(wide=True).equation(shorter, inputs)
                carried = [
                    jnp.max(jnp.abs(a - b), initial=0) / (jnp.max(jnp.abs(a), initial=0) + 1e-300)
                    for a, b in zip(outputs, before, strict=True)
                    if is_floating(a) and np.shape(a) == np.shape(b)
                ]
                found.append(jnp.max(jnp.stack(carried)))
            return outputs

        Evaluate(wide=True, around=around)(tools.wide_plain, *inputs)
        return found

    return tools.jit(moved)
