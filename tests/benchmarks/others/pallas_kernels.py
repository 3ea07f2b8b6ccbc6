"""Calls of tokamax, and of Pallas' own kernels, interpreted."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import tokamax
from jax.experimental import pallas as pl
from jax.experimental.pallas.ops.gpu import attention, layer_norm, rms_norm
from jax.experimental.pallas.ops.tpu.megablox import ops as megablox

from tests.benchmarks.others.call import Calls, Table, by, normal

QKV = tuple(normal(1, 16, 2, 16) for _ in range(3))
W, B = 1 + normal(16), normal(16)


def _attention(_: Any, q: Any, k: Any, v: Any) -> Any:
    sizes = attention.BlockSizes(
        block_q=16, block_k=16, block_q_dkv=16, block_kv_dkv=16, block_q_dq=16, block_kv_dq=16
    )
    return attention.mha(
        q, k, v, None, block_sizes=sizes, interpret=True, backward_pass_impl="triton"
    )


def _reference(_: Any, q: Any, k: Any, v: Any) -> Any:
    return attention.mha(
        q,
        k,
        v,
        None,
        block_sizes=attention.BlockSizes(block_q=16, block_k=16),
        interpret=True,
        backward_pass_impl="xla",
        causal=True,
    )


def _gmm(_: Any, x: Any, w: Any) -> Any:
    return megablox.gmm(
        x, w, jnp.array([8, 8], jnp.int32), jnp.float32, (8, 8, 8), None, None, False, True
    )


PALLAS: Calls = {
    "pallas.attention": [by(_attention, *QKV), by(_reference, *QKV)],
    "pallas.norms": [
        by(
            lambda _, x, w, b: layer_norm.layer_norm(x, w, b, interpret=True),
            normal(2, 2, 16),
            W,
            B,
        ),
        by(lambda _, x, w, b: rms_norm.rms_norm(x, w, b, interpret=True), normal(2, 2, 16), W, B),
    ],
    "pallas.gmm": [by(_gmm, normal(16, 8), normal(2, 8, 8))],
}
TOKAMAX: Calls = {
    "tokamax.attention": [
        by(
            lambda _, q, k, v: tokamax.dot_product_attention(
                q, k, v, is_causal=True, implementation="xla"
            ),
            *QKV,
        )
    ],
    "tokamax.layer_norm": [
        by(
            lambda _, x, w, b: tokamax.layer_norm(x, w, b, implementation="xla"),
            normal(2, 16),
            W,
            B,
        ),
    ],
    "tokamax.gated_linear_unit": [
        by(
            lambda _, x, w: tokamax.gated_linear_unit(
                x, w, activation=jax.nn.silu, implementation="xla"
            ),
            normal(3, 8),
            normal(8, 2, 4),
        ),
    ],
    "tokamax.ragged_dot": [
        by(
            lambda _, x, w: tokamax.ragged_dot(
                x, w, jnp.array([3, 5], jnp.int32), implementation="xla"
            ),
            normal(8, 4),
            normal(2, 4, 3),
        ),
    ],
    "tokamax.linear_softmax_cross_entropy_loss": [
        by(
            lambda _, x, w: tokamax.linear_softmax_cross_entropy_loss(
                x, jnp.array([1, 0, 3, 2]), w, implementation="xla"
            ),
            normal(4, 8),
            normal(8, 5),
        ),
    ],
}


def tables() -> Iterator[Table]:
    """Two tables."""
    yield Table("pallas", pl, PALLAS, [], {})
    yield Table("tokamax", tokamax, TOKAMAX, [], {})
