"""Digits (64-128-64-10, relu, batch 64, Adam 1e-3, 30 epochs): accuracy over five seeds, and the
hand-written run against autodiff, update by update.

Targets: mean test accuracy at least 97%; loss traces over the first epoch equal within float32
rounding. Run: python -m tests.benchmarks.digits_accuracy
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax

import funprop as fp
from funprop.gradients import GradFn
from funprop.train.data.in_memory import epoch_rows
from funprop.train.runs.tasks import task
from tests.benchmarks.harness import header
from tests.benchmarks.models import ours

SIZES, BATCH, EPOCHS = (128, 64, 10), 64, 30


def accuracy(seed: int) -> float:
    """Test accuracy after training from this seed."""
    digits, model = task("digits"), ours(SIZES).children[0]
    objective = fp.objective(model, fp.softmax_cross_entropy(), accuracy=fp.accuracy)
    grad_fn = fp.backprop(objective)
    train = fp.step(grad_fn, optax.adam(1e-3))
    state = train.init(objective.init(jax.random.key(seed), digits.train), None)
    result = fp.fit(
        train, state, digits.train, epochs=EPOCHS, batch_size=BATCH, seed=seed, progress=None
    )
    return float(fp.measure(grad_fn)(result.state.params, digits.test)["accuracy"].mean)


def trace(grad_fn: GradFn, params: object) -> np.ndarray:
    """The loss of every update of the first epoch."""
    digits = task("digits")
    rows = epoch_rows(len(digits.train[0]), BATCH, seed=0, epoch=0, last="drop")
    many = fp.scan(fp.step(grad_fn, optax.adam(1e-3)))
    batches = tuple(jnp.asarray(part)[rows] for part in digits.train)
    _, metrics = many.update(many.init(params, None), batches)
    return np.asarray(metrics["loss"].mean)


def main() -> None:
    """Print both."""
    header()
    scores = [accuracy(seed) for seed in range(5)]
    print("test accuracy by seed:", ", ".join(f"{score:.2%}" for score in scores))
    print(f"mean {np.mean(scores):.2%} (target: at least 97%)")

    objective = ours(SIZES)
    params = objective.init(jax.random.key(0), task("digits").train)
    by_hand = trace(fp.backprop(objective), params)
    for name, grad_fn in (
        ("autodiff of every layer", fp.backprop(fp.map_layers(fp.autodiff, objective))),
        ("jax.value_and_grad", fp.from_loss(lambda p, batch: objective.forward(p, batch)[0])),
    ):
        other = trace(grad_fn, params)
        print(
            f"loss over the first epoch ({len(by_hand)} updates), by hand against {name}: "
            f"largest relative difference {np.max(np.abs(by_hand / other - 1)):.1e}"
        )


if __name__ == "__main__":
    main()
