"""Whether the loops of a forward pass have come to rest.

The derivative of a fixed point is that of the equation that it solves, where it solves it. At
inputs that nobody gave, the turns that were enough for the given ones may not be: then such a rule
and the derivative of the loop are not the same, and neither is wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
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

Turns = Callable[[Instruments], Callable[[list[Any]], list[Any]]]


class Given(NamedTuple):
    """The given inputs, and what measures a part there."""

    tools: Instruments
    sample: Sample

    def comparable(self, tools: Instruments, *others: Sample) -> bool:
        """Whether the loops that come to rest at the given inputs do so at others too."""
        return not any(a < AT_REST <= b for a, b in self._moves_here_and_there(tools, others))

    def as_near(self, tools: Instruments, *others: Sample) -> bool:
        """Whether those loops, and their derivatives, are as near to rest at others: for what is
        almost right there. Zeros may be a fixed point whose derivative takes as many turns as any.
        """
        return not any(
            a < AT_REST and b > max(10 * a, STILL)
            for of in (_last_turns, _last_turns_of_derivatives)
            for a, b in self._moves_here_and_there(tools, others, of)
        )

    def _moves_here_and_there(
        self, tools: Instruments, others: Sequence[Sample], of: Turns | None = None
    ) -> list[tuple[float, float]]:
        if not any(map(_iterates, equations(self.tools.wide_plain))):
            return []
        here = _moves(self.tools, self.sample, of or _last_turns)
        there = [_moves(tools, other, of or _last_turns) for other in others]
        return [pair for moves in there for pair in zip(here, moves, strict=False)]


def _iterates(eqn: Any) -> bool:
    """Whether the equation is a loop that does the same again and again."""
    if eqn.primitive.name != "scan" or eqn.params["length"] < TURNS:
        return False
    consts, carry = scan_sizes(eqn.params)
    floats = any(is_floating(v.aval) for v in eqn.invars[consts : consts + carry])
    return floats and len(eqn.invars) == consts + carry


def _moves(tools: Instruments, sample: Sample, of: Turns) -> list[float]:
    """How far the last turn of each loop, outside of others, moves what it carries."""
    name = of.__name__
    run = tools.kept(name, tools, lambda: tools.jit(of(tools)))
    try:
        with jax.enable_x64(True):
            return [float(move) for move in tools.kept(name, sample, lambda: run(sample.inputs))]
    except NotWideError:
        return []


def _last_turns(tools: Instruments) -> Callable[[list[Any]], list[Any]]:
    def moved(inputs: list[Any]) -> list[Any]:
        return [_far(*pair) for pair in zip(*_carried(tools, inputs), strict=True)]

    return moved


def _last_turns_of_derivatives(tools: Instruments) -> Callable[[list[Any]], list[Any]]:
    """The same of what is carried by their derivative along one direction of all floats."""
    places = [i for i, leaf in enumerate(tools.args) if is_floating(leaf)]

    def moved(inputs: list[Any]) -> list[Any]:
        def carried_of(floats: list[Any]) -> tuple[list[list[Any]], list[list[Any]]]:
            known = dict(zip(places, floats, strict=True))
            return _carried(tools, [known.get(i, v) for i, v in enumerate(inputs)])

        floats = [jnp.asarray(inputs[i]) for i in places]
        along = [jnp.cos(jnp.arange(v.size, dtype=v.dtype)).reshape(v.shape) for v in floats]
        _, carried = jax.jvp(carried_of, (floats,), (along,))
        return [_far(*pair) for pair in zip(*carried, strict=True)]

    return moved


def _carried(tools: Instruments, inputs: list[Any]) -> tuple[list[list[Any]], list[list[Any]]]:
    """The floats that each loop carries after its last turn, and before it."""
    after: list[list[Any]] = []
    before: list[list[Any]] = []

    def around(eqn: Any, inputs: list[Any], run: Any) -> list[Any]:
        outputs = run(inputs)
        if _iterates(eqn):
            shorter = eqn.replace(params={**eqn.params, "length": eqn.params["length"] - 1})
            earlier = Evaluate(wide=True).equation(shorter, inputs)
            pairs = [
                pair
                for pair in zip(outputs, earlier, strict=True)
                if is_floating(pair[0]) and np.shape(pair[0]) == np.shape(pair[1])
            ]
            after.append([a for a, _ in pairs])
            before.append([b for _, b in pairs])
        return outputs

    Evaluate(wide=True, around=around)(tools.wide_plain, *inputs)
    return after, before


def _far(after: list[Any], before: list[Any]) -> Any:
    """The largest distance, relative to the largest number."""
    moves = [
        jnp.max(jnp.abs(a - b), initial=0) / (jnp.max(jnp.abs(a), initial=0) + 1e-300)
        for a, b in zip(after, before, strict=True)
    ]
    return jnp.max(jnp.stack(moves))
