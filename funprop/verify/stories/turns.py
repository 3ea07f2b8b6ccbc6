"""Stories of the turns of a long loop: which of them count, and with what derivative."""

from __future__ import annotations

from typing import Any

import jax
import jax.extend.core
import jax.numpy as jnp
import numpy as np

from funprop.verify.stories.case import Told
from funprop.verify.stories.edits import OUT, SLOPE, Edit, edits
from funprop.verify.stories.loops import Rest, gradients, other_sum, summed
from funprop.verify.stories.steps import EDITS, edited

FEW = 12  # a backward pass may look back over fewer turns
NUMBERS = 300_000  # in the matrices of all edits at one sample


def other_sums(rest: Rest) -> Told | None:
    """The turns before the last are not counted, or a few, or with another matrix."""
    where = rest.where
    told = [
        Told("missing term", f"what comes through {where} is missing"),
        Told("missing term", f"only the last turn of {where} is differentiated"),
        Told("transposed", f"how {where} depends on its turn before is not transposed"),
        Told("sign of a term", f"how {where} depends on its turn before has its sign turned"),
        *(
            Told("missing term", f"only the last {k} turns of {where} are differentiated")
            for k in range(2, FEW)
        ),
    ]
    sums = []
    for a, s in zip(rest.powers, rest.case.samples, strict=True):
        own = [np.zeros_like(a), np.eye(len(a)), s.inputs[-1].T, other_sum(rest, -a)]
        sums.append(np.stack([*own, *(summed(a, k) for k in range(2, FEW))]))
    for story, gradient in zip(told, gradients(rest, sums), strict=True):
        if np.isfinite(gradient).all() and rest.case.close(gradient):
            return story
    return None


def turn_edited(rest: Rest) -> Told | None:
    """A step of the turn is differentiated wrongly: in how a turn depends on the one before, or in
    that and in how it depends on the leaf."""
    n = len(rest.powers[0])
    tried = edits(rest.turn)[: min(EDITS, NUMBERS // (n * n))]
    if not tried:
        return None
    variants = [np.array([edit[i] for edit in tried]) for i in (0, 1, 2, 4)]
    try:
        with jax.enable_x64(True):
            return _with_matrices(rest, tried, variants)
    except Exception:  # a part of the turn that cannot be run so: no story of its steps
        return None


def _with_matrices(rest: Rest, tried: list[Edit], variants: list[np.ndarray]) -> Told | None:
    """The first edit whose derivatives of the turn give the gradient that was found."""
    case, n = rest.case, len(rest.powers[0])
    jacobians, pulled, arriving = _programs(rest)
    same = [np.full(len(tried), v) for v in (-1, 0, 0)] + [np.full((len(tried), 2), -1)]
    known: dict[int, np.ndarray] = {}
    per_sample: list[list[np.ndarray]] = []
    for whole, turn, truth in zip(case.samples, rest.turn.samples, case.verdict.truth, strict=True):
        if id(turn.inputs) not in known:
            matrices = np.asarray(jacobians(variants, turn.inputs))
            known[id(turn.inputs)] = other_sum(rest, matrices)
        dz = np.asarray(arriving(whole.inputs, whole.dys)) / whole.unit
        u = np.einsum("eij,i->ej", known[id(turn.inputs)], dz)
        right = np.broadcast_to(whole.inputs[-1].T @ dz, (len(tried), n))
        direct = truth - np.asarray(pulled(same, right, turn.inputs))[0]
        per_sample.append(
            [
                direct + np.asarray(pulled(e, np.nan_to_num(u), turn.inputs))
                for e in (same, variants)
            ]
        )
    for gradients_, words in zip(
        zip(*per_sample, strict=True),
        (f"in how {rest.where} depends on its turn before, ", f"in the turns of {rest.where}, "),
        strict=True,
    ):
        fits = [e for e, g in zip(tried, np.stack(gradients_, 1), strict=True) if case.close(g)]
        if fits:  # a derivative of one is also that at some value, as tanh's at zero
            edit = min(fits, key=lambda edit: edit.kind not in (SLOPE, OUT))
            return Told(edit.told.kind, words + edit.told.sentence)
    return None


def _programs(rest: Rest) -> tuple[Any, Any, Any]:
    """Of the turn with edits: its Jacobian, what comes to the leaf of cotangents; and what comes to
    the loop's results from the outputs."""
    case, turn, carried = rest.case, rest.turn, rest.carried
    run = jax.extend.core.jaxpr_as_fun(case.tools.wide_plain)

    def put(inputs: list[Any], places: list[int], values: list[Any]) -> list[Any]:
        new = list(inputs)
        for i, value in zip(places, values, strict=True):
            new[i] = value
        return new

    def jacobian(edit: Any, inputs: list[Any]) -> Any:
        def new(values: list[Any]) -> Any:
            return edited(turn, edit, put(inputs, carried, values))[0]

        parts = jax.jacrev(new)([inputs[i] for i in carried])
        return jnp.concatenate([p.reshape(p.shape[0], -1) for p in parts], 1)

    def pull(edit: Any, cotangent: Any, inputs: list[Any]) -> Any:
        def new(value: Any) -> Any:
            return edited(turn, edit, put(inputs, [turn.place], [value]))[0]

        return jax.vjp(new, inputs[turn.place])[1](cotangent)[0]

    def arrive(inputs: list[Any], dys: list[Any]) -> Any:
        def total(values: list[Any]) -> Any:
            ys = run(*put([*inputs[:-1], 0 * inputs[-1]], carried, values))
            return sum(jnp.sum(y * d) for y, d in zip(ys, dys, strict=True))

        return jnp.concatenate(
            [jnp.ravel(g) for g in jax.grad(total)([inputs[i] for i in carried])]
        )

    jit = case.tools.jit
    return (
        turn.tools.kept("jacobians", turn.tools, lambda: jit(jax.vmap(jacobian, (0, None)))),
        jit(jax.vmap(pull, (0, 0, None))),
        case.tools.kept("arriving", case.tools, lambda: jit(arrive)),
    )
