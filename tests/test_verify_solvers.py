"""What runs until it is good enough, and kernels of many steps: judged, and in bounded time."""

import functools
import time

import jax
import jax.numpy as jnp
import pytest
from jax.experimental import pallas as pl

import funprop as fp
from tests.test_verify import normal, rule

pytestmark = [pytest.mark.usefixtures("any_ranks"), pytest.mark.slow]

SECONDS = 120  # of processor time, all compilation in it; none takes a fifth of it


def until(far, step, start):
    """Steps until `far` of two that follow each other is false."""
    goes_on = lambda s: far(s[0], s[1]) & (s[2] < 200)
    return jax.lax.while_loop(
        goes_on, lambda s: (step(s[0]), s[0], s[2] + 1), (start, start + 1, 0)
    )[0]


def square_root(a, tolerance):
    """Newton's iteration: how many turns it takes depends on `a`."""
    return until(lambda x, y: jnp.abs(x - y).max() > tolerance, lambda x: (x + a / x) / 2, a)


def gradient_descent(h, b):
    """The least of x h x / 2 - b x."""
    h = h @ h.T + jnp.eye(len(b), dtype=b.dtype)
    far = lambda x, y: jnp.abs(x - y).max() > 1e-7
    return until(far, lambda x: x - 0.2 * (h @ x - b), jnp.zeros_like(b))


def of_least(args, x, dy, both=True):
    h, _ = args
    u = jnp.linalg.solve(h @ h.T + jnp.eye(len(x), dtype=x.dtype), dy)
    outer = -(jnp.outer(u, x) + (jnp.outer(x, u) if both else 0))
    return outer @ h, u


SOLVERS = {
    "root": (functools.partial(square_root, tolerance=1e-6), (abs(normal(5)) + 0.5,), lambda a, y, dy: (dy / (2 * y),)),
    "root, loosely": (
        functools.partial(square_root, tolerance=1e-2), (abs(normal(5)) + 0.5,),
        lambda a, y, dy: (dy / (2 * y),),
    ),
    "least": (gradient_descent, (0.5 * normal(3, 3), normal(3, seed=1)), of_least),
}  # fmt: skip

WRONG = {
    "root": lambda a, y, dy: (dy / y,),
    "root, loosely": lambda a, y, dy: (1.01 * dy / (2 * y),),
    "least": functools.partial(of_least, both=False),
}


@pytest.mark.parametrize("name", SOLVERS)
def test_a_solver_that_stops_early(name):
    forward, args, right = SOLVERS[name]
    start = time.process_time()
    report = fp.verify(rule(forward, right), *args)
    assert report.ok, str(report)
    found = fp.verify(rule(forward, WRONG[name]), *args).findings
    assert [f.path.rpartition("/")[2] for f in found] == [{"least": "h"}.get(name, "a")]
    assert time.process_time() - start < SECONDS


def flash(causal, q, k, v):
    """Attention by a kernel over blocks of queries, a running maximum and sum over those of keys."""
    n, d = q.shape
    block = 2

    def body(q_ref, k_ref, v_ref, y_ref):
        i, q = pl.program_id(0), q_ref[...] / jnp.sqrt(jnp.array(d, q_ref.dtype))

        def turn(j, state):
            total, top, norm = state
            keys = k_ref[pl.dslice(j * block, block), :]
            scores = q @ keys.T
            if causal:
                here = i * block + jnp.arange(block)[:, None]
                scores = jnp.where(here >= j * block + jnp.arange(block), scores, -1e30)
            higher = jnp.maximum(top, scores.max(1))
            p, kept = jnp.exp(scores - higher[:, None]), jnp.exp(top - higher)
            total = kept[:, None] * total + p @ v_ref[pl.dslice(j * block, block), :]
            return total, higher, kept * norm + p.sum(1)

        start = (
            jnp.zeros(q.shape, q.dtype),
            jnp.full(block, -1e30, q.dtype),
            jnp.zeros(block, q.dtype),
        )
        turns = i + 1 if causal else n // block
        total, _, norm = jax.lax.fori_loop(0, turns, turn, start)
        y_ref[...] = total / norm[:, None]

    whole = pl.BlockSpec((n, d), lambda i: (0, 0))
    rows = pl.BlockSpec((block, d), lambda i: (i, 0))
    return pl.pallas_call(
        body,
        grid=(n // block,),
        in_specs=[rows, whole, whole],
        out_specs=rows,
        out_shape=jax.ShapeDtypeStruct(q.shape, q.dtype),
        interpret=True,
    )(q, k, v)


def flash_backward(causal, wrong, args, y, dy):
    q, k, v = args
    scale = 1 / jnp.sqrt(jnp.array(q.shape[1], q.dtype))
    mask = jnp.tril(jnp.ones((len(q), len(k)), bool)) if causal else True
    p = jax.nn.softmax(jnp.where(mask, scale * q @ k.T, -jnp.inf))
    dp = dy @ v.T
    ds = p * (dp - (0 if wrong == "no sum" else (dy * y).sum(1, keepdims=True)))
    dk = ds.T @ q if wrong == "no scale" else scale * ds.T @ q
    return scale * ds @ k, dk, p.T @ dy


@pytest.mark.parametrize("causal", [False, True])
def test_flash_attention_in_an_interpreted_kernel(causal):
    args = [normal(4, 3, seed=i) for i in range(3)]
    forward = lambda q, k, v: flash(causal, q, k, v)
    start = time.process_time()

    def verified(wrong):
        return fp.verify(rule(forward, functools.partial(flash_backward, causal, wrong)), *args)

    report = verified("")
    assert report.ok, str(report)
    assert {f.path.rpartition("/")[2] for f in verified("no sum").findings} == {"q", "k"}
    (finding,) = verified("no scale").findings
    assert (finding.path.rpartition("/")[2], finding.story) == ("k", "factor"), finding
    assert time.process_time() - start < SECONDS
