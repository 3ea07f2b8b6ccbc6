"""Layer -> Layer: the same function, its backward done in another way."""

from funprop.rewrites.autodiff import autodiff
from funprop.rewrites.cast import cast
from funprop.rewrites.feedback import Feedback, feedback_alignment, sign_symmetric
from funprop.rewrites.freeze import freeze, frozen
from funprop.rewrites.fused_update import fused_update
from funprop.rewrites.halves import backward_inputs, backward_params
from funprop.rewrites.low_rank import LowRank, adapted, low_rank, merged
from funprop.rewrites.offload import offload
from funprop.rewrites.quantised import quantised
from funprop.rewrites.remat import remat
from funprop.rewrites.tap import tap

__all__ = [
    "Feedback",
    "LowRank",
    "adapted",
    "autodiff",
    "backward_inputs",
    "backward_params",
    "cast",
    "feedback_alignment",
    "freeze",
    "frozen",
    "fused_update",
    "low_rank",
    "merged",
    "offload",
    "quantised",
    "remat",
    "sign_symmetric",
    "tap",
]
