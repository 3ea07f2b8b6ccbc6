"""The backward pass of a task's model, verified before it is trained."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from funprop.inspect.table import aligned
from funprop.inspect.visits import compiled_visits
from funprop.train.task import Task
from funprop.verify import Check, Report, verify

VERIFIED_EXAMPLES = 8


def verify_task(whole: Any, params: Any, chosen: Task) -> None:
    """Check every layer's backward, and all of them in a chain, on the first examples in float64;
    print a row each. The combinators between are judged by the chain alone: each of them by itself
    costs as much as the whole."""
    some = jax.tree.map(lambda leaf: leaf[:VERIFIED_EXAMPLES], chosen.train)
    n = len(jax.tree.leaves(some)[0])
    with jax.enable_x64(True):
        wide = jax.tree.map(
            lambda leaf: jnp.asarray(leaf, jnp.float64) if leaf.dtype == np.float32 else leaf,
            (params, some),
        )
        rows, notes = {}, ()
        for visit in compiled_visits(whole, *wide):
            if visit.layer.children:
                continue
            alone = verify(visit.layer, visit.params, visit.x)
            rows[visit.path] = tuple(
                check._replace(path=f"{visit.path}/{check.path}") for check in alone.checks
            )
            notes += alone.notes
        # Without its children in sight, the whole is judged as one: every backward in a chain.
        at_once = verify(dataclasses.replace(whole, children=(), rebuild=None), *wide)
    rows["all of them, chained"] = at_once.checks
    print(f"The backward pass of every layer, in float64, on {n} examples\n")
    print(_by_layer(rows))
    report = Report(tuple(itertools.chain(*rows.values())), notes + at_once.notes)
    report.raise_if_wrong()
    print("\nEvery hand-written gradient is the derivative of its forward pass, to rounding.\n")


def _by_layer(groups: dict[str, tuple[Check, ...]]) -> str:
    rows = [("layer", "gradients", "off the truth by", "allowed", "")]
    for layer, checks in groups.items():
        rows.append(
            (
                layer,
                ", ".join(c.path.removeprefix(f"{layer}/") for c in checks)
                if len(checks) < 4
                else "all params and inputs",
                f"{max(c.error for c in checks):.1e}",
                f"{max(c.allowed for c in checks):.1e}",
                "WRONG" if any(c.problem for c in checks) else "ok",
            )
        )
    lines = aligned(rows, left=(0, 1, 4))
    return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])
