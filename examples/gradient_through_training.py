"""The gradient of a held-out loss with respect to the learning rate, through a whole training.

A step is a pure function, the hand-written backward pass inside it too: so a training is one, and
`jax.grad` goes through it. Here it goes through 40 updates of SGD, by a scan; is checked against
differences; and then the learning rate itself is learned by it.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax

import funprop as fp

UPDATES, BATCH = 40, 32


def data(key: jax.Array, n: int) -> tuple[jax.Array, jax.Array]:
    """A bent line with noise on it."""
    of_x, of_noise = jax.random.split(key)
    x = jax.random.uniform(of_x, (n, 1), minval=-2.0, maxval=2.0)
    return x, jnp.sin(2.0 * x) + 0.1 * jax.random.normal(of_noise, (n, 1))


MODEL = fp.objective(fp.serial(fp.dense(16), fp.tanh(), fp.dense(1)), fp.mean_squared())


def held_out_loss(log_rate: jax.Array, batches: object, held_out: object) -> jax.Array:
    """Train from the start with this learning rate; the loss on what was not trained on."""
    optimizer = optax.sgd(jnp.exp(log_rate))
    train = fp.step(fp.backprop(MODEL), optimizer)
    first = jax.tree.map(lambda leaf: leaf[0], batches)
    state = train.init(MODEL.init(jax.random.key(0), first), None)
    state, _ = jax.lax.scan(train.update, state, batches)
    loss, _ = MODEL.forward(state.params, held_out)
    return loss.mean


def main() -> None:
    """Print the gradient beside differences, then a few steps on the learning rate."""
    of_data, of_held_out = jax.random.split(jax.random.key(1))
    x, y = data(of_data, UPDATES * BATCH)
    batches = x.reshape(UPDATES, BATCH, 1), y.reshape(UPDATES, BATCH, 1)
    held_out = data(of_held_out, 256)
    value_and_grad = jax.jit(jax.value_and_grad(held_out_loss))
    loss = jax.jit(held_out_loss)

    print("learning rate  held-out loss   by jax.grad  by differences")
    for rate in (0.01, 0.05, 0.13):
        at, h = jnp.log(rate), 1e-5
        value, slope = value_and_grad(at, batches, held_out)
        by_differences = (loss(at + h, batches, held_out) - loss(at - h, batches, held_out)) / 2 / h
        print(f"{rate:13g}  {value:13.5f}  {slope:12.8f}  {by_differences:14.8f}")
        assert jnp.allclose(slope, by_differences, rtol=1e-6), (slope, by_differences)

    log_rate: Any = jnp.log(0.01)
    outer = optax.adam(0.1, b1=0.5)
    outer_state = outer.init(log_rate)
    print("\nThe learning rate, learned by that gradient:")
    for i in range(31):
        value, slope = value_and_grad(log_rate, batches, held_out)
        if i % 6 == 0:
            print(f"{jnp.exp(log_rate):8.4f}  held-out loss {value:.5f}")
        updates, outer_state = outer.update(slope, outer_state)
        log_rate = optax.apply_updates(log_rate, updates)


if __name__ == "__main__":
    with jax.enable_x64(True):  # differences need the digits
        main()
