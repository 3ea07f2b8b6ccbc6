"""Sequences of many lengths: offsets, lengths, segments."""

import jax
import jax.numpy as jnp
import numpy as np

from tests.benchmarks.corpus.third.case import case, floats

OFFSETS = np.array([0, 3, 4, 8], np.int32)
LENGTHS = np.array([3, 1, 4], np.int32)


def rows_of(offsets, n):
    return jnp.searchsorted(offsets, jnp.arange(n), side="right") - 1


def ragged_mean(tokens, offsets):
    rows = rows_of(offsets, tokens.shape[0])
    return jax.ops.segment_sum(tokens, rows, 3) / jnp.diff(offsets)[:, None]


def ragged_mean_bwd(wrong, args, y, dy):
    tokens, offsets = args
    rows = rows_of(offsets, tokens.shape[0])
    if wrong == "offsets to the left":
        rows = jnp.searchsorted(offsets, jnp.arange(8), side="left") - 1
    share = dy / jnp.diff(offsets)[:, None]
    if wrong == "lengths forgotten":
        share = dy
    if wrong == "the longest length for all":
        share = dy / jnp.diff(offsets).max()
    if wrong == "offsets for lengths":
        share = dy / offsets[1:, None]
    return share[rows], None


def pool_by_length(x, lengths):
    mask = jnp.arange(x.shape[1]) < lengths[:, None]
    return (x * mask[..., None]).sum(1) / lengths[:, None]


def pool_by_length_bwd(wrong, args, y, dy):
    x, lengths = args
    place = jnp.arange(x.shape[1])
    mask = place < lengths[:, None]
    if wrong == "one place too many":
        mask = place <= lengths[:, None]
    if wrong == "mask forgotten":
        mask = mask | True
    if wrong == "mask upside down":
        mask = ~mask
    by = x.shape[1] if wrong == "divided by the padded length" else lengths[:, None]
    return mask[..., None] * (dy / by)[:, None], None


def segment_softmax(scores, ids):
    e = jnp.exp(scores - jax.ops.segment_max(scores, ids, 3)[ids])
    return e / jax.ops.segment_sum(e, ids, 3)[ids]


def segment_softmax_bwd(wrong, args, y, dy):
    scores, ids = args
    mean = jax.ops.segment_sum(y * dy, ids, 3)[ids]
    if wrong == "sum over all":
        mean = (y * dy).sum()
    if wrong == "sum forgotten":
        mean = 0
    if wrong == "sum not weighted":
        mean = jax.ops.segment_sum(dy, ids, 3)[ids]
    if wrong == "sum added":
        mean = -mean
    return y * (dy - mean), None


def last_token(x, lengths):
    return x[jnp.arange(x.shape[0]), lengths - 1]


def last_token_bwd(wrong, args, y, dy):
    x, lengths = args
    at = lengths - 1
    if wrong == "the place after":
        at = lengths
    if wrong == "the padded last place":
        at = jnp.full_like(lengths, x.shape[1] - 1)
    zero = jnp.zeros_like(x)
    if wrong == "spread over the sequence":
        mask = jnp.arange(x.shape[1]) < lengths[:, None]
        return mask[..., None] * dy[:, None] / lengths[:, None, None], None
    return zero.at[jnp.arange(x.shape[0]), at].set(dy), None


def packed_cumsum(x, starts):
    """A running sum that begins anew where a sequence does."""

    def step(carry, now):
        value, start = now
        carry = jnp.where(start, 0, carry) + value
        return carry, carry

    return jax.lax.scan(step, jnp.zeros(x.shape[1:], x.dtype), (x, starts))[1]


def packed_cumsum_bwd(wrong, args, y, dy):
    x, starts = args
    ends = jnp.append(starts[1:], True)
    if wrong == "boundaries not shifted":
        ends = starts
    if wrong == "across boundaries":
        ends = jnp.zeros_like(starts)
    order = slice(None) if wrong == "forwards in time" else slice(None, None, -1)

    def step(carry, now):
        value, end = now
        carry = jnp.where(end, 0, carry) + value
        return carry, carry

    given = starts if wrong == "forwards in time" else ends
    total = jax.lax.scan(step, jnp.zeros(x.shape[1:], x.dtype), (dy[order], given[order]))[1]
    total = total[order]
    if wrong == "the present left out":
        total = total - dy
    return total, None


def padded_rows(tokens, offsets):
    """Tokens side by side into rows with zeros behind."""
    at = offsets[:-1, None] + jnp.arange(4)
    inside = at < offsets[1:, None]
    return jnp.where(inside[..., None], tokens[jnp.minimum(at, tokens.shape[0] - 1)], 0)


def padded_rows_bwd(wrong, args, y, dy):
    tokens, offsets = args
    at = offsets[:-1, None] + jnp.arange(4)
    inside = at < offsets[1:, None]
    if wrong == "padding counted":
        inside = inside | True
    if wrong == "last row forgotten":
        inside = inside.at[-1].set(False)
    sent = jnp.where(inside[..., None], dy, 0)
    at = jnp.minimum(at, tokens.shape[0] - 1)
    if wrong == "padding overwrites the next row":
        return jnp.zeros_like(tokens).at[at[::-1]].set(sent[::-1]), None
    return jnp.zeros_like(tokens).at[at].add(sent), None


STARTS = np.array([1, 0, 0, 1, 1, 0, 0], bool)

CASES = [
    case(ragged_mean, ragged_mean_bwd, floats((8, 2), OFFSETS),
        ("offsets to the left", "tokens", "boundary off by one"), ("lengths forgotten", "tokens", "factor by row"),
        ("the longest length for all", "tokens", "factor by row"), ("offsets for lengths", "tokens", "factor by row")),
    case(pool_by_length, pool_by_length_bwd, floats((3, 5, 2), LENGTHS),
        ("one place too many", "x", "mask off by one"), ("mask forgotten", "x", "mask forgotten"),
        ("mask upside down", "x", "wrong mask"), ("divided by the padded length", "x", "factor by row")),
    case(segment_softmax, segment_softmax_bwd, floats((8,), np.array([0, 0, 0, 1, 1, 2, 2, 2], np.int32)),
        ("sum over all", "scores", "wrong axis of a sum"), ("sum forgotten", "scores", "term forgotten"),
        ("sum not weighted", "scores", "factor of a term"), ("sum added", "scores", "sign of a term")),
    case(last_token, last_token_bwd, floats((3, 5, 2), LENGTHS),
        ("the place after", "x", "off by one"), ("the padded last place", "x", "wrong index"),
        ("spread over the sequence", "x", "wrong index")),
    case(packed_cumsum, packed_cumsum_bwd, floats((7, 2), STARTS),
        ("boundaries not shifted", "x", "boundary off by one"), ("across boundaries", "x", "mask forgotten"),
        ("forwards in time", "x", "order of time"), ("the present left out", "x", "term forgotten")),
    case(padded_rows, padded_rows_bwd, floats((8, 2), OFFSETS),
        ("padding counted", "tokens", "mask forgotten"), ("last row forgotten", "tokens", "part is zero"),
        ("padding overwrites the next row", "tokens", "duplicates overwritten")),
]  # fmt: skip
