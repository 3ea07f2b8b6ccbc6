"""What a step draws: the same when it is replayed, and something new each time it goes on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from funprop.verify.training import draws
from funprop.verify.training.case import Case, NotAsked
from funprop.verify.training.closeness import differences
from funprop.verify.training.layout import bits, of_tree, same_bits
from funprop.verify.training.report import StepCheck
from funprop.verify.training.running import Steps, Traced

FEW = 32  # bits that are the same by chance are as likely as 1 in 2 to their number


def replay(case: Case) -> Iterator[StepCheck]:
    """The same state, batch and key give the same new state."""
    first = case.steps.given(case.path[0], case.examples.batch)
    again = case.steps.given(case.path[0], case.examples.batch)
    pairs = zip(first.arrays, again.arrays, strict=True)
    other = [i for i, (one, two) in enumerate(pairs) if not same_bits(one, two)]
    if case.steps.pure and not other:
        return
    if not other:
        yield StepCheck("replay", _HIDDEN)
        return
    path = case.layout.paths[other[0]]
    if case.steps.pure and not case.draws:
        found = case.noise(case.examples.batch)
        if not differences(again, first, case.path[0], found, case.layout.paths, other):
            yield StepCheck("replay", note="not to the bit: sums are taken in another order")
            return
    yield StepCheck("replay", _HIDDEN, leaf=path)


_HIDDEN = (
    "the same state, batch and key give another update each time: something kept outside of "
    "the state (a generator, a counter) takes part, and is lost where a run is resumed"
)


def drawing(case: Case) -> Iterator[StepCheck]:
    """Each update draws other random numbers than the one before."""
    traced = case.steps.traced(case.here, case.examples.batch)
    if not isinstance(traced, Traced):
        raise NotAsked(f"the step cannot be traced: {traced}")
    if not draws.draws(traced.jaxpr):
        if case.steps.key is not None:
            yield StepCheck(
                "draws",
                "a key is given and nothing is drawn from it: dropout is off, as in inference",
            )
            return
        raise NotAsked("the step draws no random numbers")
    one, two = (_drawn(case, traced, i) for i in (0, 1))
    if not one:
        raise NotAsked(
            "it draws where nobody can look: under a while_loop, a branch, or by devices"
        )
    repeated = [a for a in one if any(same_bits(a, b) for b in two)]
    if repeated:
        shape = list(repeated[0].shape)
        why = (
            "the key is not used" if case.steps.key is not None else "its key is the same each time"
        )
        yield StepCheck(
            "draws", f"the numbers of shape {shape} are drawn again at every update: {why}"
        )


def _drawn(case: Case, traced: Traced, i: int) -> list[np.ndarray]:
    """What update `i` draws."""
    return drawn(case.steps, traced, case.path[i], case.examples.batch, i)


def drawn(steps: Steps, traced: Traced, arrays: Any, batch: Any, i: int) -> list[np.ndarray]:
    """The distinct draws of an update of so many numbers that chance does not make them equal."""
    key = steps.key_of(i)
    leaves = [*arrays, *of_tree(batch).arrays(batch), *jax.tree.leaves(key)]
    found = jax.jit(draws.drawn(traced.jaxpr))(*map(jnp.asarray, leaves))
    large = [bits(draw) for draw in found if 8 * bits(draw).nbytes >= FEW]
    return list({(draw.shape, draw.tobytes()): draw for draw in large}.values())
