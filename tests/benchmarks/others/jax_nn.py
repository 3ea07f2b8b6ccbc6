"""Calls of `jax.nn`."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from tests.benchmarks.others.call import (
    MASK,
    POINTS,
    Calls,
    Table,
    array,
    at,
    by,
    every,
    normal,
    positive,
)
from tests.benchmarks.others.names import functions

X, LOGITS = normal(3, 4), 5 * normal(3, 4)
QKV = normal(2, 5, 2, 4), normal(2, 5, 2, 4), normal(2, 5, 2, 4)
FLAG = "jax_softmax_custom_jvp"


def with_rule(softmax: Any, x: Any) -> Any:
    """Softmax by its rule, which JAX leaves out unless it is asked for it."""
    before = getattr(jax.config, FLAG)
    jax.config.update(FLAG, True)
    try:
        return softmax(x)
    finally:
        jax.config.update(FLAG, before)


CALLS: Calls = {
    **every(
        "celu elu gelu hard_sigmoid hard_silu hard_swish hard_tanh identity leaky_relu log_sigmoid "
        "mish relu relu6 selu sigmoid silu soft_sign softplus sparse_plus sparse_sigmoid "
        "squareplus swish tanh",
        at(POINTS),
        at(X),
        at(POINTS.astype("bfloat16")),
    ),
    "dot_product_attention": [at(*QKV), at(*QKV, is_causal=True)],
    "glu": [at(X)],
    "log1mexp": [at(array(1e-6, 1e-3, 0.1, 0.5, 0.69, 0.7, 2, 20, 80)), at(positive(3, 4))],
    "log_softmax": [at(LOGITS), at(normal(1, 1)), by(lambda f, x: f(x, where=MASK), X)],
    "logmeanexp": [at(LOGITS), at(array(0, 0, 0))],
    "logsumexp": [
        at(LOGITS),
        at(array(0, 0, 0)),
        at(LOGITS, axis=-1),
        by(lambda f, x, b: f(x, b=b), LOGITS, positive(3, 4)),
    ],
    "one_hot": [at(np.array([0, 2]), num_classes=3)],
    "softmax": [
        at(LOGITS),
        at(array(0, 0, 0)),
        at(array(-200, 0, 200)),
        at(normal(1, 1)),
        at(normal(3, 4), axis=0),
        by(lambda f, x: f(x, where=MASK), X),
        by(lambda f, x: f(x, where=np.zeros(4, bool)), X),
        at(LOGITS.astype("bfloat16")),
        by(with_rule, LOGITS),
        by(with_rule, array(-200, 0, 200)),
        by(with_rule, LOGITS.astype("bfloat16")),
        by(lambda f, x: with_rule(lambda x: f(x, where=MASK), x), X),
    ],
    "standardize": [at(X), at(np.ones((2, 3), np.float32)), at(normal(3, 1))],
}

EXCUSED = {
    "scaled_dot_general": "needs a GPU of the Blackwell kind",
    "scaled_matmul": "needs a GPU of the Blackwell kind",
    "get_scaled_dot_general_config": "gives settings, no array",
}


def tables() -> list[Table]:
    """The one table of this file."""
    return [Table("jax.nn", jax.nn, CALLS, functions(jax.nn), EXCUSED)]
