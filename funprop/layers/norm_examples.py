"""The gradients of scale and bias example by example, of layers that normalise."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from funprop.quantities.closed_form import by_each

if TYPE_CHECKING:
    from funprop.typing import Array, Float, PyTree

    X = Float[Array, "b *t c"]


def by_example(backward: Any, normalised: Callable[[PyTree], X]) -> Any:
    """`backward` of `y = u scale + bias`, with every example's gradient beside it, in float32 at
    least: of example `n` the sums of `dy u` and of `dy` over its places.

    Args:
      backward: of a layer with `NormParams`.
      normalised: from its residuals to `u`, in the dtype to compute in.
    """

    def each(params: Any, residuals: PyTree, dy: X) -> tuple[Any, PyTree]:
        u = normalised(residuals)
        wide, places = dy.astype(u.dtype), tuple(range(1, dy.ndim - 1))
        scale = None if params.scale is None else (wide * u).sum(places)
        bias = None if params.bias is None else wide.sum(places)
        return params._replace(scale=scale, bias=bias), backward(params, residuals, dy)[1]

    return by_each(backward, each)
