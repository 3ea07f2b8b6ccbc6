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
from funprop.layers.batch_norm import BatchNormParams, BatchSums, batch_norm
from funprop.layers.calibration import calibrate
from funprop.layers.convolution import ConvParams, conv, conv_transpose
from funprop.layers.dense import DenseParams, dense
from funprop.layers.dropout import dropout
from funprop.layers.embedding import EmbeddingParams, embedding, learned_positions
from funprop.layers.gated import gated
from funprop.layers.group_norm import group_norm
from funprop.layers.gru import GRUParams, gru
from funprop.layers.lstm import LSTMParams, lstm
from funprop.layers.merge import add, concatenate
from funprop.layers.norm_params import NormParams
from funprop.layers.normalisation import layer_norm, rms_norm
from funprop.layers.pooling import (
    average_pool,
    global_average_pool,
    global_max_pool,
    max_pool,
)
from funprop.layers.recurrent import last_step, with_lengths
from funprop.layers.shape import flatten, reshape
from funprop.layers.softmax import log_softmax, softmax
from funprop.layers.spiking import lif
from funprop.layers.upsampling import upsample

__all__ = [
    "BatchNormParams",
    "BatchSums",
    "ConvParams",
    "DenseParams",
    "EmbeddingParams",
    "GRUParams",
    "LSTMParams",
    "NormParams",
    "add",
    "attention",
    "average_pool",
    "batch_norm",
    "calibrate",
    "concatenate",
    "conv",
    "conv_transpose",
    "dense",
    "dropout",
    "elu",
    "embedding",
    "flatten",
    "gated",
    "gelu",
    "gelu_tanh",
    "global_average_pool",
    "global_max_pool",
    "group_norm",
    "gru",
    "last_step",
    "layer_norm",
    "leaky_relu",
    "learned_positions",
    "lif",
    "log_softmax",
    "lstm",
    "max_pool",
    "relu",
    "reshape",
    "rms_norm",
    "sigmoid",
    "silu",
    "softmax",
    "softplus",
    "tanh",
    "upsample",
    "with_lengths",
]
