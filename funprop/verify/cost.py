"""Does a hand-written backward pass pay? What it costs, beside autodiff's."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp

from funprop import trees
from funprop.functions import by_vjp
from funprop.inspect.table import aligned
from funprop.layer import Layer
from funprop.verify.subject import arrays, is_floating
from funprop.verify.truth.evaluate import Evaluate

if TYPE_CHECKING:
    from funprop.typing import PyTree

ROUNDS = 21  # of the two, in turn
LEAST_SECONDS = 0.005  # of one timing: as many calls as that takes


class Price(NamedTuple):
    """What one forward and backward pass costs.

    Attributes:
      flops: that XLA counts.
      residual_bytes: kept from forward for backward, beside the inputs themselves.
      temporary_bytes: that the compiled program holds at its peak, beside inputs and outputs.
      seconds: of one call, the median.
    """

    flops: float
    residual_bytes: int
    temporary_bytes: int
    seconds: float


class Cost(NamedTuple):
    """A hand-written backward pass beside autodiff's. `print` shows it as a table.

    Attributes:
      name: of the layer or function.
      hand_written, autodiff: what each costs.
      time_ratio: the median of the ratios of calls that were timed one after the other.
    """

    name: str
    hand_written: Price
    autodiff: Price
    time_ratio: float

    def __str__(self) -> str:
        rows = [(self.name, "hand-written", "autodiff", "ratio")]
        for what, name in _ROWS.items():
            a, b = getattr(self.hand_written, what), getattr(self.autodiff, what)
            ratio = self.time_ratio if what == "seconds" else a / b if b else 1.0 if not a else None
            rows.append((name, _amount(a), _amount(b), "-" if ratio is None else f"{ratio:.2f}"))
        return "\n".join(aligned(rows, left=(0,)))


_ROWS = {
    "flops": "FLOPs",
    "residual_bytes": "residual bytes",
    "temporary_bytes": "temporary bytes",
    "seconds": "microseconds",
}


def _amount(value: float) -> str:
    return f"{1e6 * value:,.0f}" if isinstance(value, float) and value < 1 else f"{value:,.0f}"


def cost(target: Layer | Callable[..., Any], *args: PyTree) -> Cost:
    """What the hand-written backward pass costs, beside that which autodiff takes of forward.

    Args:
      target: a layer, with `(params, x)`; or a differentiable function, such as a
        `jax.custom_vjp`, with its arguments, which is compared with itself without its rules.
      *args: an example of the arguments, whose values do not matter for most of the figures.

    Returns:
      FLOPs and temporary bytes as XLA counts them of the compiled program, on this backend, of
      forward and backward together, and of a sum over the output on which `dy` waits: in training
      the one pass ends before the other begins; the residuals' bytes; and the time.

    Raises:
      TypeError: an argument is not an array.

    Example:
      >>> import funprop as fp
      >>> found = cost(fp.relu(), (), jnp.ones((64, 64)))
      >>> found.hand_written.residual_bytes < found.autodiff.residual_bytes
      True
    """
    for i, arg in enumerate(args):
        arrays(arg, f"args[{i}]")
    args = jax.tree.map(jnp.asarray, args)
    if isinstance(target, Layer):
        if len(args) != 2:
            raise TypeError(f"a layer's cost is taken at (params, x), got {len(args)} arguments")
        name, hand = target.name, (target.forward, target.backward)
        auto = by_vjp(target.forward)
    else:
        name = getattr(target, "__name__", type(target).__name__)
        jaxpr, spec = jax.make_jaxpr(target, return_shape=True)(*args)
        tree = jax.tree.structure(spec)

        def plain(*args: Any) -> Any:
            return tree.unflatten(Evaluate()(jaxpr, *jax.tree.leaves(args)))

        hand, auto = (by_vjp(lambda args, _, key, f=f: (f(*args), ())) for f in (target, plain))
        args = (args, ())
    return _compared(name, hand, auto, args)


def _compared(name: str, hand: Any, auto: Any, args: tuple[Any, Any]) -> Cost:
    runs = [_compiled(forward, backward, args) for forward, backward in (hand, auto)]
    y = jax.eval_shape(lambda *args: hand[0](*args)[0], *args)
    dy = jax.tree.map(lambda s: jnp.ones(s.shape, s.dtype) if is_floating(s) else None, y)
    calls = [lambda run=run: jax.block_until_ready(run(*args, dy)) for run in runs]
    first, second = _timed(calls)
    prices = []
    for run, (forward, _), seconds in zip(runs, (hand, auto), (first, second), strict=True):
        kept = jax.eval_shape(lambda *args, forward=forward: forward(*args)[1], *args)
        prices.append(
            Price(
                _first(run.cost_analysis()).get("flops", 0.0),
                trees.nbytes(kept),
                int(run.memory_analysis().temp_size_in_bytes),
                statistics.median(seconds),
            )
        )
    ratio = statistics.median(a / b for a, b in zip(first, second, strict=True))
    return Cost(name, prices[0], prices[1], ratio)


def _compiled(forward: Any, backward: Any, args: tuple[Any, Any]) -> Any:
    def gradient(params: Any, x: Any, dy: Any) -> Any:
        y, residuals = forward(params, x)
        ended = sum(leaf.sum() for leaf in jax.tree.leaves(y) if is_floating(leaf))
        dy = jax.tree.map(lambda leaf: leaf + jnp.asarray(0 * ended, leaf.dtype), dy)
        return y, backward(params, residuals, dy)

    y = jax.eval_shape(lambda *args: forward(*args)[0], *args)
    dy = jax.tree.map(lambda s: s if is_floating(s) else None, y)
    return jax.jit(gradient).lower(*args, dy).compile()


def _first(analysis: Any) -> dict[str, float]:
    """The figures of the one program: some versions of JAX give a list of them."""
    return (analysis[0] if isinstance(analysis, list) else analysis) or {}


def _timed(calls: list[Callable[[], Any]]) -> tuple[list[float], list[float]]:
    """Seconds a call of each, in turn, so that both see the same machine."""
    start = time.perf_counter()
    for call in calls:
        call()
    once = max((time.perf_counter() - start) / len(calls), 1e-7)
    repeats = max(1, round(LEAST_SECONDS / once))
    seconds: tuple[list[float], list[float]] = ([], [])
    for _ in range(ROUNDS):
        for call, kept in zip(calls, seconds, strict=True):
            start = time.perf_counter()
            for _ in range(repeats):
                call()
            kept.append((time.perf_counter() - start) / repeats)
    return seconds
