"""What a gradient, or a whole update, takes: bytes by XLA's account, work by counting."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import optax

from funprop.gradients import backprop
from funprop.layer import Layer
from funprop.steps.step import step
from funprop.verify.truth.internals import inner_jaxprs

# A number that is read and written takes as long as so many multiplications within a product.
PASS = 16
# Nothing is computed, or within what reads it.
FREE = {
    *("reshape", "squeeze", "broadcast_in_dim", "optimization_barrier", "slice", "dynamic_slice"),
    *("iota", "transpose", "expand_dims", "convert_element_type", "copy", "concatenate"),
}
WRITES = {"dynamic_update_slice": 1, "scatter": 2, "scatter-add": 2}  # which operand is written


class Account(NamedTuple):
    """What one program takes.

    Attributes:
      bytes: of arguments, results and all between at the fullest, what is reused once; on the
        device.
      work: multiplications and additions within products, and 16 for every number that another
        operation gives: as long as it takes, in units of the former.
    """

    bytes: int
    work: float


class Program(NamedTuple):
    """What a budget is for.

    Attributes:
      batch: a spec.
      optimizer: of an update; `None` for the gradient alone.
    """

    batch: Any
    optimizer: optax.GradientTransformation | None

    def account(self, objective: Layer) -> Account:
        """By compiling it."""
        key = jax.eval_shape(lambda: jax.random.key(0))
        params = jax.eval_shape(objective.init, key, self.batch)
        grad_fn = backprop(objective)
        traced: Any = jax.jit(grad_fn).trace(params, self.batch, key)
        work = work_of(traced.jaxpr.jaxpr)
        if self.optimizer is not None:
            train: Any = step(grad_fn, self.optimizer)
            state = jax.eval_shape(train.init, params, key)
            traced = train.update.trace(state, self.batch)
        memory = traced.lower().compile().memory_analysis()
        parts = ("argument", "output", "temp")
        total = sum(getattr(memory, f"{part}_size_in_bytes") for part in parts)
        return Account(total - memory.alias_size_in_bytes, work)


def work_of(jaxpr: Any) -> float:
    """Of all equations, those of a loop as often as it turns."""
    return sum(map(_work, jaxpr.eqns))


def _work(eqn: Any) -> float:
    name, params = eqn.primitive.name, eqn.params
    if name == "scan":
        return params["length"] * work_of(params["jaxpr"].jaxpr)
    if inner := inner_jaxprs(eqn):
        works = [work_of(getattr(each, "jaxpr", each)) for each in inner]
        return max(works) if name == "cond" else sum(works)
    sizes = [math.prod(getattr(v.aval, "shape", ())) for v in eqn.outvars]
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        return 2.0 * sizes[0] * math.prod(eqn.invars[0].aval.shape[i] for i in contracted)
    if name == "conv_general_dilated":
        numbers = params["dimension_numbers"]
        kernel = eqn.invars[1].aval.shape
        return 2.0 * sizes[0] * math.prod(kernel) / kernel[numbers.rhs_spec[0]]
    if name in WRITES:
        sizes = [math.prod(eqn.invars[WRITES[name]].aval.shape)]
    return 0.0 if name in FREE else float(PASS * sum(sizes))
