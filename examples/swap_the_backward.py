"""Handwritten digits, learnt by backward passes that are not the gradient.

    python examples/swap_the_backward.py PICTURE.png

Every model has the same layers. Of each epoch: the loss, the accuracy on digits that it has not
seen, and the angle between the direction that it goes and the true gradient: of the same network at
the same params, or, where forward rounds or fires and so has none, of one that does so smoothly.
"""

import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import funprop as fp
from funprop.train.runs.tasks import task

WIDTH, STEPS, BATCH = 64, 8, 64


def blocks() -> list[fp.Layer]:
    """Two hidden layers and a last one."""
    hidden = [fp.serial(fp.dense(WIDTH), fp.tanh()) for _ in range(2)]
    return [*hidden, fp.dense(10)]


def plain() -> fp.Layer:
    return fp.serial(*blocks())


def over_time() -> fp.Layer:
    """The pixels as currents, the same at every step."""
    return fp.from_function(
        lambda key, x: (), lambda params, x: jnp.repeat(x[:, None], STEPS, 1), "over_time"
    )


def spiking(neuron: Callable[[], fp.Layer]) -> fp.Layer:
    """The same layers, each with a neuron that runs over time; the classes vote over all steps."""
    hidden = [fp.serial(fp.dense(WIDTH), neuron()) for _ in range(2)]
    return fp.serial(over_time(), *hidden, fp.dense(10), fp.global_average_pool())


def soft() -> fp.Layer:
    """Neurons as those of `lif`, of which a part fires: a sigmoid with slope 1 at the threshold."""

    def fired(params: tuple[()], x: jax.Array) -> jax.Array:
        def step(state: Any, x: jax.Array) -> Any:
            v, s = state
            v = 0.9 * v + x - s
            s = jax.nn.sigmoid(4 * (v - 1))
            return (v, s), s

        zero = jnp.zeros_like(x[:, 0])
        return jax.lax.scan(step, (zero, zero), x.swapaxes(0, 1))[1].swapaxes(0, 1)

    return fp.from_function(lambda key, x: (), fired, "lif")


# By name: the model, and the model whose gradient is the true one, if it is another.
MODELS: dict[str, tuple[fp.Layer, fp.Layer | None]] = {
    "backprop": (plain(), None),
    "feedback alignment": (fp.feedback_alignment(plain()), None),
    "sign-symmetric": (fp.sign_symmetric(plain()), None),
    "direct feedback": (fp.direct_feedback(*blocks()), None),
    **{
        f"{to} weights": (fp.quantised(plain(), to), plain())
        for to in ("binary", "ternary", "int8", "fp8")
    },
    # Pixels, which are never negative, stay.
    "binary weights, inputs": (
        fp.quantised(plain(), "binary", ("serial_1", "dense"), inputs="binary"),
        plain(),
    ),
    "spiking, fast sigmoid": (spiking(fp.lif), spiking(soft)),
    "spiking, arctan": (spiking(lambda: fp.lif(surrogate="arctan")), spiking(soft)),
}


def angle(a: Any, b: Any) -> float:
    """In degrees, between two trees of numbers."""
    a, b = (np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(t)]) for t in (a, b))
    cosine = a @ b / np.linalg.norm(a) / np.linalg.norm(b)
    return float(np.degrees(np.arccos(np.clip(cosine, -1, 1))))


def run(model: fp.Layer, smooth: fp.Layer | None, epochs: int) -> list[dict[str, float]]:
    """A row for each epoch."""
    digits = task("digits")
    loss = fp.softmax_cross_entropy()
    objective = fp.objective(model, loss, accuracy=fp.accuracy)
    training = fp.step(fp.backprop(objective), optax.adam(2e-3))
    state = training.init(objective.init(jax.random.key(0), digits.train), jax.random.key(1))
    own = jax.jit(fp.backprop(objective))
    # `autodiff` of the whole: no backward inside it is run.
    true = jax.jit(fp.backprop(fp.autodiff(fp.objective(smooth or model, loss))))
    some = jax.tree.map(lambda leaf: leaf[:256], digits.train)
    angles: list[float] = []

    def watched(row: Any, state: Any) -> None:
        angles.append(angle(own(state.params, some).grads, true(state.params, some).grads))

    watched(None, state)
    result = fp.fit(
        *(training, state, digits.train),
        epochs=epochs,
        batch_size=BATCH,
        held_out=digits.test,
        progress=None,
        callbacks=[watched],
    )
    return [dict(row) | {"angle": a} for row, a in zip(result.history, angles[1:], strict=True)]


def main(picture: str, epochs: int = 25) -> None:
    """Train all, print a table and draw the curves."""
    runs = {name: run(*models, epochs) for name, models in MODELS.items()}
    print(f"{'':26}{'loss':>8}{'unseen':>9}{'first':>8}{'last':>7}  (angle, degrees)")
    for name, rows in runs.items():
        first, last = rows[0], rows[-1]
        print(
            f"{name:26}{last['loss']:8.4f}{last['held_out/accuracy']:9.1%}"
            f"{first['angle']:8.1f}{last['angle']:7.1f}"
        )
    drawn(runs, picture)


def drawn(runs: dict[str, list[dict[str, float]]], path: str) -> None:
    """Losses and angles over epochs, a row of panels for each kind of swap."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    names = list(runs)
    kinds = {
        ("feedback", "the true gradient"): names[1:4],
        ("rounding", "the gradient without rounding"): names[4:9],
        ("spikes", "the gradient of soft spikes"): names[9:],
    }
    figure, axes = plt.subplots(3, 2, figsize=(10, 10), sharex=True, layout="constrained")
    for ((kind, of), members), (left, right) in zip(kinds.items(), axes, strict=True):
        for name in ("backprop", *members):
            style = {"color": "black", "linestyle": "--", "zorder": 3} if name == "backprop" else {}
            epochs = range(1, len(runs[name]) + 1)
            left.semilogy(epochs, [row["loss"] for row in runs[name]], label=name, **style)
            right.plot(epochs, [row["angle"] for row in runs[name]], label=name, **style)
        left.set(title=f"{kind}: loss in training", ylabel="cross-entropy")
        right.set(title=f"{kind}: angle to {of}", ylabel="degrees", ylim=(-3, 125))
        right.axhline(90, color="gray", linestyle=":")
        left.legend(frameon=False, fontsize=8)
    for axis in axes.flat:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.3)
    for axis in axes[-1]:
        axis.set_xlabel("epoch")
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "swap-the-backward.png")
