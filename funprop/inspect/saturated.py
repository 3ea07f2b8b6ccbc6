"""Elementwise layers that pass on next to nothing of their cotangent."""

from __future__ import annotations

from typing import Any

LITTLE = 0.02  # of a cotangent


def passes_little(y: Any, dy: Any, dx: Any) -> tuple[Any, Any]:
    """`(little, counts)`: which numbers of an elementwise layer pass on less than 2% of their
    cotangent, of those that count: that have one, and are not cut off at 0.

    Of NumPy's arrays and of JAX's.

    Example:
      >>> import numpy as np
      >>> y, dy, dx = np.array([0.0, 1.0, 0.5]), np.ones(3), np.array([0.0, 0.0, 0.8])
      >>> [which.tolist() for which in passes_little(y, dy, dx)]
      [[False, True, False], [False, True, True]]
    """
    counts = (dy != 0) & (y != 0)
    return counts & (abs(dx) < LITTLE * abs(dy)), counts
