"""The traces of a subject: of its forward pass and its backward pass, as given and in float64."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np

from funprop.verify.subject import Subject, floats, is_floating
from funprop.verify.truth.evaluate import Evaluate
from funprop.verify.truth.internals import equations, unfiltered_errors
from funprop.verify.truth.thresholds import Thresholds, thresholds
from funprop.verify.truth.ties import may_have_kinks

EPS64 = float(np.finfo(np.float64).eps)
EPS32 = float(np.finfo(np.float32).eps)


class Traces:
    """A subject traced at inputs of one shape and dtype, each trace where it is first asked for.

    Attributes:
      args: inputs of that shape and dtype, `shapes` and `dtypes` theirs.
      outputs: the specs of its outputs; `dys` those of the cotangents.
      eps: the rounding unit of the working precision, that of the narrowest float input.
    """

    def __init__(self, subject: Subject, args: Sequence[Any], like: Traces | None = None):
        self.subject, self.args = subject, args
        self.shapes = [tuple(np.shape(leaf)) for leaf in args]
        self.dtypes = [leaf.dtype for leaf in args]
        self._given = [jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in args]
        self._x64 = jax.dtypes.canonicalize_dtype(np.float64) == np.float64
        self.eps = max(
            float(jnp.finfo(self.dtypes[i]).eps) for i in subject.differentiable
        )  # the coarsest that takes part
        self.outputs = self._traced_plain[1] if like is None else self._outputs_like(like)
        self.dys = [jax.ShapeDtypeStruct(y.shape, y.dtype) for y in floats(self.outputs)]

    @functools.cached_property
    def units(self) -> list[float]:
        """Of each leaf's gradient the rounding unit that may be asked of it.

        Where a narrow input is widened at once and all is computed in float32, a leaf in float32
        has no reason to lose digits; else all have the unit of the narrowest.
        """
        own = [float(jnp.finfo(self.dtypes[i]).eps) for i in self.subject.differentiable]
        if min(own) == self.eps:
            return own
        made = [v.aval for eqn in equations(self.plain_jaxpr) for v in eqn.outvars]
        narrow = any(is_floating(v) and jnp.finfo(v.dtype).eps > EPS32 for v in made)
        return [self.eps] * len(own) if narrow else own

    def _outputs_like(self, like: Traces) -> list[Any]:
        """The specs of the outputs, of the trace for float64: there may be no need of another."""
        if self.subject.source:
            return self._traced_plain[1]
        try:
            with jax.enable_x64(True):
                wide = self._traced_wide[1]
        except Exception:  # anything may go wrong in a function that was not made for float64
            return self._traced_plain[1]
        return [
            jax.ShapeDtypeStruct(y.shape, other.dtype)
            for y, other in zip(wide, like.outputs, strict=True)
        ]

    @functools.cached_property
    def _traced_plain(self) -> tuple[Any, Any]:
        with jax.enable_x64(self._x64):
            return _traced(self.subject.plain, *self._given)

    @functools.cached_property
    def _traced_wide(self) -> tuple[Any, Any]:
        return _traced(self.subject.plain, *map(_wide_spec, self._given))

    @property
    def plain_jaxpr(self) -> Any:
        """The trace of the plain forward pass, as it was given."""
        return self._traced_plain[0]

    @functools.cached_property
    def backward_jaxpr(self) -> Any:
        """The trace of the hand-written backward pass; behind its gradients are the outputs that
        the forward pass gives while it is differentiated, if that may be another.

        Raises:
          MismatchError, or whatever a backward pass raises that cannot be traced.
        """

        def both(inputs: list[Any], dys: list[Any]) -> list[Any]:
            grads, ys = self.subject.pulled(inputs, dys)
            return [*grads, *ys]

        with jax.enable_x64(self._x64):  # as it was where this was made
            return _traced(both, self._given, self.dys)[0]

    def ran(self, inputs: list[Any], dys: list[Any]) -> tuple[list[Any], list[Any]]:
        """What `Subject.pulled` gives, of the trace."""
        found = Evaluate()(self.backward_jaxpr, *inputs, *dys)
        n = len(self.subject.differentiable)
        return found[:n], found[n:]

    def traced(self) -> Self:
        """Itself, for inputs of other shapes: raises what the backward pass raises there."""
        with unfiltered_errors():
            self.wide_plain  # noqa: B018
        return self

    @functools.cached_property
    def wide_jaxprs(self) -> tuple[Any, Any, float]:
        """The traces for float64, and the rounding of the constants in them.

        Traced anew with float64 inputs, where the functions take them; else as they were traced
        first, with constants that are rounded to the working precision.
        """
        if self.subject.source:  # found in a jaxpr: there is nothing to trace anew
            return self.plain_jaxpr, self.backward_jaxpr, self.eps
        inputs = list(map(_wide_spec, self._given))
        try:
            plain, outputs = self._traced_wide
            dys = [jax.ShapeDtypeStruct(y.shape, y.dtype) for y in floats(outputs)]
            backward, _ = _traced(self.subject.backward, inputs, dys)
        except Exception:  # anything may go wrong in a function that was not made for float64
            return self.plain_jaxpr, self.backward_jaxpr, self.eps
        return plain, backward, 2.0**10 * EPS64

    @property
    def constants(self) -> float:
        """How far the constants in the exact gradients are rounded, relative."""
        with jax.enable_x64(True):
            return self.wide_jaxprs[2]

    @functools.cached_property
    def may_have_kinks(self) -> bool:
        """Whether the slopes of the forward pass may jump."""
        return may_have_kinks(self.wide_plain)

    @functools.cached_property
    def thresholds(self) -> Thresholds:
        """What the forward pass compares its inputs with."""
        return thresholds(self.wide_plain)

    @property
    def wide_plain(self) -> Any:
        """The trace of the plain forward pass that the truth is taken of."""
        with jax.enable_x64(True):
            return self.wide_jaxprs[0]

    def draws_random_numbers(self) -> bool:
        """Whether the forward pass draws numbers, which differ with the dtype."""
        return any(e.primitive.name == "random_bits" for e in equations(self.plain_jaxpr))


def _traced(function: Callable[..., Any], *args: Any) -> tuple[Any, Any]:
    jaxpr, outputs = jax.make_jaxpr(function, return_shape=True)(*args)
    return jaxpr, outputs


def _wide_spec(aval: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(aval.shape, np.float64 if is_floating(aval) else aval.dtype)
