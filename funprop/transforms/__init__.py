"""Transforms: a grad_fn in, a grad_fn out."""

from funprop.transforms.clip_per_example import clip_per_example
from funprop.transforms.made_of import Transformed
from funprop.transforms.microbatch import microbatch

__all__ = ["Transformed", "clip_per_example", "microbatch"]
