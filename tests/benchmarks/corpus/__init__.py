"""Backward rules, right ones and wrong ones, to measure what checks gradients."""

from tests.benchmarks.corpus import (
    activations,
    attention,
    linear,
    losses,
    models,
    norms,
    reductions,
)
from tests.benchmarks.corpus.operation import Mutant, Operation, as_rule

OPERATIONS: list[Operation] = [
    *linear.OPERATIONS,
    *activations.OPERATIONS,
    *reductions.OPERATIONS,
    *losses.OPERATIONS,
    *norms.OPERATIONS,
    *attention.OPERATIONS,
    *models.OPERATIONS,
]

__all__ = ["OPERATIONS", "Mutant", "Operation", "as_rule"]
