"""Where gradients are measured: inputs, and cotangents of the outputs."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from funprop.verify.truth.instruments import Instruments


class Sample(NamedTuple):
    """Inputs, and cotangents of the float outputs: both in float64, integers as they are.

    Attributes:
      unit: the size of the cotangents; gradients are divided by it, to be compared.
    """

    inputs: list[Any]
    dys: list[Any]
    unit: float = 1.0


def random_numbers(seed: int) -> np.random.Generator:
    """A generator whose numbers are not those that people draw their inputs from."""
    return np.random.default_rng([seed, zlib.crc32(b"funprop.verify")])


def drawn_sample(
    tools: Instruments, inputs: list[Any], unit: float, rng: np.random.Generator
) -> Sample:
    """Inputs under random cotangents of a size; of a loss's gradient, under one."""
    free = tools.subject.free_cotangent
    dys = [
        unit * (rng.standard_normal(spec.shape) if free else np.ones(spec.shape))
        for spec in tools.dys
    ]
    # The numbers that the working precision makes of it: everybody shall see the same.
    rounded = [
        np.asarray(d.astype(spec.dtype), np.float64) for d, spec in zip(dys, tools.dys, strict=True)
    ]
    return Sample(inputs, rounded, unit)
