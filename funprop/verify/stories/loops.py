"""Stories of a long loop that comes to rest, told of one turn of it.

Where z = f(z, x), the derivative is that of one turn, f, under (I + A + A^2 + ...)^T dz, A being
df/dz: of as many powers as there are turns. So a forward pass with one turn at the loop's result,
whose change is multiplied with that sum, has the loop's derivative, and few steps: what is told of
steps can be told of it. It is told only if its gradient is the true one wherever that is known.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any, NamedTuple, cast

import jax
import jax.extend.core
import jax.numpy as jnp
import numpy as np
from jax import lax

from funprop.verify.stories.case import LONG, Case
from funprop.verify.subject import floats, is_floating
from funprop.verify.truth import internals
from funprop.verify.truth.evaluate import Evaluate
from funprop.verify.truth.samples import Sample

MOST = 64  # numbers that the loop carries, or it is not looked at
TURNS = 2**14  # of a loop that ends by a condition: powers of A beyond do not count

HUGE = 1e8  # no sum of turns that come to rest
RESULT, SUM = "the loop's result", "the sum over the loop's turns"


class _ReachedError(Exception):
    """The turn is done: what comes behind the loop does not count."""


class NotAtRestError(Exception):
    """The forward pass has no such loop, or several, or carries too much."""


class _Part:
    """The instruments of a wrong part, of another forward pass with more inputs behind its own."""

    def __init__(self, tools: Any, jaxpr: Any, more: Sequence[str]):
        self._tools, self.wide_plain = tools, jaxpr
        self._memory: dict[tuple[str, int], tuple[Any, Any]] = {}
        subject = tools.subject
        self.subject = SimpleNamespace(
            paths=[*subject.paths, *more],
            differentiable=subject.differentiable,
            free_cotangent=subject.free_cotangent,
        )

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tools, name)

    def kept(self, what: str, sample: Any, measure: Callable[[], Any]) -> Any:
        key = (what, id(sample))
        if key not in self._memory:
            self._memory[key] = (sample, measure())
        return self._memory[key][1]


class Rest(NamedTuple):
    """A forward pass whose loop is one turn at its result.

    Attributes:
      case: the wrong leaf, of that forward pass; its samples have the loop's results, and the sum
        of the powers of A, behind their inputs.
      turn: the same of the turn alone: `(inputs, the loop's results) -> the floats carried, flat`.
      carried: which inputs of the turn are the loop's results, the floats of them.
      powers: A at every sample; `turns`: how many of its powers are summed.
      where: the loop stands.
    """

    case: Case
    turn: Case
    carried: list[int]
    powers: list[np.ndarray]
    turns: int
    where: str


def at_rest(case: Case) -> Rest | None:
    """The case with its loop as one turn; `None` where that has not the true gradient."""
    try:
        with jax.enable_x64(True):
            rest = one_turn(case)
            truth = gradients(rest, [s.inputs[-1][None] for s in rest.case.samples])[0]
    except Exception:  # no such loop, or one that cannot be run so
        return None
    return rest if case.close(truth, case.verdict.truth) else None


class _Loop:
    """The loop of a forward pass, traced as one turn."""

    def __init__(self, case: Case):
        self._jaxpr = case.tools.wide_plain
        inputs = case.samples[0].inputs
        self.result = case.tools.jit(self._result)
        loops: list[Any] = []
        specs = jax.eval_shape(lambda inputs: self._result(inputs, loops), inputs)
        if len(loops) != 1 or not sum(s.size for s in floats(specs)) <= MOST:
            raise NotAtRestError
        (eqn,) = loops
        self.where = f"the loop at {internals.equation_source(eqn) or 'its end'}"
        self.turns = eqn.params.get("length", TURNS)
        n = sum(s.size for s in floats(specs))
        self.whole = jax.make_jaxpr(self._whole)(inputs, specs, np.zeros((n, n)))
        self.turn = jax.make_jaxpr(self._turn)(inputs, specs)
        if internals.steps(self.whole) > LONG:
            raise NotAtRestError
        turn = jax.extend.core.jaxpr_as_fun(self.turn)

        def powers(inputs: list[Any], results: list[Any]) -> Any:
            places = [i for i, v in enumerate(results) if is_floating(v)]

            def moved(values: list[Any]) -> Any:
                new = list(results)
                for i, value in zip(places, values, strict=True):
                    new[i] = value
                return turn(*inputs, *new)[0]

            parts = jax.jacrev(moved)([results[i] for i in places])
            return jnp.concatenate([p.reshape(n, -1) for p in parts], 1)

        self.powers = case.tools.jit(powers)

    def _run(self, inputs: list[Any], instead: Callable[..., list[Any]]) -> list[Any]:
        def around(eqn: Any, inputs: list[Any], run: Any) -> list[Any]:
            if _is_loop(eqn):
                return instead(eqn, inputs, run)
            with internals.at_source(eqn):
                return run(inputs)

        return floats(Evaluate(wide=True, around=around)(self._jaxpr, *inputs))

    def _result(self, inputs: list[Any], loops: list[Any] | None = None) -> list[Any]:
        """What the loop carries at its end."""
        results: list[list[Any]] = []

        def note(eqn: Any, inputs: list[Any], run: Any) -> list[Any]:
            results.append(run(inputs))
            if loops is not None:
                loops.append(eqn)
            return results[-1]

        self._run(inputs, note)
        if len(results) != 1:
            raise NotAtRestError
        return results[0]

    def _whole(self, inputs: list[Any], results: list[Any], total: Any) -> list[Any]:
        """The outputs, of one turn whose change is multiplied."""

        def turned_once(eqn: Any, inputs: list[Any], run: Any) -> list[Any]:
            new = floats(_turned(eqn, inputs, results))
            change = jnp.concatenate([jnp.ravel(y - lax.stop_gradient(y)) for y in new])
            moved, found, start = total @ change, list(results), 0
            for i, value in enumerate(results):
                if is_floating(value):
                    part = moved[start : start + value.size]
                    found[i] = value + part.reshape(value.shape)
                    start += value.size
            return found

        return self._run(inputs, turned_once)

    def _turn(self, inputs: list[Any], results: list[Any]) -> list[Any]:
        """What one turn makes of the loop's result, flat."""
        found: list[Any] = []

        def stop(eqn: Any, inputs: list[Any], run: Any) -> list[Any]:
            found.extend(floats(_turned(eqn, inputs, results)))
            raise _ReachedError

        with contextlib.suppress(_ReachedError):
            self._run(inputs, stop)
        return [jnp.concatenate([jnp.ravel(y) for y in found])]


def _is_loop(eqn: Any) -> bool:
    """Whether the equation is a loop that takes and gives nothing turn by turn."""
    if eqn.primitive.name == "scan":
        n_consts, n_carry = internals.scan_sizes(eqn.params)
        alone = len(eqn.invars) == n_consts + n_carry and len(eqn.outvars) == n_carry
        return alone and eqn.params["length"] > 1
    return eqn.primitive.name == "while"


def _turned(eqn: Any, inputs: list[Any], carry: list[Any]) -> list[Any]:
    """What one turn more makes of what is carried."""
    if eqn.primitive.name == "scan":
        consts, jaxpr = inputs[: internals.scan_sizes(eqn.params)[0]], eqn.params["jaxpr"]
    else:
        n_cond, n_body = eqn.params["cond_nconsts"], eqn.params["body_nconsts"]
        consts, jaxpr = inputs[n_cond : n_cond + n_body], eqn.params["body_jaxpr"]

    def around(eqn: Any, inputs: list[Any], run: Any) -> list[Any]:
        with internals.at_source(eqn):
            return run(inputs)

    return Evaluate(wide=True, around=around)(jaxpr, *consts, *carry)


def one_turn(case: Case) -> Rest:
    """The case with its loop as one turn, whether its gradient is the true one or not.

    Raises:
      NotAtRestError: there is no such loop, or it does not come to rest at one of the samples.
    """
    loop = case.tools.kept("loop", case.tools, lambda: _Loop(case))
    known: dict[int, tuple[list[Any], np.ndarray, np.ndarray]] = {}
    for s in case.samples:
        if id(s.inputs) not in known:
            result = [np.asarray(v) for v in loop.result(s.inputs)]
            powers = np.asarray(loop.powers(s.inputs, result))
            total = summed(powers, loop.turns)
            if not np.max(np.abs(total), initial=0) < HUGE:
                raise NotAtRestError
            known[id(s.inputs)] = result, powers, total
    samples, turned = [], []
    longer: dict[int, tuple[list[Any], list[Any]]] = {}  # samples share their inputs, or do not
    for s in case.samples:
        result, powers, total = known[id(s.inputs)]
        both = longer.setdefault(id(s.inputs), ([*s.inputs, *result, total], [*s.inputs, *result]))
        samples.append(s._replace(inputs=both[0]))
        turned.append(s._replace(inputs=both[1], dys=[np.ones(len(powers))]))
    first, n = known[id(case.samples[0].inputs)][0], len(case.samples[0].inputs)

    def part(jaxpr: Any, more: list[str], at: list[Sample]) -> Case:
        name = f"part {len(more)}"  # one for every leaf, that they share what is compiled
        tools = case.tools.kept(name, loop, lambda: _Part(case.tools, jaxpr, more))
        return dataclasses.replace(case, tools=cast("Any", tools), samples=at)

    return Rest(
        part(loop.whole, [*[RESULT] * len(first), SUM], samples),
        part(loop.turn, [RESULT] * len(first), turned),
        [n + i for i, v in enumerate(first) if is_floating(v)],
        [known[id(s.inputs)][1] for s in case.samples],
        loop.turns,
        loop.where,
    )


def summed(a: np.ndarray, terms: int) -> np.ndarray:
    """I + A + A^2 + ... of so many terms, by doubling; of a stack of matrices, [..., n, n]."""
    total, power = np.broadcast_to(np.eye(a.shape[-1]), a.shape), a
    result, before = np.zeros_like(a), total
    while terms:  # total: of 2^k terms, power: A^(2^k); result: of those terms that are counted
        if terms % 2:
            result = result + before @ total
            before = before @ power
        total, power, terms = total + power @ total, power @ power, terms // 2
    return result


def other_sum(rest: Rest, a: np.ndarray) -> np.ndarray:
    """The sum for other matrices, as a backward pass has it: solved for, where that can be done."""
    here, eye = rest.powers[0], np.eye(a.shape[-1])
    try:
        if np.allclose(np.linalg.inv(eye - here), rest.case.samples[0].inputs[-1], rtol=1e-5):
            return np.linalg.inv(eye - a)
    except np.linalg.LinAlgError:  # no turn brings the loop nearer in some direction
        pass
    return summed(a, rest.turns)


def gradients(rest: Rest, sums: Sequence[np.ndarray]) -> np.ndarray:
    """The leaf's gradients, [variant, sample, *leaf], with other sums, [sample][variant, n, n]."""
    case = rest.case
    run = jax.extend.core.jaxpr_as_fun(case.tools.wide_plain)
    leaf = case.place

    def gradient(total: Any, inputs: list[Any], dys: list[Any]) -> Any:
        def value(x: Any) -> Any:
            ys = run(*inputs[:leaf], x, *inputs[leaf + 1 : -1], total)
            return sum(jnp.sum(y * d) for y, d in zip(ys, dys, strict=True))

        return jax.grad(value)(inputs[leaf])

    every = case.tools.kept(
        f"by sums {leaf}", case.tools, lambda: case.tools.jit(jax.vmap(gradient, (0, None, None)))
    )
    with jax.enable_x64(True):
        found = [
            np.asarray(every(total, s.inputs, s.dys)) / s.unit
            for total, s in zip(sums, case.samples, strict=True)
        ]
    return np.stack(found, axis=1)
