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
from funprop.layers.attention import attention
from funprop.layers.dense import DenseParams, dense
from funprop.layers.dropout import dropout
from funprop.layers.embedding import embedding, learned_positions
from funprop.layers.merge import add, concatenate
from funprop.layers.shape import flatten, reshape
from funprop.layers.softmax import log_softmax, softmax

__all__ = [
    "DenseParams",
    "add",
    "attention",
    "concatenate",
    "dense",
    "dropout",
    "elu",
    "embedding",
    "flatten",
    "gelu",
    "gelu_tanh",
    "leaky_relu",
    "learned_positions",
    "log_softmax",
    "relu",
    "reshape",
    "sigmoid",
    "silu",
    "softmax",
    "softplus",
    "tanh",
]
