"""The order of an epoch over data that has no end: drawn from `(seed, epoch)`, and kept nowhere."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from funprop.typing import Int

ROUNDS = 8


def shuffled(
    places: Int[np.ndarray, "*shape"], n: int, seed: int, epoch: int
) -> Int[np.ndarray, "*shape"]:
    """Which of `n` records stand at these places of an epoch's order; each stands at one.

    A permutation that is computed for the places that are asked for, so that an order of 10^9
    records takes no memory and no time: a Feistel network over pairs of digits, `place = left * b +
    right`, where each round adds to one digit a hash of the other. `a * b` is little more than `n`;
    what falls between is sent through again until it falls below (cycle walking).
    Source: Black and Rogaway 2002, Ciphers with arbitrary finite domains, section 5; the hash is
    the finaliser of SplitMix64 (Steele, Lea and Flood 2014).

    Args:
      places: from 0 to `n - 1`.
      n: how many records there are, up to 2^63 - 1.
      seed, epoch: what the order is drawn from, and nothing else.

    Returns:
      Numbers of records, int64.

    Example:
      >>> shuffled(np.arange(7), 7, seed=0, epoch=0).tolist()
      [6, 5, 1, 3, 4, 0, 2]
      >>> shuffled(np.arange(2), 10**18, seed=0, epoch=0).tolist()
      [70118117835479577, 20473283171319954]
    """
    keys = np.random.SeedSequence([seed, epoch]).generate_state(ROUNDS, np.uint64)
    a = math.isqrt(n - 1) + 1  # the root of n, rounded up
    b = -(-n // a)
    found = _network(np.asarray(places).astype(np.uint64), a, b, keys)
    while (beyond := found >= np.uint64(n)).any():
        found[beyond] = _network(found[beyond], a, b, keys)
    return found.astype(np.int64)


def _network(x: np.ndarray, a: int, b: int, keys: np.ndarray) -> np.ndarray:
    """A permutation of the numbers below `a * b`."""
    left, right = np.divmod(x, np.uint64(b))
    sizes = np.uint64(a), np.uint64(b)
    for i, key in enumerate(keys):
        size = sizes[i % 2]  # of the digit that changes
        left, right = right, (left + _hash(right, key) % size) % size
    return left * np.uint64(b) + right  # after an even number of rounds, each is where it was


def _hash(x: np.ndarray, key: np.uint64) -> np.ndarray:
    x = x ^ key
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
