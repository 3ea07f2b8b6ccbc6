"""The four stages of backpropagation, spelled out: forward pass, loss, backward pass, update."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

import funprop as fp
from funprop.train.runs.tasks import task
from funprop.typing import Array, PyTree

LEARNING_RATE, EPOCHS, BATCH = 0.1, 20, 32

model = fp.serial(fp.dense(64), fp.relu(), fp.dense(10))
loss = fp.softmax_cross_entropy()
optimizer = optax.sgd(LEARNING_RATE)

digits = task("digits")
(inputs, labels), (test_inputs, test_labels) = digits.train, digits.test


@jax.jit
def forward_pass(params: PyTree, x: PyTree) -> PyTree:
    return model.forward(params, x)  # the outputs, and what backward will need


@jax.jit
def loss_of(outputs: Array, y: PyTree) -> PyTree:
    return loss.forward((), (outputs, y))  # a sum over the batch, and its weight


@jax.jit
def backward_pass(params: PyTree, kept: PyTree, kept_by_loss: PyTree, weight: Array) -> PyTree:
    # The chain rule from the output to the input, for the mean: so it starts at 1 / weight.
    start = fp.Sum(1 / weight, jnp.zeros_like(weight))
    _, (doutputs, _) = loss.backward((), kept_by_loss, start)
    grads, _ = model.backward(params, kept, doutputs)
    return grads


@jax.jit
def update(params: PyTree, opt_state: PyTree, grads: PyTree) -> PyTree:
    updates, opt_state = optimizer.update(grads, opt_state, params)
    return optax.apply_updates(params, updates), opt_state


params = model.init(jax.random.key(0), inputs[:BATCH])
opt_state = optimizer.init(params)
for epoch in range(1, EPOCHS + 1):
    losses: list[Array] = []
    order = np.random.default_rng(epoch).permutation(len(labels))
    for rows in order[: len(order) // BATCH * BATCH].reshape(-1, BATCH):
        outputs, kept = forward_pass(params, inputs[rows])
        (total, weight), kept_by_loss = loss_of(outputs, labels[rows])
        grads = backward_pass(params, kept, kept_by_loss, weight)
        params, opt_state = update(params, opt_state, grads)
        losses.append(total / weight)
    right = float((forward_pass(params, test_inputs)[0].argmax(1) == test_labels).mean())
    print(f"epoch {epoch:2}  loss {np.mean(losses):.4f}  test accuracy {right:.2%}")
