"""All that we use of JAX's own representation of functions.

JAX promises no stability for what this file uses; it is tested on the oldest and the newest JAX
that we support.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.core
import jax.extend.core
import numpy as np

UNUSED_VERSION = 662_607_015  # a number that nobody else sets
RULES = ("custom_vjp_call", "custom_jvp_call")


def is_rule(eqn: Any) -> bool:
    """Whether the equation calls a function with a derivative of its own."""
    return eqn.primitive.name in RULES


def open_jaxpr(jaxpr: Any) -> tuple[Any, Sequence[Any]]:
    """A jaxpr and its constants, of the closed or the open kind (newer JAX has one kind)."""
    if isinstance(jaxpr, jax.extend.core.ClosedJaxpr):
        return jaxpr.jaxpr, jaxpr.consts
    return jaxpr, getattr(jaxpr, "consts", ())


def inner_jaxprs(eqn: Any) -> list[Any]:
    """The jaxprs that the equation holds among its parameters."""
    found = []
    for value in eqn.params.values():
        for part in value if isinstance(value, (tuple, list)) else (value,):
            if hasattr(part, "eqns") or isinstance(part, jax.extend.core.ClosedJaxpr):
                found.append(part)
    return found


def equations(jaxpr: Any) -> Iterator[Any]:
    """Every equation of a jaxpr, those of inner ones too."""
    for eqn in open_jaxpr(jaxpr)[0].eqns:
        yield eqn
        for inner in inner_jaxprs(eqn):
            yield from equations(inner)


def only_calls(eqn: Any) -> bool:
    """Whether the equation only calls another jaxpr: under jit, remat, or with a custom rule."""
    calls = ("jit", "pjit", "closed_call", "core_call", "remat", "remat2", "checkpoint", *RULES)
    return eqn.primitive.name in calls


def bind(eqn: Any, inputs: Sequence[Any], params: dict[str, Any]) -> list[Any]:
    """The outputs of the equation's primitive for these inputs and parameters."""
    bound = eqn.primitive.get_bind_params(params)
    functions, bound = bound if isinstance(bound, tuple) else ((), bound)
    with eqn.ctx.manager if hasattr(eqn.ctx, "manager") else contextlib.nullcontext():
        outputs = eqn.primitive.bind(*functions, *inputs, **bound)
    return list(outputs) if eqn.primitive.multiple_results else [outputs]


def scan_sizes(params: dict[str, Any]) -> tuple[int, int]:
    """How many constants and carries a scan has."""
    if "ft_in" in params:
        consts, carry, _ = params["ft_in"].unpack()
        return len(consts), len(carry)
    return params["num_consts"], params["num_carry"]


def call_function(eqn: Any) -> Callable[..., list[Any]]:
    """The equation as a function of its inputs, its custom rule in force."""
    return lambda *inputs: bind(eqn, inputs, eqn.params)


def plain_jaxpr(eqn: Any) -> Any:
    """What a custom rule's function computes."""
    return eqn.params["call_jaxpr"]


def rule_name(eqn: Any) -> str:
    """What the function with the custom rule is called."""
    info = open_jaxpr(plain_jaxpr(eqn))[0].debug_info
    return info.func_src_info.split(" at ")[0] if info.func_src_info else "rule"


def rule_source(eqn: Any) -> str:
    """File and line where the function with the custom rule is defined."""
    info = open_jaxpr(plain_jaxpr(eqn))[0].debug_info
    return (info.func_src_info or "").partition(" at ")[2]


def equation_source(eqn: Any) -> str:
    """The line of the user's code that the equation comes from: `file.py:12`."""
    from jax._src import source_info_util

    place = source_info_util.summarize(eqn.source_info).split(" (")[0]
    if "funprop/verify/" in place:  # traced anew here: the line is lost
        return ""
    return ":".join(place.rpartition("/")[2].split(":")[:2])


def of_jax(eqn: Any) -> bool:
    """Whether the function that the equation calls is one of JAX's own, as `jnp.log` is."""
    for inner in inner_jaxprs(eqn):
        info = getattr(open_jaxpr(inner)[0], "debug_info", None)
        place = ((info and info.func_src_info) or "").partition(" at ")[2].replace("\\", "/")
        return "/jax/" in place and "funprop" not in place.rpartition("/jax/")[2]
    return False


def equation_name(eqn: Any) -> str:
    """What the equation does: its primitive, or the name of the function that it calls."""
    return str(eqn.params.get("name") or eqn.primitive.name)


def input_names(eqn: Any) -> list[str]:
    """What the rule's function calls its inputs; empty for constants that it closes over."""
    jaxpr = open_jaxpr(plain_jaxpr(eqn))[0]
    n_consts, n = eqn.params["num_consts"], len(jaxpr.invars)
    names = list(jaxpr.debug_info.arg_names or ())
    if not names and "fwd_jaxpr_thunk" in eqn.params:
        info = getattr(eqn.params["fwd_jaxpr_thunk"], "debug_info", None)
        names = list((info and info.arg_names) or ())
    if len(names) != n:
        names = [""] * n_consts + names
    if len(names) != n:  # arguments that are not differentiated have names too
        names = [f"args[{i - n_consts}]" for i in range(n)]
    return ["" if i < n_consts else str(name or "") for i, name in enumerate(names)]


def unfiltered_errors() -> Any:
    """Where many errors are expected, and caught: leave out JAX's work on their tracebacks."""
    from jax._src import config

    return config.traceback_filtering("off")


@contextlib.contextmanager
def rules_survive_differentiation() -> Iterator[None]:
    """Where a function is traced that differentiates inside, leave a trace of the custom rules.

    Differentiation replaces a call of a custom rule by the rule's own forward pass. In this
    context it calls the function beside, so that the call stands in the jaxpr with the values that
    it gets. A number that JAX puts in the keys of its caches is set, so that no earlier trace is
    found there, and this one by nobody else.
    """
    from jax._src import config, shard_map
    from jax._src.interpreters import ad

    derivatives = (ad.JVPTrace, ad.LinearizeTrace)

    def with_value(output: Any, value: Any) -> Any:
        if not isinstance(output, (ad.JVPTracer, ad.LinearizeTracer)):
            return value
        output.primal = with_value(output.primal, value)
        return output

    def with_probe(process: Callable[..., Any]) -> Callable[..., Any]:
        def processed(trace: Any, primitive: Any, *rest: Any, **params: Any) -> Any:
            functions, tracers = rest[:-1], rest[-1]
            values, below = tracers, trace
            while isinstance(below, derivatives):  # a second derivative calls the forward pass too
                values = [below.to_primal_tangent_pair(value)[0] for value in values]
                below = below.parent_trace
            outputs = list(process(trace, primitive, *rest, **params))
            bound = getattr(primitive, "bind_with_trace")  # noqa: B009  # undeclared
            avals = tuple(map(jax.typeof, values))
            called = bound(below, tuple(values), avals, {"subfuns": functions, **params})
            # What follows takes its values from that call, or it would be left out as unused.
            return list(map(with_value, outputs, called))

        return processed

    def staged(call: Callable[..., Any]) -> Callable[..., Any]:
        """Called through a jaxpr, a rule's functions may be called more than once."""

        def called(rule: Any, *args: Any, **kwargs: Any) -> Any:
            leaves, tree = jax.tree.flatten((args, kwargs))
            places = [
                i for i, leaf in enumerate(leaves) if isinstance(leaf, (jax.Array, np.ndarray))
            ]

            def function(values: list[Any]) -> Any:
                filled = list(leaves)
                for i, value in zip(places, values, strict=True):
                    filled[i] = value
                args, kwargs = jax.tree.unflatten(tree, filled)
                return call(rule, *args, **kwargs)

            values = [leaves[i] for i in places]
            jaxpr, spec = jax.make_jaxpr(function, return_shape=True)(values)
            outputs = jax.core.eval_jaxpr(jaxpr.jaxpr, jaxpr.consts, *values)
            return jax.tree.unflatten(jax.tree.structure(spec), outputs)

        return called

    def unchecked(sharded: Callable[..., Any]) -> Callable[..., Any]:
        """Without types that say over which devices a value varies, which only fit inside."""
        return lambda *args, **options: sharded(*args, **{**options, "check_vma": False})

    replaced = [
        (shard_map, "_shard_map", unchecked),
        *(
            (kind, f"process_custom_{what}_call", with_probe)
            for kind in derivatives
            for what in ("vjp", "jvp")
        ),
        (jax.custom_vjp, "__call__", staged),
        (jax.custom_jvp, "__call__", staged),
    ]
    originals = [(owner, name, getattr(owner, name)) for owner, name, _ in replaced]
    try:
        for owner, name, change in replaced:
            setattr(owner, name, change(getattr(owner, name)))
        with config.jax_xla_profile_version(UNUSED_VERSION):
            yield
    finally:
        for owner, name, original in originals:
            setattr(owner, name, original)
