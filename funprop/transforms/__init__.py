"""Transforms: a grad_fn in, a grad_fn out."""

from funprop.transforms.made_of import Transformed
from funprop.transforms.microbatch import microbatch

__all__ = ["Transformed", "microbatch"]
