"""What a GPU or TPU rounds of its own is no mistake: products of float32 in fewer bits."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from funprop.verify.judging.judge import FACTOR, Verdict
from funprop.verify.truth.instruments import EPS32

TF32 = 2.0**-10  # the rounding unit of what a GPU multiplies, by default, for a product of float32


@contextlib.contextmanager
def products_in_float32() -> Iterator[None]:
    """JAX's products of float32 in float32, on a device that by default rounds what it multiplies
    to TF32 or bfloat16: autodiff's gradient and a right rule differ by that, where one has a
    product in the place of the other's sum. A precision that the user has set stays."""
    set_ = jax.config.jax_default_matmul_precision  # pyright: ignore[reportAttributeAccessIssue]
    if jax.default_backend() == "cpu" or set_ is not None:
        yield
    else:
        with jax.default_matmul_precision("highest"):
            yield


def rounded(verdict: Verdict, eps: float) -> tuple[Verdict, str]:
    """The verdict on a gradient that is right in float64, and what is to be said of it: where a GPU
    computes, a kernel in float32 may be as far off as products in TF32 are."""
    far = float(np.max(np.where(verdict.wrong, verdict.error, 0), initial=0))
    if eps != EPS32 or not on_gpu() or not far <= FACTOR * TF32 * verdict.size:
        return verdict, ""
    off = f"{far / (verdict.size or 1):.0e}"
    forgiven = verdict._replace(allowed=np.where(verdict.wrong, np.inf, verdict.allowed))
    return forgiven, f"right in float64; as it runs {off} off, as products in TF32 are"


def on_gpu() -> bool:
    """Whether a GPU may compute what is judged: JAX's, or PyTorch's behind a callback."""
    if jax.default_backend() == "gpu":
        return True
    torch: Any = sys.modules.get("torch")
    return torch is not None and torch.cuda.is_available()
