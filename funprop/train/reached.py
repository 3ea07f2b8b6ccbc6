"""How far a run has come, and that as a checkpoint."""

from __future__ import annotations

import functools
import json
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from funprop import trees
from funprop.train.checkpoints import Checkpoints
from funprop.train.stopping import Row

if TYPE_CHECKING:
    from funprop.typing import PyTree

# What of the settings is known under another name.
HOW = {"examples": "the number of examples", "contents": "what the data holds (its digest)"}


class Reached(NamedTuple):
    """How far a run has come.

    Attributes:
      state: the step's.
      sums: of the metrics over the epoch so far.
      epoch, done: whole epochs, and updates of the one after them.
      history: the rows of the whole epochs.
      seconds: that it took.
    """

    state: Any
    sums: Any
    epoch: int = 0
    done: int = 0
    history: tuple[Row, ...] = ()
    seconds: float = 0.0

    def update(self, per_epoch: int) -> int:
        """How many updates that is."""
        return self.epoch * per_epoch + self.done

    def finite(self) -> bool:
        """Whether it is something to go on with: no params or sums are infinite or NaN, or those of
        one member of a population are not."""
        loss = np.isfinite(jax.device_get(self.sums["loss"].total)).all(0)
        return bool((loss & _finite(self.state.params, np.ndim(loss))).any())

    def notes(self, settings: dict[str, Any]) -> dict[str, Any]:
        """What is stored beside the state."""
        sums = [np.asarray(x).tolist() for x in jax.tree.leaves(jax.device_get(self.sums))]
        return {
            "epoch": self.epoch,
            "done": self.done,
            "sums": sums if self.done else [],
            "metrics": sorted(self.sums),  # whose sums they are
            "history": list(self.history),
            "seconds": self.seconds,
            "settings": settings,
        }


def last_reached(
    checkpoints: Checkpoints | None, start: Reached, settings: dict[str, Any], epochs: int
) -> Reached:
    """What the newest checkpoint has; `start` where there is none.

    Raises:
      ValueError: it is of a run with other settings, of another state, or of more epochs; or the
        folder is in use, or cannot be written to.
    """
    if checkpoints is None:
        return start
    checkpoints.open()  # what is in use, or cannot be written to, is not trained for
    found = checkpoints.restore(start.state)
    if found is None:
        return start
    before = found.notes.get("settings")
    if not isinstance(before, dict) or "done" not in found.notes:
        raise ValueError(f"{checkpoints.folder} holds checkpoints that fit did not write")
    done = found.notes["done"]
    if done:  # sums over a part of an epoch go on only as sums of the same
        before = {**before, "metrics": found.notes["metrics"]}
        settings = {**settings, "metrics": sorted(start.sums)}
    other = [n for n in {**settings, **before} if not _alike(settings.get(n), before.get(n))]
    if other and not checkpoints.override:
        name = other[0]
        raise ValueError(
            f"{HOW.get(name, name)} must be as in the run that {checkpoints.folder} holds: "
            f"{before.get(name)}, got {settings.get(name)}"
        )
    # With other batches, how many of them have been is nothing to go by: that epoch begins anew.
    epoch, done = found.notes["epoch"], 0 if other else done
    if epoch + (done > 0) > epochs:
        raise ValueError(
            f"epochs must be at least {epoch + (done > 0)}, as many as {checkpoints.folder} has, "
            f"got {epochs}"
        )
    sums = start.sums
    if done:
        leaves, structure = jax.tree.flatten(sums)
        parts = zip(found.notes["sums"], leaves, strict=True)
        sums = structure.unflatten([np.asarray(x, leaf.dtype) for x, leaf in parts])
    history = tuple(found.notes["history"])
    return Reached(found.state, sums, epoch, done, history, found.notes["seconds"])


def _alike(one: Any, other: Any) -> bool:
    """Whether two settings are the same; NaN, which may stand anywhere within, is as NaN."""
    return one == other or json.dumps(one) == json.dumps(other)


@functools.partial(jax.jit, static_argnums=1)
def _all_finite(leaves: list[Any], axes: int) -> Any:
    one = trees.all_finite
    for _ in range(axes):
        one = jax.vmap(one)
    return jnp.stack([one(leaf) for leaf in leaves]).all(0)


def _finite(params: PyTree, axes: int) -> Any:
    """Whether all numbers are; with an axis of members, of each."""
    leaves = [x for x in jax.tree.leaves(params) if hasattr(x, "dtype") and trees.is_float(x)]
    return not leaves or np.asarray(_all_finite(leaves, axes))
