"""Layer -> Layer: the same function, its backward done in another way."""

from funprop.rewrites.autodiff import autodiff
from funprop.rewrites.cast import cast
from funprop.rewrites.freeze import Frozen, freeze, frozen
from funprop.rewrites.fused_update import fused_update
from funprop.rewrites.offload import offload
from funprop.rewrites.remat import remat
from funprop.rewrites.tap import Tapped, tap, untap

__all__ = [
    "Frozen",
    "Tapped",
    "autodiff",
    "cast",
    "freeze",
    "frozen",
    "fused_update",
    "offload",
    "remat",
    "tap",
    "untap",
]
