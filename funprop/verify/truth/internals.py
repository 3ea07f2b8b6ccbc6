"""All that we use of JAX's own representation of functions.

JAX promises no stability for what this file uses; it is tested on the oldest and the newest JAX
that we support.
"""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.core
import jax.extend.core
import numpy as np

from funprop.verify.truth.binding import bind
from funprop.verify.truth.kernels import taken_apart
from funprop.verify.truth.primitives import CALLS, RULES

# Forms of what is no rule: how `jax.checkpoint` may stand in a jaxpr.
HI_CALLS = ("RematTraced", "CheckpointName")


def is_rule(eqn: Any) -> bool:
    """Whether the equation calls a function with a derivative of its own."""
    if eqn.primitive.name == "call_hi_primitive":
        return not _is_hi_call(eqn) and _takes_arrays(eqn)
    return eqn.primitive.name in RULES


def _is_hi_call(eqn: Any) -> bool:
    if eqn.primitive.name != "call_hi_primitive":
        return False
    kind = type(eqn.params["_prim"])
    return kind.__name__ in HI_CALLS and kind.__module__.startswith("jax.")


def _takes_arrays(eqn: Any) -> bool:
    """Whether it takes and gives arrays alone, and not the types that people may add."""
    return all(hasattr(atom.aval, "shape") for atom in (*eqn.invars, *eqn.outvars))


def open_jaxpr(jaxpr: Any) -> tuple[Any, Sequence[Any]]:
    """A jaxpr and its constants, of the closed or the open kind (newer JAX has one kind)."""
    return getattr(jaxpr, "jaxpr", jaxpr), getattr(jaxpr, "consts", ())


def inner_jaxprs(eqn: Any) -> list[Any]:
    """The jaxprs that the equation holds among its parameters."""
    if eqn.primitive.name == "call_hi_primitive":
        return [plain_jaxpr(eqn)] if _takes_arrays(eqn) else []
    if (kernel := taken_apart(eqn)) is not None:
        return [kernel]
    found = []
    for value in eqn.params.values():
        for part in value if isinstance(value, (tuple, list)) else (value,):
            if hasattr(part, "eqns"):
                found.append(part)
    return found


def equations(jaxpr: Any, but: Collection[str] = ()) -> Iterator[Any]:
    """Every equation of a jaxpr, those of inner ones too, `but` for those of some primitives."""
    for eqn in open_jaxpr(jaxpr)[0].eqns:
        yield eqn
        closed = eqn.primitive.name in but and taken_apart(eqn) is None
        for inner in () if closed else inner_jaxprs(eqn):
            yield from equations(inner, but)


def without_unused(jaxpr: Any) -> Any:
    """The jaxpr without what no output needs, in inner ones too."""
    from jax.interpreters import partial_eval

    opened, consts = open_jaxpr(jaxpr)
    needed, _ = partial_eval.dce_jaxpr(opened, [True] * len(opened.outvars), instantiate=True)
    return jax.extend.core.ClosedJaxpr(needed, consts)


def steps(jaxpr: Any) -> int:
    """How many equations are run, every turn of a scan counted."""
    total = 0
    for eqn in open_jaxpr(jaxpr)[0].eqns:
        inner = sum(map(steps, inner_jaxprs(eqn)))
        total += max(1, inner) * (eqn.params["length"] if eqn.primitive.name == "scan" else 1)
    return total


def only_calls(eqn: Any) -> bool:
    """Whether the equation only calls another jaxpr: under jit, remat, with a custom rule, or as
    an interpreted kernel."""
    calls = eqn.primitive.name in CALLS or is_rule(eqn) or _is_hi_call(eqn)
    return calls or taken_apart(eqn) is not None


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
    if eqn.primitive.name == "call_hi_primitive":
        return _expanded(_Same(eqn.params["_prim"]))
    return next(eqn.params[name] for name in ("call_jaxpr", "callee") if name in eqn.params)


class _Same:
    """Anything, equal to itself alone: two primitives may be equal and of other shapes."""

    def __init__(self, value: Any):
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self.value is other.value

    def __hash__(self) -> int:
        return id(self.value)


@functools.lru_cache(maxsize=256)
def _expanded(held: _Same) -> Any:
    """What a primitive of `jax.experimental.hijax` says that it computes."""
    primitive = held.value

    def function(*leaves: Any) -> Any:
        return jax.tree.leaves(primitive.expand(*primitive.in_tree.unflatten(leaves)))

    avals = primitive.in_avals_flat
    wide = any(a.dtype in (np.float64, np.int64, np.uint64) for a in avals)
    with jax.enable_x64(wide):
        return jax.make_jaxpr(function)(*[jax.ShapeDtypeStruct(a.shape, a.dtype) for a in avals])


def hi_primitive(eqn: Any) -> Any:
    """The primitive itself, where it is one under vmap."""
    primitive = eqn.params["_prim"]
    while type(primitive).__name__ == "VmapOf":
        primitive = primitive.prim
    return primitive


def user_frames(eqn: Any) -> list[Any]:
    """Where in people's code the equation comes from, the innermost place first: each with a
    `file_name`, a `start_line` and a `function_name`. None where it was traced anew here."""
    from jax._src import source_info_util

    frames = list(source_info_util.user_frames(eqn.source_info.traceback))
    anew = frames and "funprop/verify/" in frames[0].file_name.replace("\\", "/")
    return [] if anew else frames


def equation_source(eqn: Any) -> str:
    """The line of the user's code that the equation comes from: `file.py:12`."""
    for frame in user_frames(eqn)[:1]:
        return f"{Path(frame.file_name).name}:{frame.start_line}"
    return ""


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


def forget_traces(eqn: Any) -> None:
    """Let JAX trace the rule's forward pass anew: after a trace of it that failed it would go on
    with an earlier one, of whose results it has lost the structure."""
    _forget(eqn.params.get("fwd_jaxpr_thunk"))


def _forget(function: Any) -> None:
    function = getattr(function, "f", function)
    for cell in getattr(function, "__closure__", None) or ():
        held = cell.cell_contents
        if isinstance(held, dict) and function.__name__ == "memoized":
            held.clear()
        elif callable(getattr(held, "f", held)):
            _forget(held)


@contextlib.contextmanager
def quiet_callbacks() -> Iterator[None]:
    """Where code that JAX calls is expected to raise: without the traceback that JAX logs of it."""
    log = logging.getLogger("jax._src.callback")
    before, log.disabled = log.disabled, True
    try:
        yield
    finally:
        log.disabled = before


def unfiltered_errors() -> Any:
    """Where many errors are expected, and caught: leave out JAX's work on their tracebacks."""
    from jax._src import config

    return config.traceback_filtering("off")


def at_source(eqn: Any) -> Any:
    """A context in which what is traced is said to come from the line that the equation does."""
    from jax._src import source_info_util

    return source_info_util.user_context(eqn.source_info.traceback)
