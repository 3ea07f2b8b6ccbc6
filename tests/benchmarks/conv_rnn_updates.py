"""One Adam update of a small CNN and of an LSTM classifier, ours against an expert's plain JAX (and
Flax NNX, where it is installed): time and temporary memory.

Targets: at least 2.0 times as fast for the CNN and 1.9 for the LSTM, temporary memory no larger.
Run: python -m tests.benchmarks.conv_rnn_updates [cnn] [lstm]
"""

import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import funprop as fp
from tests.benchmarks.harness import Pair, header, paired, ratio
from tests.benchmarks.models import expert_step

Update = Callable[..., Any]


def cnn() -> fp.Layer:
    """28 x 28 x 1: convolutions to 32 and 64, a pool, a dense layer of 10."""
    return fp.serial(
        fp.conv(32, (3, 3)),
        fp.relu(),
        fp.conv(64, (3, 3)),
        fp.relu(),
        fp.max_pool((2, 2)),
        fp.flatten(),
        fp.dense(10),
    )


def expert_cnn(params: Any, x: Any) -> Any:
    """The same in plain JAX."""
    for w, b in params[:2]:
        x = jax.lax.conv_general_dilated(
            x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        x = jax.nn.relu(x + b)
    x = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
    w, b = params[2]
    return x.reshape(len(x), -1) @ w + b


def classifier() -> fp.Layer:
    """An LSTM of 128 features, its last step, a dense layer of 10."""
    return fp.serial(fp.lstm(128), fp.last_step(), fp.dense(10))


def expert_classifier(params: Any, x: Any) -> Any:
    """The same in plain JAX, as it is usually written: a scan over a cell."""
    w_x, w_h, b, w, b_out = params

    def cell(state: Any, x: Any) -> Any:
        h, c = state
        i, f, g, o = jnp.split(x @ w_x + h @ w_h + b, 4, axis=-1)
        c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        h = jax.nn.sigmoid(o) * jnp.tanh(c)
        return (h, c), None

    zero = jnp.zeros((x.shape[0], w_h.shape[0]))
    (h, _), _ = jax.lax.scan(cell, (zero, zero), jnp.swapaxes(x, 0, 1))
    return h @ w + b_out


def of_nnx(make: Callable[[Any, Any], Any]) -> Update | None:
    """One update of a Flax NNX model, or `None` without Flax."""
    try:
        from flax import nnx
    except ImportError:
        return None
    model = make(nnx, nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optax.adam(1e-3), wrt=nnx.Param)

    def loss_fn(model: Any, x: Any, y: Any) -> Any:
        return optax.softmax_cross_entropy_with_integer_labels(model(x), y).mean()

    @nnx.jit
    def update(model: Any, optimizer: Any, x: Any, y: Any) -> Any:
        loss, grads = nnx.value_and_grad(loss_fn)(model, x, y)
        optimizer.update(model, grads)
        return loss

    return lambda x, y: update(model, optimizer, x, y)


def nnx_cnn(nnx: Any, rngs: Any) -> Any:
    """As `cnn`."""
    return nnx.Sequential(
        nnx.Conv(1, 32, (3, 3), rngs=rngs),
        nnx.relu,
        nnx.Conv(32, 64, (3, 3), rngs=rngs),
        nnx.relu,
        lambda x: nnx.max_pool(x, (2, 2), (2, 2)),
        lambda x: x.reshape(len(x), -1),
        nnx.Linear(14 * 14 * 64, 10, rngs=rngs),
    )


def nnx_classifier(nnx: Any, rngs: Any) -> Any:
    """As `classifier`."""
    return nnx.Sequential(
        nnx.RNN(nnx.OptimizedLSTMCell(32, 128, rngs=rngs)),
        lambda x: x[:, -1],
        nnx.Linear(128, 10, rngs=rngs),
    )


def drawn(shape: tuple[int, ...]) -> Any:
    """Inputs of this shape and labels of ten classes."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal(shape), jnp.float32)
    return x, jnp.asarray(rng.integers(0, 10, shape[0]), jnp.int32)


def pair(model: fp.Layer, expert: Callable[..., Any], shape: tuple[int, ...]) -> Pair:
    """One Adam update of the same params on the same batch."""
    objective, optimizer = fp.objective(model, fp.softmax_cross_entropy()), optax.adam(1e-3)
    batch, train = drawn(shape), fp.step(fp.backprop(objective), optimizer)
    params = objective.init(jax.random.key(0), batch)
    held = jax.tree.map(jnp.copy, [tuple(p) for p in params if p])
    if expert is expert_classifier:
        held = [part for group in held for part in group]

    def loss(params: Any, batch: Any) -> Any:
        outputs = expert(params, batch[0])
        return optax.softmax_cross_entropy_with_integer_labels(outputs, batch[1]).mean()

    mine, theirs = train.init(params, None), (held, optimizer.init(held))
    found = paired((train.update, mine), (expert_step(optimizer, loss), theirs), batch)
    losses = float(found.ours()["loss"].mean), float(found.theirs())
    assert abs(losses[0] - losses[1]) < 1e-5 * losses[1], losses
    return found


def one_update(
    name: str,
    model: fp.Layer,
    expert: Callable[..., Any],
    nnx: Callable[[Any, Any], Any],
    shape: tuple[int, ...],
    pairs: int,
) -> None:
    """Print how many times as fast ours is, and what each holds."""
    ours, theirs, compiled = pair(model, expert, shape)
    memory = [program.memory_analysis().temp_size_in_bytes for program in compiled]
    time, noise = ratio(ours, theirs, pairs)
    print(f"{name}: {1 / time.median:.2f} times as fast as plain JAX; time {time}, noise {noise}")
    print(f"  temporary bytes: ours {memory[0]:,}, plain {memory[1]:,}")
    of_flax = of_nnx(nnx)
    if of_flax is not None:
        x, y = drawn(shape)
        time, noise = ratio(lambda: of_flax(x, y), theirs, pairs)
        print(f"  Flax NNX: {1 / time.median:.2f} times; time {time}, noise {noise}", flush=True)


def main(*names: str) -> None:
    """Print both."""
    header()
    if "cnn" in names or not names:
        one_update("CNN", cnn(), expert_cnn, nnx_cnn, (64, 28, 28, 1), 12)
    if "lstm" in names or not names:
        one_update("LSTM", classifier(), expert_classifier, nnx_classifier, (64, 64, 32), 30)


if __name__ == "__main__":
    main(*sys.argv[1:])
