"""A state that is restored goes on as if nothing had been; one that is donated is gone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from funprop.verify.training.case import Case, NotAsked
from funprop.verify.training.closeness import differences
from funprop.verify.training.layout import bits, is_key, same_bits
from funprop.verify.training.report import StepCheck
from funprop.verify.training.running import copied, on_device

USED = "the step uses arrays of a state that it has donated: they are gone"
AT = 3  # which state of the path is stored


def restore(case: Case) -> Iterator[StepCheck]:
    """A state restored is the state that was stored, and goes on to the same bits."""
    mine = case.said["restore"]
    old = case.path[AT]
    if mine is None:
        arrays = [through_numpy(leaf) for leaf in old]
    else:
        tree = mine(case.layout.state([copied(leaf) for leaf in old]))
        if jax.tree.structure(tree) != case.layout.treedef:
            yield StepCheck("restore", "what is restored has another structure than what was")
            return
        arrays = case.layout.arrays(tree)
    for path, a, b in zip(case.layout.paths, old, arrays, strict=True):
        if not same_bits(a, b):
            said = f"{path} is {_value(b)} where it is restored, and was {_value(a)}"
            if not np.shape(a):
                said += ": schedules and counts go on from another place"
            yield StepCheck("restore", said, leaf=path)
            return
    key = case.steps.key_of(AT)
    new = case.steps.given(arrays, case.examples.batch, key)
    pairs = list(zip(case.path[AT + 1], new.arrays, strict=True))
    other = [i for i, (a, b) in enumerate(pairs) if not same_bits(a, b)]
    if not other:
        return
    if case.steps.pure and not case.draws:  # then it is the device, which adds in another order
        plain = case.steps.given(old, case.examples.batch, key)
        found = case.noise(case.examples.batch)
        if not differences(new, plain, old, found, case.layout.paths, other):
            yield StepCheck("restore", note="not to the bit: sums are taken in another order")
            return
    path = case.layout.paths[other[0]]
    said = (
        f"the restored state is the same and goes on otherwise ({path}): something outside "
        "of the state takes part"
    )
    yield StepCheck("restore", said, leaf=path)


def through_numpy(leaf: Any) -> Any:
    """A leaf written and read again, as a checkpoint would."""
    stored = np.frombuffer(bits(leaf).tobytes(), bits(leaf).dtype).reshape(bits(leaf).shape)
    if is_key(leaf):
        return jax.random.wrap_key_data(jnp.asarray(stored), impl=jax.random.key_impl(leaf))
    return jnp.asarray(stored)


def _value(leaf: Any) -> str:
    value = bits(leaf)
    return f"{value}" if value.size == 1 else f"{value.dtype}{list(value.shape)} of other numbers"


def donation(case: Case) -> Iterator[StepCheck]:
    """No two leaves of a state that is donated are one array."""
    arrays = [copied(leaf) for leaf in case.path[0]]
    state = case.layout.state(arrays)
    key = () if case.steps.key is None else (case.steps.key_of(0),)
    try:
        case.steps.update(state, on_device(case.examples.batch), *key)
    except (RuntimeError, ValueError) as error:
        if not is_gone(error):
            raise
        yield StepCheck("donation", USED)
        return
    gone = [isinstance(leaf, jax.Array) and leaf.is_deleted() for leaf in arrays]
    if not any(gone):
        raise NotAsked("the step donates nothing (jax.jit(update, donate_argnums=0) saves memory)")
    pair = one_array(case.said["arrays"])
    if pair is not None:
        a, b = (case.layout.paths[i] for i in pair)
        said = f"{b} and {a} are one array, and the state is donated: XLA refuses; copy one of them"
        yield StepCheck("donation", said, leaf=b)


def is_gone(error: Exception) -> bool:
    """Whether an error is that of arrays used after they were donated."""
    return "deleted" in str(error) or "donat" in str(error)


def one_array(arrays: Sequence[Any]) -> tuple[int, int] | None:
    """Two leaves that share their memory."""
    seen: dict[int, int] = {}
    for i, leaf in enumerate(arrays):
        if not isinstance(leaf, jax.Array) or is_key(leaf) or not leaf.size or leaf.is_deleted():
            continue
        try:
            place = leaf.unsafe_buffer_pointer()
        except Exception:  # on several devices there is no one place
            place = id(leaf)
        if place in seen:
            return seen[place], i
        seen[place] = i
    return None
