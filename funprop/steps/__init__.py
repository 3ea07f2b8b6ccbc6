"""Steps, and wrappers: a Step in, a Step out."""

from funprop.steps.ema import Averaged, ema
from funprop.steps.loss_scale import Scaled, loss_scale
from funprop.steps.population import Population, member, population
from funprop.steps.scan import scan
from funprop.steps.skip_nonfinite import Guarded, skip_nonfinite
from funprop.steps.step import Step, TrainState, step

__all__ = [
    "Averaged",
    "Guarded",
    "Population",
    "Scaled",
    "Step",
    "TrainState",
    "ema",
    "loss_scale",
    "member",
    "population",
    "scan",
    "skip_nonfinite",
    "step",
]
