"""Whether the rows that fill up a short batch have a say in anything; they must not."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from funprop.metrics import ADDED
from funprop.properties import first_that
from funprop.steps import Step
from funprop.train.arrays import copies, split
from funprop.train.runner import Runner, kind
from funprop.train.sums import on_host
from funprop.transforms.transformed import made_of, objective_of
from funprop.trees import is_float

if TYPE_CHECKING:
    from funprop.typing import Int, PyTree

WAYS_OUT = (
    "last must be 'short' or 'drop', or batch_size one that divides the number of examples: padding"
)


def one_shape(step: Step, mesh: jax.sharding.Mesh | None) -> bool:
    """Whether all batches must have one length, that devices divide."""
    split_up = {"shard", "data_parallel", "ordered"}
    transforms = () if step.grad_fn is None else made_of(step.grad_fn)
    return mesh is not None or bool(split_up & {*step.parts, *transforms})


def check_padding(
    runner: Runner,
    step: Step,
    state: Any,
    data: PyTree,
    rows: Int[np.ndarray, "batches batch_size"],
    mesh: jax.sharding.Mesh | None,
) -> None:
    """Raise where padding would have a say in an update by the last batch of `rows`.

    The loss must be one that is known to take weights: of a function of one's own it is not known.
    No layer may say that it mixes the examples of a batch in training, where there is a key for it.
    Then the update itself is asked, once a kind, by the program that trains: whatever rows the
    padding is made of, state and metrics must come out the same to the bit; and of padding alone
    loss and metrics must have a weight of zero.

    Raises:
      ValueError: it has, and what to do.
    """
    plain = getattr(step.grad_fn, "plain", step.grad_fn)
    if plain is not None and not hasattr(plain, "objective"):
        raise ValueError(f"{WAYS_OUT} is for objectives, a loss function may not know of weights")
    objective = None if step.grad_fn is None else objective_of(step.grad_fn)
    if objective is not None and objective.mixes and _key(state) is not None:
        raise ValueError(
            f"{WAYS_OUT} has a say here, as {first_that('mixes', objective)} mixes the examples of "
            "a batch in training"
        )
    key = kind(state, data, rows)
    if key in runner.probed:
        return
    try:
        zeros = copies(runner.zeros(state, data, rows), mesh)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{WAYS_OUT} needs weights, but: {error}") from error

    probe, others, whole = _unlike_the_last(data)

    def updated(last: Any) -> Any:
        changed = np.concatenate([rows[:-1], last[None]])
        first, end = np.int32(len(rows) - 1), np.int32(len(rows))
        # A copy, for it may be donated.
        return runner.run(copies(state, mesh), zeros, probe, split(changed, mesh), first, end)

    real = rows[-1] >= 0
    _, sums = updated(np.full_like(rows[-1], -1))
    counted = [name for name, s in on_host(sums).items() if s.weight.any() and _of_examples(name)]
    if counted:
        raise ValueError(f"{WAYS_OUT} counts in {', '.join(counted)}, whatever its weight")
    found = updated(rows[-1])
    for other in others:
        if not _same(found, updated(np.where(real, rows[-1], other - len_of(data)))):
            raise ValueError(
                f"{WAYS_OUT} has a say here, as something mixes the examples of a batch "
                "(batch_norm does) or does without weights"
            )
    if whole:
        runner.probed.add(key)


def _key(state: Any) -> Any:
    """That of a step's state, however wrapped."""
    while not hasattr(state, "key") and hasattr(state, "inner"):
        state = state.inner
    return getattr(state, "key", None)


def _of_examples(name: str) -> bool:
    return name not in ADDED and not name.startswith("gradient_norm/")


def len_of(data: PyTree) -> int:
    """How many examples there are."""
    return len(jax.tree.leaves(data)[0])


def _unlike_the_last(data: PyTree) -> tuple[PyTree, list[int], bool]:
    """Rows to make padding of that differ from the last one, which it is made of otherwise: every
    floating leaf of each, and every other leaf of one of them. And the data that they are rows of,
    where a floating leaf is changed that does not differ by itself; and whether all could be done:
    integers are not changed, for they may be the numbers of something.
    """
    leaves, structure = jax.tree.flatten(data[:2])
    differ = np.stack([_differing(leaf) for leaf in leaves])  # [leaf, row], shares of a row
    floating = np.array([is_float(leaf) for leaf in leaves])
    lacking, chosen = ~floating, []
    while not chosen or (differ[lacking] > 0).any():
        # The most of the other leaves that are lacking, then the most of the numbers.
        gain = (differ[lacking] > 0).sum(0) + differ.mean(0) / 2
        chosen.append(int(gain.argmax()))
        lacking = lacking & (differ[:, chosen[-1]] == 0)
    for i in np.flatnonzero(floating):
        equal = np.array([row for row in chosen if differ[i, row] == 0])
        if len(equal):
            leaves[i] = _changed(leaves[i], equal)
    return (*jax.tree.unflatten(structure, leaves), *data[2:]), chosen, not lacking.any()


def _differing(leaf: Any) -> Any:
    """The share of each row's numbers that differ from those of the last."""
    values = np.asarray(leaf)
    axes = tuple(range(1, values.ndim))
    return (values != values[-1:]).sum(axes) / max(1, math.prod(values.shape[1:]))


@jax.jit
def _changed(leaf: Any, rows: Any) -> Any:
    """Other numbers in some rows, of the same sign and no larger but for zero."""
    some = leaf[rows]
    return leaf.at[rows].set(jnp.where(some == 0, jnp.asarray(0.5, leaf.dtype), some / 2))


@jax.jit
def _equal(a: Any, b: Any) -> Any:
    def same(x: Any, y: Any) -> Any:
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            return True
        return ((x == y) | ((x != x) & (y != y))).all()

    return jnp.asarray([same(*pair) for pair in zip(*map(jax.tree.leaves, (a, b)), strict=True)])


def _same(a: Any, b: Any) -> bool:
    return bool(jax.device_get(_equal(a, b)).all())
