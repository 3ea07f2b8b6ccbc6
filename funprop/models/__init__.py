"""Small, readable, real models built from the layers."""

from funprop.models.autoencoder import autoencoder
from funprop.models.cnn import cnn
from funprop.models.generate import generate
from funprop.models.gpt import gpt, language_model, llama, unembedding
from funprop.models.mlp import mlp
from funprop.models.rnn import rnn
from funprop.models.transformer import block, feed_forward, keep_products, self_attention, swiglu

__all__ = [
    "autoencoder",
    "block",
    "cnn",
    "feed_forward",
    "generate",
    "gpt",
    "keep_products",
    "language_model",
    "llama",
    "mlp",
    "rnn",
    "self_attention",
    "swiglu",
    "unembedding",
]
