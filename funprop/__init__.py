"""funprop: the backward pass as a pure function that you can read, verify, swap and measure."""

from funprop.combinators import parallel, reparam, repeat, residual, serial
from funprop.fused_step import FusedState, fused_step
from funprop.gradients import Gradient, backprop, from_loss, measure, objective
from funprop.layer import Layer, Recorded, as_function, from_function, layer, map_layers, named
from funprop.layers import (
    DenseParams,
    add,
    concatenate,
    dense,
    dropout,
    elu,
    flatten,
    gelu,
    gelu_tanh,
    leaky_relu,
    log_softmax,
    relu,
    reshape,
    sigmoid,
    silu,
    softmax,
    softplus,
    tanh,
)
from funprop.losses import (
    binary_cross_entropy,
    huber,
    mean_absolute,
    mean_squared,
    softmax_cross_entropy,
)
from funprop.metrics import absolute_error, accuracy, binary_accuracy
from funprop.rewrites import Tapped, autodiff, cast, fused_update, offload, remat, tap, untap
from funprop.steps import Step, TrainState, scan, step
from funprop.summary import summary
from funprop.train import Fit, at_least, at_most, fit, patience
from funprop.trees import Sum
from funprop.verify import cost, taylor_test, verify, verify_rules, verify_second_order

__version__ = "0.1.0"

__all__ = [
    "DenseParams",
    "Fit",
    "FusedState",
    "Gradient",
    "Layer",
    "Recorded",
    "Step",
    "Sum",
    "Tapped",
    "TrainState",
    "absolute_error",
    "accuracy",
    "add",
    "as_function",
    "at_least",
    "at_most",
    "autodiff",
    "backprop",
    "binary_accuracy",
    "binary_cross_entropy",
    "cast",
    "concatenate",
    "cost",
    "dense",
    "dropout",
    "elu",
    "fit",
    "flatten",
    "from_function",
    "from_loss",
    "fused_step",
    "fused_update",
    "gelu",
    "gelu_tanh",
    "huber",
    "layer",
    "leaky_relu",
    "log_softmax",
    "map_layers",
    "mean_absolute",
    "mean_squared",
    "measure",
    "named",
    "objective",
    "offload",
    "parallel",
    "patience",
    "relu",
    "remat",
    "reparam",
    "repeat",
    "reshape",
    "residual",
    "scan",
    "serial",
    "sigmoid",
    "silu",
    "softmax",
    "softmax_cross_entropy",
    "softplus",
    "step",
    "summary",
    "tanh",
    "tap",
    "taylor_test",
    "untap",
    "verify",
    "verify_rules",
    "verify_second_order",
]
