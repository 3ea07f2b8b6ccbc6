"""A layer of your own: forward and backward by hand, checked, then trained.

The gated linear unit, `y = a * s(b)` with `a = x w`, `b = x v` and `s` the logistic sigmoid
(Dauphin et al., arXiv:1612.08083).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

import funprop as fp
from funprop.train.runs.tasks import task
from funprop.typing import Array, PyTree


class Gate(NamedTuple):
    """The params: two matrices, `[inputs, outputs]` each."""

    w: Array
    v: Array


def gated(features: int) -> fp.Layer:
    """The gated linear unit with `features` outputs."""

    def init(key: Array, x: PyTree) -> Gate:
        draw = jax.nn.initializers.lecun_normal()
        shape = x.shape[-1], features
        return Gate(*(draw(k, shape, x.dtype) for k in jax.random.split(key)))

    def forward(params: Gate, x: Array) -> tuple[Array, PyTree]:
        a, b = x @ params.w, x @ params.v
        return a * jax.nn.sigmoid(b), (x, a, b)  # the output, and what backward needs

    def backward(params: Gate, residuals: PyTree, dy: Array) -> tuple[Gate, Array]:
        x, a, b = residuals
        s = jax.nn.sigmoid(b)
        da = dy * s  # since y = a s(b)
        db = dy * a * s * (1 - s)  # since s' = s (1 - s)
        dw, dv = x.T @ da, x.T @ db  # since a = x w and b = x v
        dx = da @ params.w.T + db @ params.v.T  # x is used twice: the sum of both
        return Gate(dw, dv), dx

    return fp.layer(init=init, forward=forward, backward=backward, name="gated")


def forgetful(features: int) -> fp.Layer:
    """The same with a mistake in its backward: only one of the two uses of `x` is counted."""
    good = gated(features)

    def backward(params: Gate, residuals: PyTree, dy: Array) -> tuple[Gate, Array]:
        dparams, _ = good.backward(params, residuals, dy)
        return dparams, (dy * jax.nn.sigmoid(residuals[2])) @ params.w.T

    return fp.layer(init=good.init, forward=good.forward, backward=backward, name="forgetful")


def main() -> None:
    """Check the layer, show that a wrong one is found, and train with the right one."""
    cancer = task("breast-cancer")
    x = jnp.asarray(cancer.train[0][:16])

    for unit in (gated, forgetful):
        model = fp.serial(fp.dense(8), unit(8), fp.dense(1))
        report = fp.verify(model, model.init(jax.random.key(0), x), x)
        found = [finding.path for finding in report.findings]
        print(f"{unit.__name__}: {'wrong at ' + ', '.join(found) if found else 'right'}")
    print(f"\n{report}\n")

    model = fp.serial(gated(16), fp.dense(1), fp.reshape())
    objective = fp.objective(model, cancer.loss, accuracy=fp.binary_accuracy)
    grad_fn = fp.backprop(objective)
    train = fp.step(grad_fn, optax.adam(3e-3))
    params = objective.init(jax.random.key(0), cancer.train)
    fp.fit(
        train,
        train.init(params, None),
        cancer.train,
        epochs=20,
        batch_size=32,
        held_out=cancer.test,
    )


if __name__ == "__main__":
    main()
