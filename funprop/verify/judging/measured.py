"""What is measured at samples, and the verdicts on it."""

from __future__ import annotations

from typing import Any

import numpy as np

from funprop.verify.judging.judge import Judgement, in_float64, judged
from funprop.verify.subject import is_floating
from funprop.verify.truth.instruments import EPS32, EPS64, Instruments
from funprop.verify.truth.samples import Sample


def measured(tools: Instruments, samples: list[Sample], rng: np.random.Generator) -> Judgement:
    """The verdicts at samples, those that share the inputs of the first in the dtype as given.

    Raises:
      NotWideError: the truth cannot be had.
    """
    here = [s for s in samples if s.inputs is samples[0].inputs]
    found = in_float64(tools, samples)._replace(hands=[tools.hand(s) for s in here])
    if tools.eps > EPS64:
        autos = [tools.auto(s) for s in here]
    else:  # float64: as far as the truth moves when the inputs are rounded to float32
        autos = [tools.truth(s._replace(inputs=_jittered(s.inputs, rng))) for s in here]
    found = found._replace(autos=autos)
    return judged(found, tools.eps, tools.constants, units=tools.units)


def _jittered(inputs: list[Any], rng: np.random.Generator) -> list[Any]:
    return [
        v * (1 + EPS32 * rng.uniform(-1, 1, v.shape))
        if isinstance(v, np.ndarray) and is_floating(v)
        else v
        for v in inputs
    ]
