"""The truth of a loop that runs until it is at rest, which JAX does not differentiate in reverse.

Of such a forward pass only values are known, at the given inputs. Where it is at rest one turn of
it has its derivative (`loops`); where that is the one that differences gave, it is known elsewhere
too.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.extend.core
import jax.numpy as jnp
import numpy as np

from funprop.verify.judging.at_rest import AT_REST
from funprop.verify.judging.judge import FACTOR, UNITS, Verdict, compared
from funprop.verify.stories.case import Case
from funprop.verify.stories.loops import TURNS, at_rest, gradients, one_turn
from funprop.verify.stories.witnesses import WITNESSES, redrawn
from funprop.verify.truth.evaluate import Evaluate
from funprop.verify.truth.instruments import Instruments
from funprop.verify.truth.internals import equations
from funprop.verify.truth.samples import Sample, drawn_sample, random_numbers


def settled(case: Case) -> tuple[Verdict, str]:
    """The verdict on a gradient that is the derivative at rest, and what is to be said of it.

    A loop that ends by a tolerance is not quite at rest, and its own derivative may be much further
    from there than its result: a rule gives that of the equation that the loop solves.
    """
    truth = _known(case, case.samples)
    if truth is None or truth.shape != case.verdict.got.shape:
        return case.verdict, ""
    verdict = _verdict(case, case.verdict.got, truth)
    if not verdict.ok or (moves := _last_turn(case)) >= AT_REST:
        return case.verdict, ""
    return verdict, f"judged as at rest: one turn more of its loop would move it by {moves:.0e}"


def _last_turn(case: Case) -> float:
    """How far one turn more moves what the loop carries, relative."""
    with jax.enable_x64(True):
        rest = one_turn(case)
        inputs = rest.turn.samples[0].inputs
        (new,) = jax.extend.core.jaxpr_as_fun(rest.turn.tools.wide_plain)(*inputs)
    before = np.concatenate([np.ravel(inputs[i]) for i in rest.carried])
    return float(np.max(np.abs(np.asarray(new) - before)) / (np.max(np.abs(before)) + 1e-300))


def _verdict(case: Case, got: np.ndarray, truth: np.ndarray) -> Verdict:
    size = float(np.sqrt(np.mean(truth**2)))
    allowed = np.full(truth.shape, FACTOR * UNITS * case.tools.eps * size)
    return compared(got, truth, allowed, size, False)


def with_truth(case: Case) -> Case | None:
    """The case with the truth of one turn at rest, at other inputs too; `None` if it has none."""
    if at_rest(case) is None or _loops_back(case.tools):
        return None
    tools, rng = case.tools, random_numbers(1)
    own = [s for s in case.samples if _known(case, [s]) is not None]
    more: list[Sample] = []
    for _ in range(WITNESSES):
        sample = drawn_sample(tools, redrawn(tools, own[0], rng), 1.0, rng)
        if _ends(case, sample) and _known(case, [sample]) is not None:
            more.append(sample)
    if len(own) < len(case.samples) or not more:
        return None
    samples = [*own, *more]
    truth = _known(case, samples)
    assert truth is not None
    got = np.stack([tools.hand(s)[case.leaf] / s.unit for s in samples])
    verdict = _verdict(case, got, truth)
    return dataclasses.replace(case, samples=samples, verdict=verdict, truths=[truth], own=len(own))


def _loops_back(tools: Instruments) -> bool:
    """Whether the backward pass has loops of its own, which may not end at inputs nobody gave."""
    plain, backward = (
        sum(e.primitive.name == "while" for e in equations(jaxpr))
        for jaxpr in (tools.plain_jaxpr, tools.backward_jaxpr)
    )
    return backward > plain


def _ends(case: Case, sample: Sample) -> bool:
    """Whether the loop ends in time, in the working precision and in float64."""
    tools = case.tools

    def ended(wide: bool, jaxpr: Any, inputs: list[Any]) -> list[Any]:
        found: list[Any] = []

        def around(eqn: Any, inputs: list[Any], run: Any) -> list[Any]:
            if eqn.primitive.name != "while":
                return run(inputs)
            outputs, end = _in_time(Evaluate(wide=wide), eqn.params, inputs)
            found.append(end)
            return outputs

        Evaluate(wide=wide, around=around)(jaxpr, *inputs)
        return found

    def run(name: str, wide: bool, jaxpr: Any, inputs: list[Any]) -> bool:
        program = tools.kept(name, tools, lambda: tools.jit(partial(ended, wide, jaxpr)))
        return all(map(bool, program(inputs)))

    try:
        if not run("ends", False, tools.plain_jaxpr, tools.working(sample.inputs)):
            return False
        with jax.enable_x64(True):
            return run("ends in float64", True, tools.wide_plain, sample.inputs)
    except Exception:  # inputs that nobody gave, at which it may fail as it likes
        return False


def _in_time(
    run: Evaluate, params: dict[str, Any], inputs: list[Any]
) -> tuple[list[Any], jax.Array]:
    """What a loop carries after at most `TURNS` turns, and whether it would end there."""
    n_cond, n_body = params["cond_nconsts"], params["body_nconsts"]
    consts, rest = inputs[:n_cond], inputs[n_cond:]

    def goes_on(carry: list[Any]) -> Any:
        return run(params["cond_jaxpr"], *consts, *carry)[0]

    def turn(state: tuple[list[Any], Any]) -> tuple[list[Any], Any]:
        return run(params["body_jaxpr"], *rest[:n_body], *state[0]), state[1] + 1

    start = rest[n_body:], jnp.int32(0)
    carry, _ = jax.lax.while_loop(lambda s: goes_on(s[0]) & (s[1] < TURNS), turn, start)
    return carry, ~goes_on(carry)


def _known(case: Case, samples: list[Sample]) -> np.ndarray | None:
    """The gradient of one turn at rest; `None` where the loop is not."""
    try:
        with jax.enable_x64(True):
            rest = one_turn(dataclasses.replace(case, samples=samples))
            (truth,) = gradients(rest, [s.inputs[-1][None] for s in rest.case.samples])
    except Exception:  # inputs that nobody gave, at which it may fail as it likes
        return None
    return truth if np.isfinite(truth).all() else None
