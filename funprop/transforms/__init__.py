"""Transforms: a grad_fn in, a grad_fn out."""

from funprop.transforms.clip_per_example import clip_per_example
from funprop.transforms.data_parallel import data_parallel
from funprop.transforms.gradient_statistics import gradient_statistics
from funprop.transforms.microbatch import microbatch
from funprop.transforms.mixed_precision import mixed_precision
from funprop.transforms.ordered import ordered
from funprop.transforms.transformed import Transformed

__all__ = [
    "Transformed",
    "clip_per_example",
    "data_parallel",
    "gradient_statistics",
    "microbatch",
    "mixed_precision",
    "ordered",
]
