"""What a function compares its inputs with, read off its trace: where its branches part."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.extend.core
import numpy as np

from funprop import trees
from funprop.verify.truth.indexed import is_indexed, is_slice, room_of
from funprop.verify.truth.internals import inner_jaxprs, only_calls, open_jaxpr, scan_sizes

# What gives the same numbers in another order or shape; more of what keeps a zero zero.
_SAME = (
    "broadcast_in_dim", "reshape", "squeeze", "expand_dims", "transpose", "rev", "slice", "copy",
    "convert_element_type", "dynamic_slice", "stop_gradient", "reduce_precision", "split",
)  # fmt: skip
_STILL_ZERO = (
    *_SAME, "mul", "neg", "abs", "sign", "square", "integer_pow", "sqrt", "reduce_sum", "sin",
    "tanh", "expm1", "log1p", "reduce_max", "reduce_min",
)  # fmt: skip
_COMPARE = ("gt", "ge", "lt", "le", "eq", "ne", "max", "min")
_SPLITS = (*_COMPARE, "abs", "sign", "clamp", "floor", "ceil", "round", "bitcast_convert_type")


class Thresholds(NamedTuple):
    """What stands in comparisons.

    Attributes:
      numbers: literals that floats are compared with, but for zero.
      whole: by integer input, the numbers at and beside those that a copy of it is compared with,
        and the numbers of branches.
      counts: the number of places that a copy of an integer input counts along.
      below_zero: how often it is asked whether one is below zero, beyond what JAX asks itself.
      split: the inputs a copy of which is compared, or taken apart.
      split_at_zero: those of which something is that is zero where they are.
    """

    numbers: set[float]
    whole: dict[int, set[int]]
    counts: dict[int, int]
    below_zero: dict[int, int]
    split: set[int]
    split_at_zero: set[int]


class _Fact(NamedTuple):
    """What is known of a variable: its number, the input it copies, whose zeros stay, and of a
    comparison with zero whose, and of a sum of a copy and a number which number."""

    number: float | None = None
    copies: int | None = None
    zeros: frozenset[int] = frozenset()
    negative: int | None = None
    wrapped: tuple[int, int] | None = None
    counts: int | None = None


_NOTHING = _Fact()


def thresholds(jaxpr: Any) -> Thresholds:
    """What a function compares, its inputs those of the jaxpr, in their order."""
    found = Thresholds(set(), {}, {}, {}, set(), set())
    jaxpr, consts = open_jaxpr(jaxpr)
    facts = [_Fact(copies=i, zeros=frozenset([i])) for i in range(len(jaxpr.invars))]
    _read(jaxpr, consts, facts, found)
    for i, more in found.below_zero.items():
        if more > 0:
            found.whole.setdefault(i, set()).update((-1, 0))
    return found


def _read(jaxpr: Any, consts: Sequence[Any], facts: list[_Fact], found: Thresholds) -> list[_Fact]:
    jaxpr, own = open_jaxpr(jaxpr)
    known: dict[Any, _Fact] = {}
    for var, const in zip(jaxpr.constvars, own or consts, strict=False):
        known[var] = _Fact(number=_number(const))
    known.update(zip(jaxpr.invars, facts, strict=False))

    def fact(atom: Any) -> _Fact:
        if isinstance(atom, jax.extend.core.Literal):
            return _Fact(number=_number(atom.val))
        return known.get(atom, _NOTHING)

    for eqn in jaxpr.eqns:
        given = [fact(atom) for atom in eqn.invars]
        _note(eqn, given, found)
        outputs = _inside(eqn, given, found) or [_after(eqn, given)] * len(eqn.outvars)
        known.update(zip(eqn.outvars, outputs, strict=False))
    return [fact(atom) for atom in jaxpr.outvars]


def _inside(eqn: Any, given: list[_Fact], found: Thresholds) -> list[_Fact]:
    """What is known of the outputs of an equation that calls; empty where nothing is."""
    name, inner = eqn.primitive.name, inner_jaxprs(eqn)
    if only_calls(eqn):
        return _read(inner[0], (), given, found)
    if name == "scan":
        n_consts, n_carry = scan_sizes(eqn.params)
        carried = [_NOTHING] * n_carry
        _read(inner[0], (), [*given[:n_consts], *carried, *given[n_consts + n_carry :]], found)
    elif name == "cond":
        for branch in inner:
            _read(branch, (), given[1:], found)
    elif name == "while":
        n_cond, n_body = eqn.params["cond_nconsts"], eqn.params["body_nconsts"]
        carried = [_NOTHING] * (len(given) - n_cond - n_body)
        _read(eqn.params["cond_jaxpr"], (), [*given[:n_cond], *carried], found)
        _read(eqn.params["body_jaxpr"], (), [*given[n_cond : n_cond + n_body], *carried], found)
    return []


def _after(eqn: Any, given: list[_Fact]) -> _Fact:
    """What is known of an equation's output."""
    name = eqn.primitive.name
    first = given[0] if given else _NOTHING
    zeros: frozenset[int] = frozenset()
    if name in _STILL_ZERO:
        zeros = frozenset().union(*(g.zeros for g in given))
    elif name == "div":
        zeros = first.zeros
    if name in _SAME:
        return first._replace(zeros=zeros)
    if name == "iota":
        return _Fact(counts=int(eqn.params["shape"][eqn.params["dimension"]]))
    if name == "lt" and given[1].number == 0:
        return _Fact(negative=first.copies)
    if name == "clamp":
        return _Fact(copies=given[1].copies, zeros=given[1].zeros)
    if name in ("max", "min"):  # clipped to one side
        for a, b in (given, given[::-1]):
            if a.copies is not None and b.number is not None:
                return _Fact(copies=a.copies, zeros=zeros)
    if name == "add":
        for a, b in (given, given[::-1]):
            if a.copies is not None and b.number is not None and b.number == int(b.number):
                return _Fact(wrapped=(a.copies, int(b.number)))
    if name == "select_n" and len(given) == 3:
        a, b = given[1:]
        if b.wrapped is not None and a.copies == b.wrapped[0] == first.negative:
            return _Fact(copies=a.copies)  # as JAX counts from the end
    return _Fact(zeros=zeros)


def _note(eqn: Any, given: list[_Fact], found: Thresholds) -> None:
    name = eqn.primitive.name
    floating = bool(eqn.invars) and trees.is_float(eqn.invars[0].aval)
    if name in _SPLITS and floating:
        for g in given:
            found.split_at_zero.update(g.zeros)
            if g.copies is not None:
                found.split.add(g.copies)
    numbers = [g.number for g in given if g.number is not None]
    if name in (*_COMPARE, "clamp") and floating:
        found.numbers.update(n for n in numbers if 1e-30 < abs(n) < 1e30)
    if name == "cond" and given[0].copies is not None and len(eqn.params["branches"]) > 2:
        found.whole.setdefault(given[0].copies, set()).update(range(len(eqn.params["branches"])))
    if name in (*_BESIDE, "eq", "ne", "clamp", "min") and not floating:
        _whole_numbers(eqn, given, found)
    if is_indexed(eqn):
        _counts(eqn, given, found)
    if name == "select_n" and len(given) == 3 and given[2].wrapped is not None:
        i, n = given[2].wrapped
        if given[1].copies == i == given[0].negative:
            found.counts[i] = min(n, found.counts.get(i, n))
            found.below_zero[i] -= 1


# Of `x op c` with an integer literal c: the numbers, from c, on either side.
_BESIDE = {
    "lt": (-1, 0), "ge": (-1, 0), "max": (-1, 0), "gt": (0, 1), "le": (0, 1),
}  # fmt: skip
_TURNED = {"lt": "gt", "gt": "lt", "le": "ge", "ge": "le"}


def _whole_numbers(eqn: Any, given: list[_Fact], found: Thresholds) -> None:
    name = eqn.primitive.name
    for n, fact in enumerate(given):
        if fact.copies is None:
            continue
        i, others = fact.copies, [g for m, g in enumerate(given) if m != n]
        numbers = [int(g.number) for g in others if g.number is not None]
        if name == "lt" and n == 0 and numbers == [0]:  # JAX's own question before it counts from
            found.below_zero[i] = found.below_zero.get(i, 0) + 1  # the end, unless that is missing
            continue
        beside = _BESIDE.get(name if n == 0 else _TURNED.get(name, name), (0,))
        found.whole.setdefault(i, set()).update(
            c + d for c in numbers for d in beside if name != "max" or c + d >= min(c, 0)
        )  # what is clipped to be no place below an array's first is none that somebody means
        counts = [g.counts for g in others if g.counts is not None]
        if name == "eq" and counts:
            found.counts[i] = min(*counts, found.counts.get(i, counts[0]))
        elif name in _BESIDE and counts:  # a length: none, and all
            found.whole.setdefault(i, set()).update((0, counts[0]))


def _counts(eqn: Any, given: list[_Fact], found: Thresholds) -> None:
    """Of a gather, a scatter or a slice: in how many places a window may begin."""
    room = room_of(eqn)
    first = 1 if eqn.primitive.name != "dynamic_update_slice" else 2
    places = given[first : first + len(room)] if is_slice(eqn) else given[1:2]
    for fact, n in zip(places, room, strict=True) if len(places) == len(room) else ():
        if fact.copies is not None:
            found.counts[fact.copies] = min(n + 1, found.counts.get(fact.copies, n + 1))


def _number(value: Any) -> float | None:
    """A number, where all elements are the same one."""
    if not hasattr(value, "dtype") and not isinstance(value, (int, float, bool)):
        return None
    try:
        flat = np.asarray(value).ravel()[:1]
        same = np.size(value) == 1 and not np.iscomplexobj(flat)
        number = float(flat[0]) if same else math.nan
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None
