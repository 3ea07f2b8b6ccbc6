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
from funprop.verify import Check, verify

VERIFIED_EXAMPLES = 8


def verify_task(whole: Any, params: Any, chosen: Task) -> None:
    """Check every layer's backward, and all of them in a chain, on the first examples in float64;
    print a row each. The combinators between are judged by the chain alone: each of them by itself
    costs as much as the whole."""
    with jax.enable_x64(True):
        wide = few_in_float64(params, chosen)
        rows = {}
        for visit in compiled_visits(whole, *wide):
            if visit.layer.children:
                continue
            alone = verify(visit.layer, visit.params, visit.x)
            rows[visit.path] = tuple(
                check._replace(path=f"{visit.path}/{check.path}") for check in alone.checks
            )
        # Without its children in sight, the whole is judged as one: every backward in a chain.
        at_once = verify(dataclasses.replace(whole, children=(), rebuild=None), *wide)
    rows["all of them, chained"] = at_once.checks
    n = len(jax.tree.leaves(wide[1])[0])
    print(f"The backward pass of every layer, in float64, on {n} examples\n")
    print(_by_layer(rows))
    wrong = {name: checks for name, checks in rows.items() if any(c.problem for c in checks)}
    if wrong:
        for check in itertools.chain(*wrong.values()):
            if check.problem and (len(wrong) == 1 or check not in at_once.checks):
                print(f"\n{check.path}: {check.problem}")
        raise ValueError(f"nothing is trained, as a backward pass is wrong: {', '.join(wrong)}")
    print("\nEvery hand-written gradient is the derivative of its forward pass, to rounding.\n")


def few_in_float64(params: Any, chosen: Task) -> tuple[Any, Any]:
    """Params and the first examples, for `jax.enable_x64`."""
    some = jax.tree.map(lambda leaf: leaf[:VERIFIED_EXAMPLES], chosen.train)
    return jax.tree.map(
        lambda leaf: jnp.asarray(leaf, jnp.float64) if leaf.dtype == np.float32 else leaf,
        (params, some),
    )


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
