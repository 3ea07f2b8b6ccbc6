"""What recurrent layers share: sequences of many lengths, and the step that ends each.

A batch of sequences is `x [batch, time, i]`, or `(x, lengths)` where they are padded behind to one
time. What takes a pair gives a pair, so lengths travel through a model from layer to layer, up to
`last_step`; `with_lengths` takes any other layer along.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from funprop import drawing
from funprop.decoding import Decoding, one_array
from funprop.formula import told
from funprop.layer import Layer, layer
from funprop.layers.formulas import FORMULAS
from funprop.located import located
from funprop.looping import looping
from funprop.trees import Static, lifted, require_array, require_float, spec_string, wide_dtype
from funprop.values import known, to_int32

if TYPE_CHECKING:
    from collections.abc import Callable

    from funprop.typing import Array, Float, Int, Key

    Steps = Float[Array, "time batch _"]
    Sequences = Float[Array, "batch time _"]
    Lengths = Int[Array, "batch"] | None


def recurrent(
    name: str,
    init: Callable[..., Any],
    forward: Callable[[Any, Steps, Any], tuple[Steps, Any, Any]],
    backward: Callable[[Any, Steps, Steps, Any, Steps], tuple[Any, Steps]],
) -> Layer:
    """A layer over sequences, from its two passes over time, which need not know of lengths.

    A step sees only what is before it, so padding behind a sequence changes nothing of it: it is
    enough to hide it in the input (where it may hold anything), the output and its cotangent.
    Keeps the input and the output, which the layers before and behind keep as well, and what
    forward gives to keep. Token by token, the cache is the state.

    Args:
      name: what paths and messages call it.
      init: `(key, x_spec) -> params`, without lengths.
      forward: `(params, x, state) -> (y, state, kept)`, time first, as a scan wants it; from zero
        where the state is `None`.
      backward: `(params, x, y, kept, dy) -> (dparams, dx)`, time first.
    """
    forward, backward = looping()(forward), looping()(backward)

    def init_of_any(key: Any, x: Any) -> Any:
        return init(key, _unpack(x)[0])

    def forward_of_any(params: Any, x: Any) -> tuple[Any, Any]:
        x, lengths = _unpack(x)
        # Hiding y would do, but not for who differentiates this: zero times NaN is NaN.
        y, _, kept = forward(params, _swap(_hide(x, lengths)), None)
        y = _hide(_swap(y).astype(x.dtype), lengths)
        return (y if lengths is None else (y, lengths)), (x, y, lengths, kept)

    def backward_of_any(params: Any, residuals: Any, dy: Any) -> tuple[Any, Any]:
        x, y, lengths, kept = residuals
        dy = _hide(dy if lengths is None else dy[0], lengths)
        dparams, dx = backward(params, _swap(_hide(x, lengths)), _swap(y), kept, _swap(dy))
        dx = _swap(dx).astype(x.dtype)
        return dparams, dx if lengths is None else (dx, None)

    def prefill(params: Any, x: Any, length: int) -> tuple[Any, Any]:
        return advance(params, None, _unpack(one_array(x))[0])

    def advance(params: Any, state: Any, x: Sequences) -> tuple[Sequences, Any]:
        y, state, _ = forward(params, _swap(x), state)
        return _swap(y).astype(x.dtype), state

    return layer(
        init=init_of_any,
        forward=forward_of_any,
        backward=backward_of_any,
        name=name,
        formula=FORMULAS[name],
        decoding=Decoding(prefill, advance),
    )


@told(FORMULAS["last_step"])
def last_step() -> Layer:
    """The last step of each sequence, `[batch, time, i] -> [batch, i]`, to classify it by.

    Of `(x, lengths)` it is the step at `lengths - 1`; zero for a sequence of length zero. Lengths
    out of range: as in `lstm`.

    Raises:
      ValueError: at forward, `x` is neither `[batch, time, i]` nor such a pair; a length is out of
        range.
      TypeError: `x` is not of floating dtype, or the lengths are not integers.

    Example:
      >>> x = jnp.arange(6.0).reshape(2, 3, 1)
      >>> y, kept = last_step().forward((), (x, jnp.array([1, 3])))
      >>> y.tolist(), last_step().backward((), kept, y)[1][0].tolist()
      ([[0.0], [5.0]], [[[0.0], [0.0], [0.0]], [[0.0], [0.0], [5.0]]])
    """

    def forward(params: tuple[()], x: Any) -> tuple[Any, Any]:
        x, lengths = _unpack(x)
        time = Static(x.shape[1])
        if lengths is None:
            return x[:, -1], (time, None)
        lengths = to_int32(lengths)
        last = jnp.maximum(lengths - 1, 0)[:, None, None]
        y = jnp.take_along_axis(x, last, axis=1, mode="clip")[:, 0]
        y = jnp.where((lengths > 0)[:, None], y, 0)
        return y + _nan_out_of_range(lengths, x)[:, None], (time, lengths)

    def backward(params: tuple[()], residuals: Any, dy: Any) -> tuple[tuple[()], Any]:
        time, lengths = residuals
        steps = jnp.arange(time.value, dtype=jnp.int32)[None]
        last = time.value - 1 if lengths is None else lengths[:, None] - 1
        dx = jnp.where((steps == last)[..., None], dy[:, None], 0)
        return (), dx if lengths is None else (dx, None)

    return layer(forward=forward, backward=backward, name="last_step")


def with_lengths(inner: Layer) -> Layer:
    """`(x, lengths) -> (y, lengths)` with `y` what `inner` makes of `x`: so any layer stands before
    or between those that take lengths, such as an embedding or a dropout.

    Params: those of `inner`. Residuals: a tuple of one.

    Raises:
      ValueError: at init or forward, the input is not `(x, lengths)`.

    Example:
      >>> import funprop as fp
      >>> model = fp.serial(with_lengths(fp.dense(4)), fp.lstm(5), last_step(), fp.dense(2))
      >>> x = jnp.zeros((3, 7, 2)), jnp.array([7, 1, 4])
      >>> model.forward(model.init(jax.random.key(0), x), x)[0].shape
      (3, 2)
    """
    (part,) = located((inner,))

    def init(key: Any, x: Any) -> Any:
        return part.init(key, _pair(x)[0])

    def forward(params: Any, x: Any, key: Any = None) -> tuple[Any, tuple[Any]]:
        x, lengths = _pair(x)
        y, kept = part.forward(params, x, key)
        return (y, lengths), (kept,)

    def backward(params: Any, residuals: Any, dy: Any) -> tuple[Any, Any]:
        dparams, dx = part.backward(params, residuals[0], dy[0])
        return dparams, (dx, None)  # lengths are integers

    return Layer(init, forward, backward, "with_lengths", (inner,), with_lengths)


# ----------------------------------------------------------------------------- what passes share


def product(a: Float[Array, "*n i"], b: Float[Array, "i o"]) -> Float[Array, "*n o"]:
    """`a @ b`, factors in the dtype of `b`, the sum in float32 at least."""
    return jnp.dot(a.astype(b.dtype), b, preferred_element_type=wide_dtype(b.dtype))


def inputs(x: Steps, w_x: Float[Array, "i o"], b: Float[Array, "o"]) -> Float[Array, "t n o"]:
    """What the input gives to the gates at every step."""
    z = product(x, w_x)
    return z + lifted(b, z)


def scan_over_inputs(
    step: Callable[[Any, Any], tuple[Any, Any]],
    state: Any,
    x: Steps,
    w_x: Float[Array, "i o"],
    b: Float[Array, "o"],
) -> tuple[Any, Any]:
    """A scan of `step(state, z)` over time, with `z` what the input gives to the gates.

    All `z` at once are one wide product, and an array as large as all gates. A CPU multiplies a
    step's as fast, and need not write and read that array (docs/benchmarks/convolution.md).
    """

    def at_once(state: Any, x: Steps, w_x: Any, b: Any) -> tuple[Any, Any]:
        return jax.lax.scan(step, state, inputs(x, w_x, b))

    def in_steps(state: Any, x: Steps, w_x: Any, b: Any) -> tuple[Any, Any]:
        return jax.lax.scan(lambda state, x: step(state, inputs(x, w_x, b)), state, x)

    return jax.lax.platform_dependent(state, x, w_x, b, cpu=in_steps, default=at_once)


def check_keep(keep: Any) -> str:
    """What a recurrence keeps beside its input and output."""
    if keep not in ("gates", "output"):
        raise ValueError(f'keep must be "gates" or "output", got {keep!r}')
    return keep


def sum_of_products(a: Steps, b: Steps, like: Float[Array, "i o"]) -> Float[Array, "i o"]:
    """`sum_tn a[t,n,i] b[t,n,o]`: a weight's cotangent, all steps in one product."""
    rows = (t.astype(like.dtype).reshape(-1, t.shape[-1]) for t in (a, b))
    return product(next(rows).T, next(rows)).astype(like.dtype)


def split(z: Float[Array, "*n go"], gates: int) -> tuple[Any, ...]:
    """Gate by gate. A scan over an array a gate takes half the time of one over all in one, on CPU:
    XLA does not vectorise slices of a slice."""
    return tuple(jnp.split(z, gates, axis=-1))


def before(h: Steps) -> Steps:
    """At each step what `h` was a step earlier; zero at the first."""
    return jnp.concatenate([jnp.zeros_like(h[:1]), h[:-1]])


def check_weights(w_x: Float[Array, "i _"], x: Steps) -> None:
    """Raise where `x`, time first, has other inputs than its weights."""
    if w_x.shape[0] != x.shape[-1]:
        raise ValueError(
            f"x must have a last axis of {w_x.shape[0]} to go with w_x of shape "
            f"{tuple(w_x.shape)}, got {x.shape[-1]}"
        )


def orthogonal(key: Key[Array, ""], features: int, gates: int, like: Any) -> Float[Array, "o go"]:
    """One orthogonal matrix a gate, beside each other (made in float32: LAPACK knows no less)."""
    shape, dtype = (features, features), wide_dtype(like.dtype)
    parts = [drawing.orthogonal(each, shape, dtype) for each in drawing.split(key, gates)]
    return jnp.concatenate(parts, axis=-1).astype(like.dtype)


# ------------------------------------------------------------------------------------- lengths


def _swap(x: Any) -> Any:
    return jnp.swapaxes(x, 0, 1)


def _hide(x: Sequences, lengths: Lengths) -> Sequences:
    """Zero behind each sequence; a sequence with a length out of range is all NaN."""
    if lengths is None:
        return x
    lengths, time = to_int32(lengths), x.shape[1]
    shown = (jnp.arange(time, dtype=jnp.int32)[None] < lengths[:, None])[..., None]
    return jnp.where(shown, x, 0) + _nan_out_of_range(lengths, x)[:, None, None]


def _nan_out_of_range(lengths: Any, x: Sequences) -> Float[Array, "batch"]:
    return jnp.where(_in_range(lengths, x.shape[1]), 0, jnp.nan).astype(x.dtype)


def _in_range(lengths: Any, time: int) -> Any:
    return (lengths >= 0) & (lengths <= time)


def _pair(x: Any) -> tuple[Any, Any]:
    if not isinstance(x, tuple) or len(x) != 2:
        got = f"{len(x)} parts" if isinstance(x, tuple) else "one array"
        raise ValueError(f"x must be (x, lengths), got {got}")
    return x


def _unpack(x: Any) -> tuple[Any, Any]:
    """`(x, lengths)`, `lengths` being `None` where there are none."""
    x, lengths = _pair(x) if isinstance(x, tuple) else (x, None)
    require_array(x)
    if x.ndim != 3 or 0 in x.shape[1:]:
        raise ValueError(
            f"x must be [batch, time, i] with steps and inputs, got shape {tuple(x.shape)}"
        )
    require_float(x)
    if lengths is not None:
        _check_lengths(lengths, x)
    return x, lengths


def _check_lengths(lengths: Any, x: Any) -> None:
    require_array(lengths, "lengths")
    if not jnp.issubdtype(lengths.dtype, jnp.integer):
        raise TypeError(f"lengths must be integers, got {spec_string(lengths)}")
    if lengths.shape != x.shape[:1]:
        raise ValueError(f"lengths must have shape {x.shape[:1]}, got {tuple(lengths.shape)}")
    values = known(lengths)
    if values is None:
        return
    wrong = ~_in_range(values, x.shape[1])
    if wrong.any():
        raise ValueError(f"lengths must be from 0 to {x.shape[1]}, got {values[wrong][0]}")
