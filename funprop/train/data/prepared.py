"""A run's feed and its program, made of whatever data is given; what does not fit is told here."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from funprop.steps import Step
from funprop.train.arguments import check_divides, check_sizes, check_state
from funprop.train.arrays import copies
from funprop.train.data.feeds import Feed, InMemory, picked, picked_or_padding
from funprop.train.data.in_memory import Last, arrays, blocks, epoch_rows
from funprop.train.data.made_batches import MadeBatches
from funprop.train.data.padding import WAYS_OUT, check_padding, one_shape
from funprop.train.data.record_batches import RecordBatches
from funprop.train.data.records import is_source
from funprop.train.data.streamed import Streamed, batch_of
from funprop.train.runner import Runner, runner
from funprop.values import short_line, whole_number

if TYPE_CHECKING:
    from funprop.typing import PyTree


class Given(NamedTuple):
    """What `fit` is given to train on, each of it as it may be.

    Attributes:
      data: a tuple of arrays, a source of records, or a function `(seed, index) -> batch`.
      batch_size: examples a batch; 0 where a function decides.
      updates: in an epoch, where a function makes the batches; else 0.
    """

    data: Any
    epochs: int
    batch_size: int
    updates: int
    seed: int
    last: Last
    mesh: jax.sharding.Mesh | None


class Prepared(NamedTuple):
    """What `fit` runs.

    Attributes:
      feed: the batches.
      runs: the program.
      data, rows: an example of a block's, for its shapes alone.
    """

    feed: Feed
    runs: Runner
    data: PyTree
    rows: Any


def given(
    data: Any,
    epochs: int,
    batch_size: int | None,
    updates: int | None,
    seed: int,
    last: Last,
    mesh: jax.sharding.Mesh | None,
) -> Given:
    """What is given, where it fits together.

    Raises:
      TypeError, ValueError: it does not.
    """
    source = is_source(data)
    if not source and callable(data) and not isinstance(data, tuple):
        if batch_size is not None:
            raise ValueError("batch_size must be left out, as data is a function of batches")
        if updates is None:
            raise ValueError("updates must be given, how many an epoch has, as data is a function")
        updates = whole_number(updates, "updates", 1)
        epochs, _ = check_sizes(1, epochs, 1, last)
        return Given(data, epochs, 0, updates, whole_number(seed, "seed", 0), last, mesh)
    if source:
        try:
            n = len(data)
        except Exception as error:
            raise ValueError(f"data: its length cannot be read: {short_line(error)}") from error
        if not n:
            raise ValueError("data must have at least one example, got none")
    elif isinstance(data, Iterator):
        raise TypeError(
            "data must be a source with __len__ and __getitem__, or a function (seed, index) -> "
            f"batch, got {type(data).__name__}: batch i must be there again (docs/data.md)"
        )
    else:
        data = arrays(data)
        n = len(jax.tree.leaves(data)[0])
    if updates is not None:
        raise ValueError("updates must be left out where data is no function: all is an epoch")
    epochs, size = check_sizes(n, epochs, batch_size, last)
    return Given(data, epochs, size, 0, whole_number(seed, "seed", 0), last, mesh)


def prepared(step: Step, state: Any, what: Given, donate: bool) -> Prepared:
    """The feed of what is given and the program that trains on it.

    Raises:
      TypeError, ValueError: data that cannot be read, or that the step does not take; padding that
        would have a say.
    """
    if what.batch_size:
        check_divides(what.mesh, what.batch_size)
    if what.updates:
        made = MadeBatches(what.data, what.updates, what.seed)
        check_divides(what.mesh, made.size)
        return _program(step, state, Streamed(made, what.mesh), donate)
    if is_source(what.data):
        return _of_records(step, state, what, donate)
    return _of_arrays(step, state, what, donate)


def _program(step: Step, state: Any, feed: Streamed, donate: bool) -> Prepared:
    runs = runner(step.update, batch_of, donate)
    _check_step(step, state, runs, feed.example, feed.rows)
    return Prepared(feed, runs, feed.example, feed.rows)


def _check_step(step: Step, state: Any, runs: Runner, data: PyTree, rows: Any) -> None:
    """What is wrong with any batch is told first."""
    try:
        runs.metrics(state, data, rows)
    except Exception:
        check_state(step, state)
        raise


def _of_records(step: Step, state: Any, what: Given, donate: bool) -> Prepared:
    batches = RecordBatches(what.data, what.batch_size, what.seed, what.last)
    made = _program(step, state, Streamed(batches, what.mesh), donate)
    short = batches.examples % batches.size
    if not short or what.last == "drop":
        return made
    if what.last == "short" and not one_shape(step, what.mesh):
        try:
            few = jax.tree.map(
                lambda leaf: jax.ShapeDtypeStruct((1, short, *leaf.shape[2:]), leaf.dtype),
                made.data,
            )
            made.runs.metrics(state, few, made.rows[:1])
            return made
        except ValueError:
            pass  # too few examples to be split, say
    feed = made.feed
    some = [feed.batch(0, 0), feed.batch(0, batches.whole)]
    if not (isinstance(some[0], tuple) and len(some[0]) in (2, 3)):
        raise ValueError(
            f"{WAYS_OUT} needs records (inputs, targets), got {type(some[0]).__name__}"
        )
    sample = jax.tree.map(lambda *leaves: np.concatenate(leaves), *some)
    rows = epoch_rows(len(jax.tree.leaves(sample)[0]), batches.size, 0, 0, "pad")
    placed = jax.tree.map(jnp.asarray, sample) if what.mesh is None else copies(sample, what.mesh)
    padding = runner(step.update, picked_or_padding, donate)
    check_padding(padding, step, state, placed, rows, what.mesh)
    padded = RecordBatches(what.data, what.batch_size, what.seed, what.last, padded=True)
    return _program(step, state, Streamed(padded, what.mesh), donate)


def _of_arrays(step: Step, state: Any, what: Given, donate: bool) -> Prepared:
    _, _, batch_size, _, seed, last, mesh = what
    data = jax.tree.map(jnp.asarray, what.data) if mesh is None else copies(what.data, mesh)
    n = len(jax.tree.leaves(data)[0])
    rows = epoch_rows(n, batch_size, 0, 0, last)
    example = epoch_rows(n, batch_size, 0, 0, "drop")[:1]

    def made(runs: Runner, padded: bool) -> Prepared:
        return Prepared(InMemory(data, batch_size, seed, last, padded, mesh), runs, data, example)

    plain = runner(step.update, picked, donate)
    _check_step(step, state, plain, data, rows[:1])
    if n % batch_size == 0 or last == "drop":
        return made(plain, False)
    if last == "short" and not one_shape(step, mesh):
        try:
            plain.metrics(state, data, blocks(rows)[-1])
            return made(plain, False)
        except ValueError:
            pass  # too few examples to be split, say
    padding = runner(step.update, picked_or_padding, donate)
    check_padding(padding, step, state, data, rows, mesh)
    return made(padding, True)
