"""Gradients in tests: an assertion whose message is the verifier's table."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from funprop.layer import Layer
from funprop.verify import Report, verify, verify_second_order


def assert_gradients(
    target: Layer | Callable[..., Any],
    *args: Any,
    reference: Callable[..., Any] | None = None,
    key: Any = None,
    seed: int = 0,
) -> Report:
    """Assert that a hand-written backward pass is right; `verify`'s arguments and report.

    Raises:
      AssertionError: it is wrong; the message is the table.
      TypeError, ValueError: as `verify`.

    Example:
      >>> import jax.numpy as jnp, funprop as fp
      >>> assert_gradients(fp.gelu(), (), jnp.linspace(-2, 2, 8)).ok
      True
    """
    report = verify(target, *args, reference=reference, key=key, seed=seed)
    report.raise_if_wrong()
    return report


def check_grads(
    f: Callable[..., Any],
    args: Any,
    order: int,
    modes: Any = ("fwd", "rev"),
    atol: float | None = None,
    rtol: float | None = None,
    eps: float | None = None,
) -> None:
    """`jax.test_util.check_grads` by `verify`: for those who replace an import and no more.

    Args:
      f: any differentiable function.
      args: its arguments, a tuple.
      order: 1; from 2 on its Hessian-vector products are judged too, and nothing beyond them.
      modes: `"rev"`, `"fwd"` or both; forward mode must agree with the reverse one.
      atol, rtol, eps: taken, and not used: what may be off is derived, not set.

    Raises:
      AssertionError: a gradient is wrong; the message is the table.
      TypeError, ValueError: as `verify`; or JAX cannot differentiate `f` in a mode.

    Example:
      >>> check_grads(jnp.sin, (jnp.linspace(0.1, 1, 4),), order=2)
    """
    del atol, rtol, eps
    if order < 1:
        raise ValueError(f"order must be at least 1, got {order}")
    wanted = (modes,) if isinstance(modes, str) else tuple(modes)
    if not wanted or not set(wanted) <= {"fwd", "rev"}:
        raise ValueError(f"modes must be of 'fwd' and 'rev', got {modes!r}")
    verify(f, *args).raise_if_wrong()
    if "fwd" in wanted:
        _check_forward(f, args)
    if order > 1:
        verify_second_order(f, *args).raise_if_wrong()


def _check_forward(f: Callable[..., Any], args: Any) -> None:
    """The derivative along a direction, forward: the gradient, which is right, times it."""
    draw = np.random.default_rng(0)
    leaves, tree = jax.tree.flatten(args)
    leaves = [jnp.asarray(leaf) for leaf in leaves]
    moving = [i for i, v in enumerate(leaves) if jnp.issubdtype(v.dtype, jnp.floating)]

    def total(*given: Any) -> Any:
        filled = dict(enumerate(leaves)) | dict(zip(moving, given, strict=True))
        ys = f(*tree.unflatten([filled[i] for i in range(len(leaves))]))
        floating = [y for y in jax.tree.leaves(ys) if jnp.issubdtype(y.dtype, jnp.floating)]
        return sum(jnp.sum(y.astype(jnp.float32)) for y in floating)

    given = tuple(leaves[i] for i in moving)
    along = tuple(jnp.asarray(draw.standard_normal(v.shape), v.dtype) for v in given)
    slope = float(jax.jvp(total, given, along)[1])
    terms = [
        np.asarray(g, np.float64) * np.asarray(d, np.float64)
        for g, d in zip(jax.grad(total, tuple(range(len(given))))(*given), along, strict=True)
    ]
    unit = max(float(jnp.finfo(v.dtype).eps) for v in given)
    true, size = (
        sum(float(np.sum(part)) for part in parts) for parts in (terms, map(np.abs, terms))
    )
    if not abs(slope - true) <= 64 * unit * size:
        raise AssertionError(
            f"forward mode is wrong: along a direction it gives {slope:.6g}, reverse {true:.6g}"
        )
