"""The door: a step, a state and a batch in, a report out."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from funprop.checks import check_function, described, require_key
from funprop.verify.training.batches import Examples
from funprop.verify.training.carried import carried
from funprop.verify.training.case import UPDATES, Case, NotAsked
from funprop.verify.training.drawing import drawing, replay
from funprop.verify.training.gradient import gradient
from funprop.verify.training.kept import average, precision
from funprop.verify.training.layout import is_array, of_state, wide
from funprop.verify.training.moving import frozen, moves, state
from funprop.verify.training.orders import order, short, twice
from funprop.verify.training.padding import padding
from funprop.verify.training.parts import devices, microbatches
from funprop.verify.training.report import StepCheck, StepReport
from funprop.verify.training.running import Steps, copied, is_real
from funprop.verify.training.stored import USED, donation, is_gone, restore
from funprop.verify.training.telling import metrics, nonfinite

CHECKS: dict[str, Callable[[Case], Iterator[StepCheck]]] = {
    "state": state,
    "moves": moves,
    "frozen": frozen,
    "carried": carried,
    "gradient": gradient,
    "order": order,
    "twice": twice,
    "short": short,
    "padding": padding,
    "microbatches": microbatches,
    "devices": devices,
    "replay": replay,
    "draws": drawing,
    "metrics": metrics,
    "nan": nonfinite,
    "average": average,
    "precision": precision,
    "restore": restore,
    "donation": donation,
}


def verify_step(
    update: Callable[..., Any],
    state: Any,
    batch: Any,
    *,
    key: Any = None,
    params: Callable[[Any], Any] | None = None,
    loss_fn: Callable[..., Any] | None = None,
    optimizer: Any = None,
    frozen: Any = None,
    mask: Callable[[Any], Any] | None = None,
    average: Callable[[Any], Any] | None = None,
    microbatches: Callable[[int], Callable[..., Any]] | None = None,
    devices: Callable[[int], Callable[..., Any]] | None = None,
    restore: Callable[[Any], Any] | None = None,
    reduction: str = "mean",
    guarded: bool = False,
    axis: int = 0,
    skip: tuple[str, ...] = (),
    seed: int = 0,
) -> StepReport:
    """Judge a whole training step, of any library, by laws that its updates must hold.

    Whether the gradient is that of the loss, whether order, padding and the cut into parts have a
    say, whether params, moments and counts go on, what is drawn, told and restored:
    docs/verify-step.md lists the checks. What cannot be asked is said, with the reason. How
    close two updates must be is measured: by how much the step varies where inputs are rounded.

    Args:
      update: `(state, batch) -> state` or `(state, metrics)`; with `key`, `(state, batch, key)`.
      state: any pytree; the update is given copies.
      batch: any pytree of arrays with the examples along `axis`, a small one: it is compiled for a
        few other numbers of examples.
      key: a random key for steps that take one at each call.
      params: `state -> params`; by default the state's `params`, or the first of a tuple, or all.
      loss_fn: `(params, batch) -> loss`, or with a key as third, what the step should minimise: a
        mean; of a tuple the first.
      optimizer: the optax transform, whose state is found in the step's: with it and `loss_fn` the
        new params and moments are known, to rounding.
      frozen: params that must not move: a pattern of names such as `"encoder/*"`, a tree like
        params of booleans, or a function of params that gives one.
      mask: `batch -> array`, zero where there is padding; best a leaf of the batch as it stands.
      average: `state -> ` the average of params that the step keeps.
      microbatches: `n -> update` that cuts its batch into `n` parts.
      devices: `n -> update` that runs on `n` devices; by default the batch is shared out by XLA.
      restore: `state -> state` stored and loaded, by the user's own way; by default through NumPy.
      reduction: `"sum"` where the loss is meant to be summed over examples.
      guarded: whether the step is meant to survive a NaN.
      axis: of the examples.
      skip: names of checks to leave out.
      seed: of orders, and of what masked places are filled with.

    Raises:
      TypeError: `update` is no function, gives no state like the one it takes, or `params` chooses
        what is not in the state.
      ValueError: `skip` names no check, there are no params, or an update gives NaN or infinity.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> def loss_fn(w, batch):
      ...     return jnp.mean((batch["x"] @ w - batch["y"]) ** 2)
      >>> def update(state, batch):
      ...     grads = jax.grad(loss_fn)(state["params"], batch)
      ...     return {"params": state["params"] + 0.1 * grads}  # up the hill
      >>> batch = {"x": jnp.arange(8.0).reshape(4, 2) / 8, "y": jnp.ones(4)}
      >>> report = verify_step(update, {"params": jnp.ones(2) / 3}, batch,
      ...                      loss_fn=loss_fn, optimizer=optax.sgd(0.1))
      >>> [(finding.name, finding.problem) for finding in report.findings]
      [('gradient', 'the update has the wrong sign: it goes up the loss')]
    """
    check_function("update", update, "(state, batch) or (state, batch, key)")
    if key is not None:
        require_key(key)
    options = {"params": params, "loss_fn": loss_fn, "mask": mask, "average": average,
               "microbatches": microbatches, "devices": devices, "restore": restore}  # fmt: skip
    for name, given in options.items():
        if given is not None:
            check_function(name, given, "as it is described")
    if optimizer is not None and not hasattr(optimizer, "update"):
        raise TypeError(f"optimizer must be an optax transform, got {described(optimizer)}")
    if reduction not in ("mean", "sum"):
        raise ValueError(f'reduction must be "mean" or "sum", got {described(reduction)}')
    skip = (skip,) if isinstance(skip, str) else tuple(skip)
    if unknown := [name for name in skip if name not in CHECKS]:
        raise ValueError(
            f"skip must hold names of checks ({', '.join(CHECKS)}), got {unknown[0]!r}"
        )
    as_given = of_state(state, params, frozen).arrays(state)
    # One array at two places of a state is two arrays behind the first update.
    state = jax.tree.map(lambda leaf: copied(leaf) if is_array(leaf) else leaf, state)
    layout = of_state(state, params, frozen)
    if 0 in [np.shape(x)[axis] for x in jax.tree.leaves(batch) if np.ndim(x) > axis]:
        raise ValueError(f"batch must hold examples along axis {axis}, got none")
    arrays = layout.arrays(state)
    said = {**options, "optimizer": optimizer, "reduction": reduction, "guarded": guarded}
    said["arrays"] = as_given
    steps = Steps(update, layout, key, axis)
    with jax.default_matmul_precision("highest"), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Some donated buffers")
        try:
            path, told = followed(steps, arrays, batch)
        except jax.errors.UnexpectedTracerError:
            return StepReport((StepCheck("replay", _LEAKED),))
        except DivergedError as diverged:
            case = Case(steps, *diverged.so_far, Examples(batch, axis), said, seed)
            if found := causes(case, skip):
                return StepReport(found)
            raise
        except (RuntimeError, ValueError) as error:
            if not is_gone(error):
                raise
            return StepReport((StepCheck("donation", USED),))
        case = Case(steps, path, told, Examples(batch, axis), said, seed)
        chosen = {name: check for name, check in CHECKS.items() if name not in skip}
        rows = [row for name, check in chosen.items() for row in asked(name, check, case)]
    return StepReport(tuple(without_chance(rows)))


def without_chance(rows: list[StepCheck]) -> list[StepCheck]:
    """The rows; where a step that is run again gives another update, without what compares two."""
    if not any(row.name == "replay" and row.problem for row in rows):
        return rows
    return [
        StepCheck(row.name, unasked=_CHANCE) if row.problem and row.name in COMPARING else row
        for row in rows
    ]


COMPARING = ("gradient", "order", "twice", "short", "padding", "microbatches", "devices", "metrics")

_CHANCE = "the same update gives something else each time: see replay"

_LEAKED = (
    "something of an update is kept outside of the state (a key, a generator, a list of metrics): "
    "compiled, that is a tracer that has leaked, and it is lost where a run is resumed"
)


class DivergedError(ValueError):
    """A param is not finite any more: `so_far`, the states before that, and what was told."""

    def __init__(self, sentence: str, so_far: tuple[list[list[Any]], list[Any]]):
        super().__init__(sentence)
        self.so_far = so_far


def followed(steps: Steps, arrays: list[Any], batch: Any) -> tuple[list[list[Any]], list[Any]]:
    """The states that a step goes through on one batch, and what it tells on the way.

    Raises:
      DivergedError: a param is not finite any more, at the second update or later.
      ValueError: it is not at the first.
    """
    path, told = [[copied(leaf) for leaf in arrays]], []
    for i in range(UPDATES):
        result = steps.given(path[-1], batch, steps.key_of(i))
        path.append(result.arrays)
        told.append(result.metrics)
        for place in steps.layout.params:
            if is_real(result.arrays[place]) and not np.isfinite(wide(result.arrays[place])).all():
                sentence = (
                    f"{steps.layout.paths[place]} must stay finite on this batch, got NaN or "
                    f"infinity after {i + 1} updates: give a batch that it can be trained on"
                )
                if i == 0:
                    raise ValueError(sentence)
                raise DivergedError(sentence, (path[:-1], told[:-1]))
    return path, told


def causes(case: Case, skip: tuple[str, ...]) -> tuple[StepCheck, ...]:
    """Why a step may have diverged: what is wrong with the first updates."""
    checks = {"gradient": gradient, "metrics": metrics}
    found = [r for name, c in checks.items() if name not in skip for r in asked(name, c, case)]
    return tuple(row for row in found if row.problem)


def asked(name: str, check: Callable[[Case], Iterator[StepCheck]], case: Case) -> list[StepCheck]:
    """The rows of one check: at least one, that it is right, or why it was not asked."""
    try:
        return list(check(case)) or [StepCheck(name)]
    except NotAsked as reason:
        return [StepCheck(name, unasked=str(reason))]
