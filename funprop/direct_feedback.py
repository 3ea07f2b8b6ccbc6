"""Layers in a row, each told of the output's error directly, through a random map of its own."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import jax

from funprop.decoding import of_serial
from funprop.formula import Formula
from funprop.keys import split_key
from funprop.layer import Layer, check_layer, layer, output_spec
from funprop.located import located
from funprop.names import params_of
from funprop.params.frozen import Frozen
from funprop.trees import Static, require_array

if TYPE_CHECKING:
    from funprop.typing import Array, Float, PyTree

    Y = Float[Array, "*batch *features"]
    E = Float[Array, "*batch outputs"]


FORMULA = Formula(
    "h_0 = x; h_i = F_i(h_(i-1)); y = h_n",
    "dh_n = dy; dh_i = dy B_i for all others; dx = F_1'(x)^T dh_1, and the params of F_i from dh_i",
    r"h_0 = x,\ h_i = F_i(h_{i-1}),\ y = h_n",
    r"dh_n = dy;\quad dh_i = dy\, B_i \text{ for all others};\quad dx = F_1'(x)^\top dh_1;\quad "
    r"d\theta_i = \partial_\theta F_i(h_{i-1})^\top dh_i",
)
OF_MAP = Formula("y = x B^T, which goes nowhere", "dx = dy B", r"y = x\, B^\top", r"dx = dy\, B")


def direct_feedback(*layers: Layer) -> Layer:
    """`layers` one after the other, as `serial`; backward gives each of them but the last the
    cotangent `B e` of its output, with `e` that of the whole and `B` fixed and random.

    No cotangent passes from layer to layer, so all could be trained at once. `dparams` of each is
    the true one of the cotangent that it is given; give as one layer, by `serial`, what shall be
    one: a dense layer and its activation.

    Params: by name, those of the layers, and after each but the last, as `feedback_i`, its `B`,
    which is `Frozen`. Residuals: a tuple.
    Source: Nøkland, arXiv:1609.01596.

    Shapes: `B` is a matrix from the features of the output to those of the layer. The axes in front
    that both have in common, those of the batch and of time, are not mixed.

    Returns:
      A layer that is *intended* to have another gradient: `verify` judges it by that.

    Raises:
      ValueError: there are fewer than two layers.
      TypeError: one of these is no layer; or, at init, an output is not one array.

    Example:
      >>> import jax.numpy as jnp, funprop as fp
      >>> hidden = [fp.serial(fp.dense(6), fp.tanh()) for _ in range(2)]
      >>> model = direct_feedback(*hidden, fp.dense(2))
      >>> params = model.init(jax.random.key(0), jnp.ones((3, 5)))
      >>> params.serial_0.dense.w.shape, params.feedback_0.frozen.shape
      ((5, 6), (2, 6))
    """
    for one in layers:
        check_layer("layer", one)
    if len(layers) < 2:
        raise ValueError(f"direct_feedback must have at least two layers, got {len(layers)}")
    children = []
    for i, one in enumerate(layers[:-1], start=1):
        children += [one, _feedback(layers[i:])]
    return _of(*children, layers[-1])


def _of(*children: Layer) -> Layer:
    """The node of layers and, after each but the last, the map that its cotangent comes through."""
    parts = located(children)
    hidden, maps, last = parts[:-1:2], parts[1::2], parts[-1]

    def init(key: Any, x: PyTree) -> PyTree:
        params = []
        for i, (part, k) in enumerate(zip(parts, split_key(key, len(parts)), strict=True)):
            params.append(part.init(k, x))
            x = x if i % 2 else output_spec(part, params[-1], x)
        return params_of(children, params)

    def forward(params: Any, x: PyTree, key: Any = None) -> tuple[PyTree, tuple[PyTree, ...]]:
        residuals = []
        each = zip(parts, node.split(params), split_key(key, len(parts)), strict=True)
        for i, (part, p, k) in enumerate(each):
            y, kept = part.forward(p, x, k)  # what a map gives of it is not used
            residuals.append(kept)
            x = x if i % 2 else y
        return x, tuple(residuals)

    def backward(params: Any, residuals: Any, dy: E) -> tuple[PyTree, PyTree]:
        own = node.split(params)
        dparams = [last.backward(own[-1], residuals[-1], dy)[0]]
        dx = None
        for i in reversed(range(len(hidden))):
            of_map, back = maps[i].backward(own[2 * i + 1], residuals[2 * i + 1], dy)
            of_part, dx = hidden[i].backward(own[2 * i], residuals[2 * i], back)
            dparams += [of_map, of_part]
        return node.join(params, dparams[::-1]), dx

    def intended(params: Any, x: PyTree, key: Any = None) -> PyTree:
        own, keys, told = node.split(params), split_key(key, len(parts)), []
        for i in range(len(hidden)):
            y, _ = hidden[i].forward(own[2 * i], x, keys[2 * i])
            told.append(maps[i].forward(own[2 * i + 1], y)[0])
            x = jax.lax.stop_gradient(y)
        y, _ = last.forward(own[-1], x, keys[-1])
        return sum((each.reshape(y.shape) for each in told), start=y)

    decoding = of_serial((*hidden, last), lambda params: node.split(params)[::2])
    node = Layer(
        *(init, forward, backward, "direct_feedback", children, _of),
        decoding=decoding,
        intended=intended,
        formula=FORMULA,
    )
    return node


def _feedback(after: tuple[Layer, ...]) -> Layer:
    """The fixed linear map `e = B y` from an output to that of the last layer; its transpose is
    what the error comes back by.

    Args:
      after: the layers between the two, of which the shape of the last output is had.
    """

    def init(key: Any, y: Any) -> Frozen:
        require_array(y)
        e = y
        for one in after:
            e = output_spec(one, jax.eval_shape(one.init, key, e), e)
        require_array(e)
        common = 1  # axes, of the batch at least; features are mixed
        while common < min(y.ndim, e.ndim) - 1 and y.shape[common] == e.shape[common]:
            common += 1
        of_y, of_e = (math.prod(given.shape[common:]) for given in (y, e))
        return Frozen(jax.random.normal(key, (of_e, of_y), y.dtype) / max(of_y, 1) ** 0.5)

    def forward(params: Frozen, y: Y) -> tuple[E, Any]:
        b = params.frozen
        rows = y.reshape(*_common(y.shape, b.shape[1]), b.shape[1])
        return rows @ b.T, Static((y.shape, y.dtype))

    def backward(params: Frozen, kept: Any, e: E) -> tuple[None, Y]:
        (shape, dtype), b = kept.value, params.frozen
        rows = e.reshape(*_common(shape, b.shape[1]), b.shape[0])
        return None, (rows @ b).reshape(shape).astype(dtype)

    how: dict[str, Any] = {"name": "feedback", "draws": False, "formula": OF_MAP}
    return layer(init=init, forward=forward, backward=backward, **how)


def _common(shape: tuple[int, ...], features: int) -> tuple[int, ...]:
    """The axes of an output that are in front of so many features."""
    front = next(k for k in range(len(shape), -1, -1) if math.prod(shape[k:]) == features)
    return shape[:front]
