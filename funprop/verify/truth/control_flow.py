"""Loops, branches and sharded functions, run with another evaluation of what is inside them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from jax import lax

from funprop.verify.truth.internals import scan_sizes


class Run(Protocol):
    """How what is inside is run: as `Evaluate` runs it."""

    @property
    def unroll(self) -> bool: ...

    @property
    def wide(self) -> bool: ...

    def __call__(self, jaxpr: Any, *args: Any) -> list[Any]: ...

    def logging_to(self, log: list[Any]) -> Run: ...

    def unwatched(self) -> Run: ...

    def keep(self, whats: list[Any], values: list[Any]) -> None: ...


def _inner(run: Run, jaxpr: Any, whats: list[Any]) -> Callable[..., Any]:
    """`args -> (outputs, logged values)` of a jaxpr inside another; `whats` takes what was logged.

    What is logged under a control flow primitive must leave it as an output.
    """

    def call(*args: Any) -> tuple[list[Any], list[Any]]:
        log: list[Any] = []
        outputs = run.logging_to(log)(jaxpr, *args)
        whats[:] = [what for what, _ in log]
        return outputs, [values for _, values in log]

    return call


def _scan(run: Run, params: dict[str, Any], inputs: list[Any]) -> list[Any]:
    n_consts, n_carry = scan_sizes(params)
    consts, carry = inputs[:n_consts], inputs[n_consts : n_consts + n_carry]
    xs = inputs[n_consts + n_carry :]
    length, reverse = params["length"], params["reverse"]
    whats: list[Any] = []
    if not run.unroll:
        run = run.unwatched()  # what is seen of a step may not leave it
    step = _inner(run, params["jaxpr"], whats)

    def body(carry: list[Any], x: list[Any]) -> tuple[list[Any], Any]:
        outputs, logged = step(*consts, *carry, *x)
        return outputs[:n_carry], (outputs[n_carry:], logged)

    if not run.unroll or not length:
        carry, (ys, logged) = lax.scan(body, carry, xs, length, reverse)
        run.keep(whats, logged)
        return [*carry, *ys]
    steps = []
    for i in reversed(range(length)) if reverse else range(length):
        carry, (y, _) = body(carry, [x[i] for x in xs])
        steps.append(y)
    steps = steps[::-1] if reverse else steps
    return [*carry, *(jnp.stack(parts) for parts in zip(*steps, strict=True))]


def _while(run: Run, params: dict[str, Any], inputs: list[Any]) -> list[Any]:
    """What is logged is the last turn's."""
    n_cond, n_body = params["cond_nconsts"], params["body_nconsts"]
    cond_consts, body_consts = inputs[:n_cond], inputs[n_cond : n_cond + n_body]
    whats: list[Any] = []
    run = run.unwatched()
    condition = _inner(run, params["cond_jaxpr"], [])
    step = _inner(run, params["body_jaxpr"], whats)
    carry = inputs[n_cond + n_body :]
    _, specs = jax.eval_shape(step, *body_consts, *carry)

    def goes_on(state: Any) -> Any:
        return condition(*cond_consts, *state[0])[0][0]

    def turn(state: Any) -> Any:
        new, logged = step(*body_consts, *state[0])
        going = goes_on(state) if batched else None
        return [_where(going, a, b) for a, b in zip(new, state[0], strict=True)], logged

    state = (carry, _zeros(specs))
    # Under vmap each of a batch of loops has its own end, and the condition an answer for each.
    batched = bool(jax.eval_shape(goes_on, state).shape)
    carry, logged = lax.while_loop(lambda state: jnp.any(goes_on(state)), turn, state)
    run.keep(whats, logged)
    return carry


def _where(going: Any, new: Any, old: Any) -> Any:
    """What a turn gives those of a batch that go on; the others keep what they have."""
    if going is None:
        return new
    return lax.select(lax.broadcast_in_dim(going, new.shape, range(going.ndim)), new, old)


def _cond(run: Run, params: dict[str, Any], inputs: list[Any]) -> list[Any]:
    run = run.unwatched()
    platforms = params.get("branches_platforms") or ()
    if None in platforms:
        return run(params["branches"][_chosen(platforms, run.wide)], *inputs[1:])
    whats: list[list[Any]] = [[] for _ in params["branches"]]
    index, *rest = inputs
    branches = [_inner(run, jaxpr, w) for jaxpr, w in zip(params["branches"], whats, strict=True)]
    specs = [jax.eval_shape(branch, *rest)[1] for branch in branches]

    def padded(i: int) -> Callable[..., Any]:
        def branch(*args: Any) -> Any:
            outputs, logged = branches[i](*args)
            return outputs, [logged if j == i else _zeros(specs[j]) for j in range(len(specs))]

        return branch

    outputs, logged = lax.switch(index, [padded(i) for i in range(len(branches))], *rest)
    for what, values in zip(whats, logged, strict=True):
        run.keep(what, values)
    return outputs


def _chosen(platforms: tuple[tuple[str, ...] | None, ...], wide: bool) -> int:
    """Which branch of a choice by platform: that of this machine, as what runs elsewhere in the
    same function has made; in float64 the default, as another may be a kernel."""
    backend = jax.default_backend()
    here = {"cuda", "rocm"} if backend == "gpu" else {backend}
    found = [i for i, names in enumerate(platforms) if names and here & set(names) and not wide]
    return found[0] if found else platforms.index(None)


def _shard_map(run: Run, params: dict[str, Any], inputs: list[Any]) -> list[Any]:
    """What is logged has a leading axis over the devices."""
    whats: list[Any] = []
    run = run.unwatched()
    body = _inner(run, params["jaxpr"], whats)
    names = params.get("manual_axes") or params["newly_manual_axes"]

    def stacked(*args: Any) -> Any:
        outputs, logged = body(*args)
        return outputs, jax.tree.map(lambda v: jnp.asarray(v)[None], logged)

    outputs, logged = jax.shard_map(
        stacked,
        mesh=params["mesh"],
        in_specs=params["in_specs"],
        out_specs=(list(params["out_specs"]), jax.P(tuple(names))),
        axis_names=set(names),
        check_vma=False,
    )(*inputs)
    run.keep(whats, logged)
    return outputs


def _zeros(specs: Any) -> Any:
    def zeros(spec: Any) -> Any:
        if jnp.issubdtype(spec.dtype, jax.dtypes.prng_key):
            return jax.random.split(jax.random.key(0), spec.shape)  # any key: it was not drawn from
        return jnp.zeros(spec.shape, spec.dtype)

    return jax.tree.map(zeros, specs)


CONTROL_FLOW = {"scan": _scan, "while": _while, "cond": _cond, "shard_map": _shard_map}
