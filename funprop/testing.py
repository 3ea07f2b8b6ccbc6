"""Gradients in tests: an assertion whose message is the verifier's table."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from funprop.layer import Layer
from funprop.verify import Report, verify


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
