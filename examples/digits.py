"""Handwritten digits the library's way: a model, an objective, a step, a fit."""

import jax
import optax

import funprop as fp
from funprop.train.runs.tasks import task


def main() -> None:
    """Train a network and report its accuracy on digits that it has not seen."""
    digits = task("digits")
    model = fp.serial(
        fp.dense(128), fp.relu(), fp.dropout(0.2), fp.dense(64), fp.relu(), fp.dense(10)
    )
    objective = fp.objective(model, fp.softmax_cross_entropy(), accuracy=fp.accuracy)
    grad_fn = fp.backprop(objective)  # by hand; fp.from_loss(...) would take jax.grad
    train = fp.step(grad_fn, optax.adam(optax.cosine_decay_schedule(2e-3, 900)))

    init_key, train_key = jax.random.split(jax.random.key(0))
    params = objective.init(init_key, digits.train)
    print(fp.summary(model, digits.train[0][:64]), "\n")
    result = fp.fit(
        train,
        train.init(params, train_key),
        digits.train,
        epochs=40,
        batch_size=64,
        held_out=digits.test,
        stop=[fp.patience("held_out/loss", 15)],
    )
    print(f"\naccuracy on unseen digits: {result.history[-1]['held_out/accuracy']:.2%}")


if __name__ == "__main__":
    main()
