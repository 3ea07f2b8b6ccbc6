"""TensorFlow Probability 0.25 asks JAX for a table that newer ones have moved."""

from __future__ import annotations

import importlib

import jax.interpreters.xla as xla


def restore() -> None:
    """Put the table where TFP's substrate, and so distrax and kfac-jax, look for it."""
    if not hasattr(xla, "pytype_aval_mappings"):
        core = importlib.import_module("jax._src.core")
        xla.pytype_aval_mappings = core.pytype_aval_mappings  # type: ignore[attr-defined]
