"""The head as a layer of logits, and the plain loss of them: what its Gauss-Newton matrix is of."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from funprop.layer import Layer, layer
from funprop.losses.by_example import rows_with_a_say
from funprop.losses.chunks import Chunk, product
from funprop.losses.cross_entropy import softmax_cross_entropy
from funprop.quantities.curvature import Output, with_output

if TYPE_CHECKING:
    from funprop.typing import Array, Float


def as_two(backward: Any, smoothing: float, z_loss: float) -> Any:
    """`backward` of `linear_cross_entropy`, which says that the loss is a layer with its params and
    `softmax_cross_entropy`: the same terms, from all logits at once, as each has its cotangent.

    Not with a z-loss, whose Hessian in the logits may have negative eigenvalues.
    """

    def cleaned(x: Float[Array, "*n i"], *weights: Any) -> Float[Array, "*n i"]:
        return rows_with_a_say(x, *weights)[0].reshape(x.shape)

    if z_loss:
        return backward
    return with_output(backward, Output(unembedding(), softmax_cross_entropy(smoothing), cleaned))


def unembedding() -> Layer:
    """`z = x w^T + b` with `LinearParams`, in float32 at least.

    Index legend: as of `linear_cross_entropy`. Shapes: `x [*n, i]`, `z [*n, c]`.
    """

    def forward(params: Any, x: Float[Array, "*n i"]) -> tuple[Float[Array, "*n c"], Any]:
        z = Chunk(0, *params).logits(x.reshape(-1, x.shape[-1]))
        return z.reshape(*x.shape[:-1], z.shape[-1]), x

    def backward(params: Any, x: Float[Array, "*n i"], dz: Float[Array, "*n c"]) -> Any:
        rows, d = x.reshape(-1, x.shape[-1]), dz.reshape(-1, dz.shape[-1])
        dw = product(d.T, rows).astype(params.w.dtype)  # dw[c,i] = sum_n dz[n,c] x[n,i]
        db = None if params.b is None else d.sum(0).astype(params.b.dtype)
        dx = product(d, params.w)  # dx[n,i] = sum_c dz[n,c] w[c,i]
        return params._replace(w=dw, b=db), dx.astype(x.dtype).reshape(x.shape)

    made = layer(forward=forward, backward=backward, name="unembedding")
    return dataclasses.replace(made, paramless=False)  # the loss makes them
