"""One term of softmax cross-entropy and its gradient, from logits, with smoothing and z-loss."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import jax.numpy as jnp

from funprop.losses.cross_entropy import relative

if TYPE_CHECKING:
    from funprop.typing import Array, Bool, Float

Norms = tuple[Any, Any]  # each row's shift and norm, [n] both


class Smoothed(NamedTuple):
    """`term_n = l_n - sum_c q_nc z_nc + zeta l_n^2` with `l_n = log sum_c exp z_nc`.

    `l = shift + norm`, apart from each other: their sum would lose the norm's digits.

    Attributes:
      classes: how many.
      share: of the target that is spread evenly over the classes.
      zeta: of the z-loss.
    """

    classes: int
    share: float
    zeta: float

    def terms(
        self, norms: Norms, target: Float[Array, " n"], total: Float[Array, " n"] | None
    ) -> Float[Array, " n"]:
        """From `z` at the target, and (smoothed) the sum over classes of `z` less the shift."""
        shift, norm = norms
        terms = norm - (1 - self.share) * relative(target, shift)
        if total is not None:
            terms = terms - self.share / self.classes * total
        return terms + self.zeta * (shift + norm) ** 2 if self.zeta else terms

    def gradient(
        self,
        p: Float[Array, "n c"],
        is_target: Bool[Array, "n c"],
        norms: Norms,
        d: Float[Array, " n"],
    ) -> Float[Array, "n c"]:
        """`dz_nc = (p_nc (1 + 2 zeta l_n) - q_nc) d_n`."""
        shift, norm = norms
        if self.zeta:
            p = p * (1 + 2 * self.zeta * (shift + norm)[:, None])
        q = jnp.where(is_target, 1 - self.share, 0) + self.share / self.classes
        return (p - q) * d[:, None]


def each(z: Float[Array, "n c"], shift: Float[Array, " n"]) -> Float[Array, "n c"]:
    """`z` relative to each row's shift."""
    return relative(z, shift[:, None])
