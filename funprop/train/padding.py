"""Whether the rows that fill up a short batch have a say in anything; they must not."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from funprop.metrics import ADDED
from funprop.steps import Step
from funprop.train.arrays import copies, split
from funprop.train.runner import Runner, kind
from funprop.train.sums import on_host
from funprop.transforms.transformed import made_of

if TYPE_CHECKING:
    from jaxtyping import Int, PyTree

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
    Then the update itself is asked, once a kind, by the program that trains: whatever rows the
    padding is made of, state and metrics must come out the same to the bit; and of padding alone
    loss and metrics must have a weight of zero.

    Raises:
      ValueError: it has, and what to do.
    """
    plain = getattr(step.grad_fn, "plain", step.grad_fn)
    if plain is not None and not hasattr(plain, "objective"):
        raise ValueError(f"{WAYS_OUT} is for objectives, a loss function may not know of weights")
    key = kind(state, data, rows)
    if key in runner.probed:
        return
    try:
        zeros = copies(runner.zeros(state, data, rows), mesh)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{WAYS_OUT} needs weights, but: {error}") from error

    def updated(last: Any) -> Any:
        changed = np.concatenate([rows[:-1], last[None]])
        first, end = np.int32(len(rows) - 1), np.int32(len(rows))
        # A copy, for it may be donated.
        return runner.run(copies(state, mesh), zeros, data, split(changed, mesh), first, end)

    real = rows[-1] >= 0
    _, sums = updated(np.full_like(rows[-1], -1))
    counted = [name for name, s in on_host(sums).items() if s.weight and _of_examples(name)]
    if counted:
        raise ValueError(f"{WAYS_OUT} counts in {', '.join(counted)}, whatever its weight")
    other = _row_unlike_the_last(data)
    if other is not None:
        found = updated(rows[-1])
        if not _same(found, updated(np.where(real, rows[-1], other - len_of(data)))):
            raise ValueError(
                f"{WAYS_OUT} has a say here, as something mixes the examples of a batch "
                "(batch_norm does) or does without weights"
            )
    runner.probed.add(key)


def _of_examples(name: str) -> bool:
    return name not in ADDED and not name.startswith("gradient_norm/")


def len_of(data: PyTree) -> int:
    """How many examples there are."""
    return len(jax.tree.leaves(data)[0])


def _row_unlike_the_last(data: PyTree) -> int | None:
    """A row that differs from the last one, of which padding is made."""
    for leaf in jax.tree.leaves(data[:2]):
        values = np.asarray(leaf)
        differs = (values != values[-1:]).reshape(len(values), -1).any(1)
        if differs.any():
            return int(differs.argmax())
    return None


@jax.jit
def _equal(a: Any, b: Any) -> Any:
    def same(x: Any, y: Any) -> Any:
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            return True
        return ((x == y) | ((x != x) & (y != y))).all()

    return jnp.asarray([same(*pair) for pair in zip(*map(jax.tree.leaves, (a, b)), strict=True)])


def _same(a: Any, b: Any) -> bool:
    return bool(jax.device_get(_equal(a, b)).all())
