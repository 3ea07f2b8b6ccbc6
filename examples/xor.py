"""XOR, the problem that a network without a hidden layer cannot solve."""

import jax
import jax.numpy as jnp
import optax

import funprop as fp

INPUTS = jnp.array([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
TARGETS = jnp.array([0, 1, 1, 0])


def main() -> None:
    """Train until the loss is small, then print the truth table."""
    model = fp.serial(fp.dense(4), fp.tanh(), fp.dense(1), fp.reshape())
    objective = fp.objective(model, fp.binary_cross_entropy(), accuracy=fp.binary_accuracy)
    train = fp.step(fp.backprop(objective), optax.sgd(0.5))
    state = train.init(objective.init(jax.random.key(0), (INPUTS, TARGETS)), None)

    result = fp.fit(
        train,
        state,
        (INPUTS, TARGETS),
        epochs=5000,
        batch_size=4,
        stop=[fp.at_most("loss", 0.02)],
    )
    logits, _ = model.forward(result.state.params, INPUTS)
    print("\na b | a xor b | the network says")
    for (a, b), target, p in zip(INPUTS, TARGETS, jax.nn.sigmoid(logits), strict=True):
        print(f"{a:.0f} {b:.0f} |    {target}    | {p:.3f}")


if __name__ == "__main__":
    main()
