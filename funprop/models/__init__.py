"""Small, readable, real models built from the layers."""

from funprop.models.generate import generate
from funprop.models.gpt import gpt, language_model, llama, unembedding
from funprop.models.transformer import block, feed_forward, self_attention, swiglu

__all__ = [
    "block",
    "feed_forward",
    "generate",
    "gpt",
    "language_model",
    "llama",
    "self_attention",
    "swiglu",
    "unembedding",
]
