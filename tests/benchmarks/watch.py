"""What `fit(..., watch=)` costs: a look and ten updates in turns, in one process.

python -m tests.benchmarks.watch
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax

import funprop as fp
from tests.benchmarks.harness import header, ratio

SOME = 10  # updates, with which a look is compared
draw = np.random.default_rng(0)


def mlp():
    x = draw.normal(size=(128, 64)).astype(np.float32)
    y = draw.integers(0, 10, len(x))
    return fp.objective(fp.mlp(256, 256, 10), fp.softmax_cross_entropy()), (x, y), 128


def cnn():
    x = draw.normal(size=(64, 8, 8, 1)).astype(np.float32)
    y = draw.integers(0, 10, len(x))
    return fp.objective(fp.cnn(10, widths=(8, 16)), fp.softmax_cross_entropy()), (x, y), 64


def gpt():
    tokens = draw.integers(0, 256, (4, 65))
    model = fp.gpt(256, features=64, depth=2, heads=4, longest=64)
    data = jnp.asarray(tokens[:, :-1]), jnp.asarray(tokens[:, 1:])
    return fp.language_model(model, 256), data, 4


def share(make):
    """A look's part of the time of the updates between two, and the noise of an update."""
    objective, data, size = make()
    train = fp.step(fp.backprop(objective), optax.adam(1e-3))
    batch = jax.tree.map(lambda leaf: jnp.asarray(leaf[:size]), data)
    held = [train.init(objective.init(jax.random.key(0), batch), jax.random.key(1))]
    seen = fp.watch()

    def some():
        for _ in range(SOME):
            held[0], metrics = train.update(held[0], batch)
        return metrics

    def look():
        return seen.look(train, held[0], batch, 0.0, 0).epoch

    jax.block_until_ready((some(), look()))
    ours, noise = ratio(look, some, pairs=15)
    return ours.median * SOME / seen.every, noise


if __name__ == "__main__":
    header()
    with jax.numpy_dtype_promotion("standard"):
        for make in (mlp, cnn, gpt):
            found, noise = share(make)
            every = fp.watch().every
            print(f"{make.__name__}: a look every {every} updates {found:.2%} (noise {noise})")
