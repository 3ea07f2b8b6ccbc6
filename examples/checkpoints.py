"""Two runs that may be killed at any moment: start this again and they go on, to the same bits.

One is by `fit`, the other a loop of one's own. What was reached is in the folder given, or in
runs/checkpoints-example.
"""

import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from sklearn.datasets import load_digits

import funprop as fp

DIGITS: Any = load_digits()
X, Y = (DIGITS.data / 16).astype(np.float32), DIGITS.target.astype(np.int32)
DATA, BATCH, UPDATES = (X, Y), 64, 3000
OBJECTIVE = fp.objective(fp.mlp(128, 64, 10), fp.softmax_cross_entropy(), accuracy=fp.accuracy)
TRAIN = fp.step(fp.backprop(OBJECTIVE), optax.adam(1e-3))


def start() -> fp.TrainState:
    """The state before the first update; of the structure that every checkpoint has."""
    return TRAIN.init(OBJECTIVE.init(jax.random.key(0), DATA), jax.random.key(1))


def by_fit(folder: Path) -> fp.TrainState:
    """`fit` saves and goes on by itself."""
    return fp.fit(TRAIN, start(), DATA, epochs=100, batch_size=BATCH, checkpoints=folder).state


def by_hand(folder: Path) -> fp.TrainState:
    """A loop of one's own: restore, update, save where one is due."""
    with fp.Checkpoints(folder, seconds=10, updates=1000, keep=2) as checkpoints:
        found = checkpoints.restore(start())
        state, done = (start(), 0) if found is None else (found.state, found.update)
        if done:
            print(f"going on after update {done:,}")
        for i in range(done, UPDATES):
            rows = np.random.default_rng([0, i]).integers(len(X), size=BATCH)  # by i alone
            state, _ = TRAIN.update(state, (X[rows], Y[rows]))
            if checkpoints.due(i + 1):
                checkpoints.save(state, i + 1)
        checkpoints.finish(state, UPDATES)
    return state


def main() -> None:
    """Both, one after the other."""
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/checkpoints-example")
    for name, run in (("fit", by_fit), ("loop", by_hand)):
        state = run(folder / name)
        found = fp.measure(fp.backprop(OBJECTIVE))(state.params, DATA)
        print(f"{name}: accuracy {float(found['accuracy'].mean):.3f} on what it was trained on\n")


if __name__ == "__main__":
    main()
