"""Traces in which custom rules stand as they are called, though the function differentiates."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.core

from funprop.verify.truth.lifted import is_array, lifted

UNUSED_VERSION = 662_607_015  # a number that nobody else sets


@contextlib.contextmanager
def rules_survive_differentiation() -> Iterator[dict[str, Any]]:
    """Where a function is traced that differentiates inside, leave a trace of the custom rules.

    Differentiation replaces a call of a custom rule by the rule's own forward pass. In this
    context it calls the function beside, so that the call stands in the jaxpr with the values that
    it gets. A number that JAX puts in the keys of its caches is set, so that no earlier trace is
    found there, and this one by nobody else.

    Yields:
      What the functions with rules say that their derivative is meant to be of, by their names.
    """
    from jax._src import config, hijax, shard_map
    from jax._src.interpreters import ad

    intended: dict[str, Any] = {}
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
            # What is above, vmap for one, asks which of the functions was run: not this one.
            for store in functions[0].stores:
                if store:
                    store.reset()
            # What follows takes its values from that call, or it would be left out as unused.
            return list(map(with_value, outputs, called))

        return processed

    def staged(call: Callable[..., Any]) -> Callable[..., Any]:
        """Called through a jaxpr, a rule's functions may be called more than once."""

        def called(rule: Any, *args: Any, **kwargs: Any) -> Any:
            if hasattr(rule, "intended"):
                intended[getattr(rule, "__name__", "")] = rule.intended
            rule, args = lifted(rule, args, kwargs)
            leaves, tree = jax.tree.flatten(args)
            static = getattr(rule, "nondiff_argnums", ())
            moving = [i not in static for i, arg in enumerate(args) for _ in jax.tree.leaves(arg)]
            places = [i for i, leaf in enumerate(leaves) if moving[i] and is_array(leaf)]

            def function(values: list[Any]) -> Any:
                filled = list(leaves)
                for i, value in zip(places, values, strict=True):
                    filled[i] = value
                return call(rule, *jax.tree.unflatten(tree, filled))

            values = [leaves[i] for i in places]
            jaxpr, spec = jax.make_jaxpr(function, return_shape=True)(values)
            outputs = jax.core.eval_jaxpr(jaxpr.jaxpr, jaxpr.consts, *values)
            return jax.tree.unflatten(jax.tree.structure(spec), outputs)

        return called

    def with_call(rule: Callable[..., Any], n: int) -> Callable[..., Any]:
        """The same for a primitive of `jax.experimental.hijax`."""

        def ruled(*args: Any, _prim: Any) -> Any:
            found = rule(*args, _prim=_prim)
            values = args[0] if n == 0 else args[n:]
            called = hijax.call_hi_primitive_p.bind(*values, _prim=_prim)
            return (list(called), *found[1:])

        return ruled

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
    new_forms = [
        (table, table[hijax.call_hi_primitive_p], n)
        for table, n in ((ad.primitive_jvps, 0), (ad.primitive_linearizations, 2))
    ]
    originals = [(owner, name, getattr(owner, name)) for owner, name, _ in replaced]
    try:
        for owner, name, change in replaced:
            setattr(owner, name, change(getattr(owner, name)))
        for table, rule, n in new_forms:
            table[hijax.call_hi_primitive_p] = with_call(rule, n)
        with config.jax_xla_profile_version(UNUSED_VERSION):
            yield intended
    finally:
        for owner, name, original in originals:
            setattr(owner, name, original)
        for table, rule, _ in new_forms:
            table[hijax.call_hi_primitive_p] = rule
