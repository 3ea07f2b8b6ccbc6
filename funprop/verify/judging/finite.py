"""Whether a forward pass gives numbers: where it does not there is nothing to judge."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from funprop.verify.subject import Subject, floats, refused
from funprop.verify.truth.instruments import Instruments
from funprop.verify.truth.programs import jit_of
from funprop.verify.truth.samples import Sample


def check_finite(subject: Subject, ys: Sequence[Any] | None = None) -> None:
    """Raise a `ValueError` where an output at the given inputs is NaN or infinite.

    Args:
      subject: the part.
      ys: its float outputs, where they are known.
    """
    if ys is None:
        ys = floats(jit_of(sum(leaf.size for leaf in subject.args))(subject.plain)(*subject.args))
    for y in ys:
        values = np.asarray(y, np.float64)
        if not np.isfinite(values).all():
            at = [int(i) for i in np.argwhere(~np.isfinite(values))[0]]
            raise ValueError(
                f"{subject.name} gives {values[tuple(at)]} at {at} for these arguments"
            )


def check_runs(subject: Subject) -> None:
    """Raise a `ValueError` where Python code that the forward pass calls does so at the given
    inputs."""
    run = jit_of(sum(leaf.size for leaf in subject.args))(subject.plain)
    try:
        jax.block_until_ready(run(*subject.args))
    except jax.errors.JaxRuntimeError as error:
        raise refused(error, subject.name) from None


def check_finite_at(tools: Instruments, sample: Sample) -> None:
    """The same by a program that the judgement needs anyway, where it can run.

    Args:
      tools: of the part.
      sample: of the given inputs.
    """
    try:
        ys = tools.plain(sample)
    except Exception:  # whatever is raised where the plain forward pass has no derivative
        ys = None
    check_finite(tools.subject, ys)
