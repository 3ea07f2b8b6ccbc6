"""The hand-written layers: one family a file, init, forward and backward side by side."""

from funprop.layers.activations import (
    elu,
    gelu,
    gelu_tanh,
    leaky_relu,
    relu,
    sigmoid,
    silu,
    softplus,
    tanh,
)
from funprop.layers.convolution import ConvParams, conv, conv_transpose
from funprop.layers.dense import DenseParams, dense
from funprop.layers.dropout import dropout
from funprop.layers.merge import add, concatenate
from funprop.layers.pooling import (
    average_pool,
    global_average_pool,
    global_max_pool,
    max_pool,
)
from funprop.layers.shape import flatten, reshape
from funprop.layers.softmax import log_softmax, softmax
from funprop.layers.upsampling import upsample

__all__ = [
    "ConvParams",
    "DenseParams",
    "add",
    "average_pool",
    "concatenate",
    "conv",
    "conv_transpose",
    "dense",
    "dropout",
    "elu",
    "flatten",
    "gelu",
    "gelu_tanh",
    "global_average_pool",
    "global_max_pool",
    "leaky_relu",
    "log_softmax",
    "max_pool",
    "relu",
    "reshape",
    "sigmoid",
    "silu",
    "softmax",
    "softplus",
    "tanh",
    "upsample",
]
