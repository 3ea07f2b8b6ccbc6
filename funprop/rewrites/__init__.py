"""Layer -> Layer: the same function, its backward done in another way."""

from funprop.params.frozen import Frozen
from funprop.params.tapped import Tapped, untap
from funprop.rewrites.autodiff import autodiff
from funprop.rewrites.cast import cast
from funprop.rewrites.freeze import freeze, frozen
from funprop.rewrites.fused_update import fused_update
from funprop.rewrites.low_rank import LowRank, adapted, low_rank
from funprop.rewrites.offload import offload
from funprop.rewrites.remat import remat
from funprop.rewrites.tap import tap

__all__ = [
    "Frozen",
    "LowRank",
    "Tapped",
    "adapted",
    "autodiff",
    "cast",
    "freeze",
    "frozen",
    "fused_update",
    "low_rank",
    "offload",
    "remat",
    "tap",
    "untap",
]
