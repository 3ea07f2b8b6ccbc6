"""Layer -> Layer: the same function, its backward done in another way."""

from funprop.rewrites.autodiff import autodiff
from funprop.rewrites.cast import cast
from funprop.rewrites.freeze import freeze, frozen
from funprop.rewrites.fused_update import fused_update
from funprop.rewrites.halves import backward_inputs, backward_params
from funprop.rewrites.low_rank import LowRank, adapted, low_rank, merged
from funprop.rewrites.offload import offload
from funprop.rewrites.remat import remat
from funprop.rewrites.tap import tap

__all__ = [
    "LowRank",
    "adapted",
    "autodiff",
    "backward_inputs",
    "backward_params",
    "cast",
    "freeze",
    "frozen",
    "fused_update",
    "low_rank",
    "merged",
    "offload",
    "remat",
    "tap",
]
