"""Layer -> Layer: the same function, its backward done in another way."""

from funprop.rewrites.autodiff import autodiff
from funprop.rewrites.cast import cast
from funprop.rewrites.fused_update import fused_update
from funprop.rewrites.remat import remat

__all__ = ["autodiff", "cast", "fused_update", "remat"]
