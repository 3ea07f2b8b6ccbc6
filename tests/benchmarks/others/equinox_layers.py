"""Layers of `equinox.nn`, each made and called."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import numpy as np
from equinox import nn

from tests.benchmarks.others.call import POINTS, Call, Calls, Table, excuse, normal
from tests.benchmarks.others.names import classes

KEY, X = jax.random.key(0), normal(4)


def layer(module: Any, *inputs: Any, **options: Any) -> Call:
    """The arrays of a module as an argument."""
    arrays, static = eqx.partition(module, eqx.is_array)

    def apply(_: Any, arrays: Any, *inputs: Any) -> Any:
        return eqx.combine(arrays, static)(*inputs, **options)

    return Call((arrays, *inputs), {}, apply)


def with_state(made: Any, *inputs: Any, batched: bool = False) -> Call:
    """A module that keeps state, which is an argument too."""
    module, state = made
    arrays, static = eqx.partition(module, eqx.is_array)

    def apply(_: Any, arrays: Any, state: Any, *inputs: Any) -> Any:
        run = eqx.combine(arrays, static)
        if batched:
            run = jax.vmap(run, axis_name="batch", in_axes=(0, None), out_axes=(0, None))
        return run(*inputs, state)[0]

    return Call((arrays, state, *inputs), {}, apply)


def calls() -> Calls:
    """One row for each layer."""
    inputs = {1: normal(2, 6), 2: normal(2, 6, 6), 3: normal(2, 4, 4, 4)}
    made: Calls = {}
    for n, x in inputs.items():
        made[f"Conv{n}d"] = [layer(getattr(nn, f"Conv{n}d")(2, 3, 3, key=KEY), x)]
        made[f"ConvTranspose{n}d"] = [layer(getattr(nn, f"ConvTranspose{n}d")(2, 3, 3, key=KEY), x)]
        for kind in ("Avg", "Max"):
            made[f"{kind}Pool{n}d"] = [layer(getattr(nn, f"{kind}Pool{n}d")(2, 2), x)]
            made[f"Adaptive{kind}Pool{n}d"] = [layer(getattr(nn, f"Adaptive{kind}Pool{n}d")(2), x)]
    state = nn.make_with_state
    h = normal(3), normal(3)
    shared = nn.Linear(4, 4, key=KEY)
    return made | {
        "AdaptivePool": [layer(nn.AdaptivePool(2, 1, jax.numpy.mean), inputs[1])],
        "BatchNorm": [
            with_state(state(nn.BatchNorm)(4, "batch", mode=mode), normal(5, 4), batched=True)
            for mode in ("batch", "ema")
        ],
        "Conv": [layer(nn.Conv(2, 2, 3, 3, key=KEY), inputs[2])],
        "ConvTranspose": [layer(nn.ConvTranspose(2, 2, 3, 3, key=KEY), inputs[2])],
        "Dropout": [layer(nn.Dropout(0.5), X, key=KEY)],
        "Embedding": [layer(nn.Embedding(5, 3, key=KEY), np.array(2))],
        "GRUCell": [layer(nn.GRUCell(4, 3, key=KEY), X, h[0])],
        "GroupNorm": [layer(nn.GroupNorm(2, 4), normal(4, 3))],
        "Identity": [layer(nn.Identity(), X)],
        "LSTMCell": [layer(nn.LSTMCell(4, 3, key=KEY), X, h)],
        "Lambda": [layer(nn.Lambda(jax.nn.relu), X)],
        "LayerNorm": [layer(nn.LayerNorm(4), X)],
        "Linear": [layer(nn.Linear(4, 3, key=KEY), X)],
        "MLP": [layer(nn.MLP(4, 3, 8, 2, key=KEY), X)],
        "MultiheadAttention": [layer(nn.MultiheadAttention(2, 4, key=KEY), *(normal(5, 4),) * 3)],
        "PReLU": [layer(nn.PReLU(), POINTS)],
        "Pool": [layer(nn.Pool(-np.inf, jax.lax.max, 1, 2, 2), inputs[1])],
        "RMSNorm": [layer(nn.RMSNorm(4), X)],
        "RotaryPositionalEmbedding": [layer(nn.RotaryPositionalEmbedding(4), normal(5, 4))],
        "Sequential": [layer(nn.Sequential([shared, nn.Lambda(jax.nn.relu), shared]), X)],
        "Shared": [layer(nn.Shared((shared, shared), lambda m: m[1], lambda m: m[0])()[0], X)],
        "SpectralNorm": [with_state(state(nn.SpectralNorm)(shared, "weight", key=KEY), X)],
        "WeightNorm": [layer(nn.WeightNorm(shared), X)],
    }


EXCUSED = excuse(holds_state_and_computes_nothing="State StateIndex StatefulLayer")


def tables() -> list[Table]:
    """Layers; and two functions for debugging that have rules of their own."""
    beside: Calls = {
        "error_if": [Call((X,), {}, lambda f, x: f(x, x.sum() > 1e9, "too large"))],
        "debug.backward_nan": [Call((X,), {}, lambda _, x: eqx.debug.backward_nan(x))],
        "internal.nextafter": [Call((X,), {}, lambda _, x: eqx.internal.nextafter(x))],
        "internal.prevbefore": [Call((X,), {}, lambda _, x: eqx.internal.prevbefore(x))],
        "internal.while_loop": [
            Call(
                (X,),
                {},
                lambda _, x, kind=kind: eqx.internal.while_loop(
                    lambda s: s[0] < 3,
                    lambda s: (s[0] + 1, s[1] * 1.5),
                    (0, x),
                    kind=kind,  # pyright: ignore[reportArgumentType]
                    max_steps=4,
                )[1],
            )
            for kind in ("lax", "bounded", "checkpointed")
        ],
    }
    return [
        Table("equinox.nn", nn, calls(), classes(nn, eqx.Module), EXCUSED),
        Table("equinox", eqx, beside, ["error_if"], {}),
    ]
