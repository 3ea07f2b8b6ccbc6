"""Averages of params, and params that are too narrow for their updates."""

from __future__ import annotations

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from funprop.trees import is_float
from funprop.verify.training.case import Case, NotAsked
from funprop.verify.training.layout import wide
from funprop.verify.training.report import StepCheck, percent


def average(case: Case) -> Iterator[StepCheck]:
    """An average of params lies between the params that it averages."""
    get = case.said["average"]
    if get is None:
        raise NotAsked("say where the average of the params is: average=, state -> params")
    made = jax.tree.leaves(get(case.layout.state(case.path[-1])))
    made = [leaf for leaf in made if hasattr(leaf, "dtype") and is_float(leaf)]
    params = list(case.layout.params)
    if len(made) != len(params):
        params = list(case.layout.trained)
    if len(made) != len(params):
        raise NotAsked(f"average= gives {len(made)} leaves, there are {len(params)} params")
    for i, leaf in zip(params, made, strict=True):
        seen = np.stack([wide(arrays[i]) for arrays in case.path])
        low, high, value = seen.min(0), seen.max(0), wide(leaf)
        eps = max(float(jnp.finfo(x.dtype).eps) for x in (leaf, case.here[i]))
        slack = 16 * eps * np.abs(seen).max(0)
        out = np.maximum(low - slack - value, value - high - slack)
        if (out > 0).any():
            k = np.unravel_index(np.argmax(out), out.shape)
            share = float(value[k] / seen[-1][k]) if seen[-1][k] else 0.0
            near = 0 < share < 1 and np.abs(value).sum() < np.abs(low + high).sum() / 2
            cause = (
                f", at {percent(share)} of them: it started at zero and is not corrected for that"
                if near
                else ""
            )
            said = f"the average of {case.layout.paths[i]} lies outside of all that it averages"
            yield StepCheck("average", said + cause, leaf=case.layout.paths[i])
            return


def precision(case: Case) -> Iterator[StepCheck]:
    """Params in a narrow dtype do not swallow their updates."""
    narrow = [i for i in case.layout.trained if jnp.finfo(case.here[i].dtype).bits < 32]
    if not narrow:
        raise NotAsked("no param is narrower than float32")
    arrays = [a.astype(jnp.float32) if i in narrow else a for i, a in enumerate(case.here)]
    try:
        free = case.steps.fresh().quiet(arrays, case.examples.batch)
    except Exception as error:  # whatever a step of somebody raises
        reason = str(error).strip().split("\n")[0][:80]
        raise NotAsked(f"the step does not take params in float32: {reason}") from None
    new = case.run(case.examples.batch)
    for i in narrow:
        want = wide(free.arrays[i]) - wide(case.here[i])
        got = wide(new.arrays[i]) - wide(case.here[i])
        small = np.abs(want) < float(jnp.finfo(case.here[i].dtype).eps) / 4 * np.abs(
            wide(case.here[i])
        )
        lost = (want != 0) & (got == 0) & small
        if np.mean(lost) > 0.5:
            yield StepCheck(
                "precision",
                f"{percent(float(np.mean(lost)))} of {case.layout.paths[i]} does not change: "
                f"updates are below half a unit in the last place of {case.here[i].dtype}; keep "
                "params in float32, or round at random",
                leaf=case.layout.paths[i],
            )
            return
