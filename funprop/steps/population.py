"""Many runs in one: a step that trains the members of a population at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from funprop.checks import described
from funprop.reprs import of_fields
from funprop.steps.donating import Donating
from funprop.steps.step import Step, check_state, check_step
from funprop.transforms.transformed import refuse
from funprop.trees import Sum
from funprop.values import whole_number

if TYPE_CHECKING:
    from funprop.typing import Array, Num, PyTree

Makes = Callable[..., Step]


class Population(NamedTuple):
    """The state of `population`.

    Attributes:
      inner: the states of the members' step, every leaf `[members, ...]`.
      numbers: what differs, `[members]` each, by name.
      seed: which of the keys each member has, `int32[members]`.
    """

    inner: Any
    numbers: dict[str, Any]
    seed: Any

    def __repr__(self) -> str:
        return of_fields(self)

    @property
    def params(self) -> Any:
        """Those of all, every leaf `[members, ...]`."""
        return self.inner.params

    @property
    def average(self) -> Any:
        """Those of an `ema` within; an `AttributeError` where there is none."""
        return self.inner.average

    @property
    def members(self) -> int:
        """How many there are."""
        return self.seed.shape[0]


def population(make: Step | Makes, **numbers: Sequence[float] | Num[Array, " m"]) -> Step:
    """A step that trains many members at once, as one compiled program.

    `init(params, keys)` takes a key a seed, `[s]` or one alone, and makes `m s` members: every set
    of numbers with every key, member `i` number `i // s` with key `i % s`. Of a key `k` the two of
    `jax.random.split(k)` are used, the first where `params` is a function that makes them of a key,
    the second for the training. So a member alone is

        make(**numbers_i).init(params(first), second)

    `update` gives every member the same batch, so in `fit` all see the same examples in the same
    order; a metric is a `Sum` of `[members]`. No member looks at another: one that diverges harms
    none, and each trains as it would alone, to rounding. Wrappers of a step stand within
    (`population(lambda rate: skip_nonfinite(...))`), where each member has its own; `scan` stands
    around. `check` raises where that of all members does.

    Args:
      make: from the numbers, by name, to a step; or a step, of which members differ by key alone.
        It is called with each member's as Python's numbers, to see that they are good, and with
        traced ones when it is compiled: for optax, for loss functions, and for `ema`, `dropout`,
        `clip_per_example`, `huber` and the smoothing of `softmax_cross_entropy` that is no
        difference.
      numbers: of each member, all of one length.

    Raises:
      TypeError: `make` gives no step; numbers are none; or, at init, keys are none.
      ValueError: numbers differ in length, are not finite or refused by what they are for; or the
        step is a `scan`.

    Example:
      >>> import optax, funprop as fp
      >>> line = fp.objective(fp.dense(1, bias=False), fp.mean_squared())
      >>> grad_fn = fp.backprop(line)
      >>> train = population(lambda rate: fp.step(grad_fn, optax.sgd(rate)), rate=[0.0, 0.1, 9.0])
      >>> batch = jnp.array([[1.0], [2.0]]), jnp.array([[2.0], [4.0]])
      >>> keys = jax.random.split(jax.random.key(0), 2)
      >>> state = train.init(lambda key: line.init(key, batch), keys)
      >>> for _ in range(50):
      ...     state, metrics = train.update(state, batch)
      >>> state.members, metrics["loss"].mean.round(3)[2:4].tolist()
      (6, [0.0, 0.0])
      >>> round(float(member(state, 3).params.w[0, 0]), 3)
      2.0
    """
    table = _table(numbers)
    made = [_made(make, set_) for set_ in table]
    refuse("population", made[0].parts, {"scan": "it is one program already"})
    sets = len(table)

    def stacked(seeds: int) -> dict[str, Any]:
        """The numbers, a member each; weakly typed, as Python's are: bfloat16 stays bfloat16."""
        each = [set_ for set_ in table for _ in range(seeds)]
        return {name: jnp.stack([jnp.asarray(set_[name]) for set_ in each]) for name in table[0]}

    def init(params: PyTree | Callable[[Any], PyTree], keys: Any) -> Population:
        keys = _keys(keys)
        seeds = len(keys)
        of_numbers, seed = stacked(seeds), jnp.tile(jnp.arange(seeds, dtype=jnp.int32), sets)

        def one(numbers: dict[str, Any], key: Any) -> Any:
            first, second = jax.random.split(key)
            own = params(first) if _is_function(params) else params
            return _made(make, numbers).init(own, second)

        inner = jax.jit(jax.vmap(one))(of_numbers, keys[seed])
        return Population(inner, {k: jnp.array(v) for k, v in of_numbers.items()}, seed)

    def update(state: Population, batch: PyTree) -> tuple[Population, dict[str, Sum]]:
        check_state(state, Population)

        def one(numbers: dict[str, Any], inner: Any) -> Any:
            return _made(make, numbers).update(inner, batch)

        inner, metrics = jax.vmap(one)(stacked(state.members // sets), state.inner)
        return Population(inner, state.numbers, state.seed), metrics

    def check(state: Population) -> None:
        # The first that goes on is the first of all, as a rule: then no other is looked at.
        problem = None
        for i in range(state.members):
            try:
                made[0].check(member(state, i))
                return
            except FloatingPointError as error:
                problem = problem or error
        raise FloatingPointError(f"all {state.members} members; the first: {problem}")

    checks = check if made[0].check is not Step._field_defaults["check"] else made[0].check
    parts = ("population", *made[0].parts)
    return Step(init, Donating(update), checks, parts, grad_fn=made[0].grad_fn)


def member(state: Population, i: int) -> Any:
    """The state of one member, as the step that it is made of has it.

    Raises:
      TypeError: `state` is none of `population`, or `i` no integer.
      ValueError: there is no such member.

    Example:
      >>> import optax, funprop as fp
      >>> train = population(fp.step(fp.from_loss(lambda w, batch: (w * batch, 1)), optax.sgd(1.0)))
      >>> state = train.init(jnp.array(2.0), jax.random.split(jax.random.key(0), 3))
      >>> float(member(state, 2).params)
      2.0
    """
    check_state(state, Population)
    i = whole_number(i, "i", 0)
    if i >= state.members:
        raise ValueError(f"i must be below {state.members}, the number of members, got {i}")
    return _taken(state.inner, np.int32(i))


@jax.jit
def _taken(inner: Any, i: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf[i], inner)


def _made(make: Step | Makes, numbers: dict[str, Any]) -> Step:
    """The step of one set of numbers."""
    if isinstance(make, Step) and not numbers:
        return make
    if isinstance(make, Step) or not callable(make):
        raise TypeError(
            "make must be a function from numbers to a Step, or a Step where there are none, got "
            f"{described(make)}"
        )
    found = make(**numbers)
    check_step(found)
    return found


def _table(numbers: dict[str, Any]) -> list[dict[str, Any]]:
    """Each set of numbers, Python's own."""
    columns = {}
    for name, values in numbers.items():
        column = np.asarray(values)
        if column.ndim != 1 or not len(column) or column.dtype.kind not in "iuf":
            raise TypeError(f"{name} must be numbers, one a member, got {described(values)}")
        if not np.isfinite(column).all():
            raise ValueError(f"{name} must be finite, got {column[~np.isfinite(column)][0]}")
        columns[name] = column.tolist()
    lengths = {name: len(column) for name, column in columns.items()}
    if len({*lengths.values()}) > 1:
        raise ValueError(f"numbers must be of one length, a set a member, got {lengths}")
    if not columns:
        return [{}]
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _keys(keys: Any) -> Any:
    if not (hasattr(keys, "dtype") and jnp.issubdtype(keys.dtype, jax.dtypes.prng_key)):
        raise TypeError(f"keys must be random keys, one a seed, got {described(keys)}")
    if keys.ndim > 1 or not keys.size:
        raise ValueError(f"keys must be one a seed, got shape {keys.shape}")
    return keys.reshape(-1)


def _is_function(params: Any) -> bool:
    """A function is a leaf to JAX; a module of params that can be called is a tree of them."""
    return callable(params) and jax.tree.leaves(params) == [params]
