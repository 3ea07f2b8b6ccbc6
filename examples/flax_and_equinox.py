"""Anybody's model: a Flax and an Equinox module trained by the same step, and as layers of ours."""

import importlib.util
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

import funprop as fp
from funprop.train.runs.tasks import task

IRIS = task("iris")
KEY = jax.random.key(0)


def flax_module() -> tuple[Callable[..., Any], Callable[..., Any]]:
    """`init` and `apply` of a Flax module."""
    from flax import linen as nn

    module = nn.Sequential([nn.Dense(16), nn.tanh, nn.Dense(3)])

    def init(key: Any, x: Any) -> Any:
        return module.init(key, jnp.zeros(x.shape, x.dtype))

    return init, module.apply


def equinox_module() -> tuple[Callable[..., Any], Callable[..., Any]]:
    """`init` and `apply` of an Equinox module: its arrays are the params."""
    import equinox as eqx

    def module(key: Any) -> Any:
        return eqx.nn.MLP(4, 3, width_size=16, depth=1, activation=jnp.tanh, key=key)

    def init(key: Any, x: Any) -> Any:
        return eqx.filter(module(key), eqx.is_array)

    static = eqx.partition(eqx.filter_eval_shape(module, KEY), lambda leaf: hasattr(leaf, "dtype"))

    def apply(params: Any, x: Any) -> Any:
        return jax.vmap(eqx.combine(params, static[1]))(x)

    return init, apply


def train(name: str, grad_fn: Any, params: Any) -> None:
    """The same step and the same loop, whoever wrote the model."""
    step = fp.step(grad_fn, optax.adam(1e-2))
    result = fp.fit(
        step,
        step.init(params, None),
        IRIS.train,
        epochs=40,
        batch_size=16,
        held_out=IRIS.test,
        progress=None,
    )
    print(f"{name:34} held-out accuracy {result.history[-1]['held_out/accuracy']:.2%}")


def both_ways(name: str, init: Callable[..., Any], apply: Callable[..., Any]) -> None:
    """As a loss function, by `jax.grad`; and as a layer between hand-written ones."""

    def loss_fn(params: Any, batch: Any) -> Any:
        x, y = batch
        terms = optax.softmax_cross_entropy_with_integer_labels(apply(params, x), y)
        return terms.sum(), terms.size, {"accuracy": fp.accuracy(apply(params, x), y)}

    train(f"{name}, its loss by jax.grad", fp.from_loss(loss_fn), init(KEY, IRIS.train[0]))

    theirs = fp.from_function(init, apply, name=name)
    model = fp.serial(fp.dense(4), fp.gelu(), theirs, fp.dense(3))
    objective = fp.objective(model, fp.softmax_cross_entropy(), accuracy=fp.accuracy)
    train(f"{name}, as a layer of a model", fp.backprop(objective), objective.init(KEY, IRIS.train))


def main() -> None:
    """Both, where they are installed."""
    for package, module in (("flax", flax_module), ("equinox", equinox_module)):
        if importlib.util.find_spec(package) is None:
            print(f"{package} is not installed, skipped: pip install {package}")
        else:
            both_ways(package, *module())


if __name__ == "__main__":
    main()
