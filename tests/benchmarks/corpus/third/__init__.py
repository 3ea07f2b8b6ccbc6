"""A third corpus, written without sight of the verifier, in kinds that the first two lack.

A mistake's name, its leaves and its kind were fixed before the first run; whether the sentence
that the verifier tells is true of it was judged afterwards, by hand.
"""

from tests.benchmarks.corpus.third import (
    attention_and_norms,
    fourier,
    images,
    implicit,
    interpolation,
    kernels,
    losses,
    matrices,
    quantised,
    ragged,
    sequences,
    sorting,
    sparse,
)
from tests.benchmarks.corpus.third.case import Case, Wrong, function

CASES: list[Case] = [
    *sparse.CASES,
    *ragged.CASES,
    *sorting.CASES,
    *fourier.CASES,
    *matrices.CASES,
    *implicit.CASES,
    *quantised.CASES,
    *kernels.CASES,
    *sequences.CASES,
    *losses.CASES,
    *attention_and_norms.CASES,
    *images.CASES,
    *interpolation.CASES,
]

__all__ = ["CASES", "Case", "Wrong", "function"]
