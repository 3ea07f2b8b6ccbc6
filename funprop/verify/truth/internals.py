"""All that we use of JAX's own representation of functions.

JAX promises no stability for what this file uses; it is tested on the oldest and the newest JAX
that we support.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import logging
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

import jax
import jax.core
import jax.extend.core
import numpy as np

from funprop.verify.truth.binding import bind
from funprop.verify.truth.kernels import taken_apart
from funprop.verify.truth.primitives import CALLS, RULES

GIVEN = "given_"  # begins the names of a rule's inputs that are not differentiated
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


def _of_function(eqn: Any) -> tuple[str, str]:
    """Name and place of the function with the custom rule."""
    if eqn.primitive.name == "custom_linear_solve":
        info = getattr(open_jaxpr(eqn.params["jaxprs"].solve)[0], "debug_info", None)
        return eqn.primitive.name, ((info and info.func_src_info) or "").partition(" at ")[2]
    if eqn.primitive.name != "call_hi_primitive":
        info = getattr(open_jaxpr(plain_jaxpr(eqn))[0], "debug_info", None)
        name, _, place = ((info and info.func_src_info) or "").partition(" at ")
        return name or "rule", place
    primitive = hi_primitive(eqn)
    if hasattr(primitive, "traced"):  # a function with a rule, in its new form
        info = getattr(open_jaxpr(primitive.traced.jaxpr)[0], "debug_info", None)
        name, _, place = ((info and info.func_src_info) or "").partition(" at ")
        return name or "rule", place
    kind = type(primitive)
    with contextlib.suppress(OSError, TypeError):  # made where there is no source
        return kind.__name__, f"{inspect.getsourcefile(kind)}:{inspect.getsourcelines(kind)[1]}"
    return kind.__name__, ""


def hi_primitive(eqn: Any) -> Any:
    """The primitive itself, where it is one under vmap."""
    primitive = eqn.params["_prim"]
    while type(primitive).__name__ == "VmapOf":
        primitive = primitive.prim
    return primitive


def _hi_names(primitive: Any) -> list[str]:
    """What `expand` calls its inputs; empty for constants that a function closes over."""
    paths = jax.tree_util.tree_flatten_with_path(primitive.in_avals)[0]
    if hasattr(primitive, "traced"):
        jaxpr = open_jaxpr(primitive.traced.jaxpr)[0]
        names = list(getattr(jaxpr.debug_info, "arg_names", None) or ())
        return [""] * (len(paths) - len(names)) + [str(name or "") for name in names]
    parameters = list(inspect.signature(primitive.expand).parameters)

    def name(path: Any) -> str:
        first = parameters[path[0].idx] if path[0].idx < len(parameters) else f"args[{path[0].idx}]"
        return first + jax.tree_util.keystr(tuple(path[1:]))

    return [name(path) for path, _ in paths]


def rule_name(eqn: Any) -> str:
    """What the function with the custom rule is called."""
    return "custom_root" if is_root(eqn) else _of_function(eqn)[0]


def rule_source(eqn: Any) -> str:
    """File and line where the function with the custom rule is defined; of `custom_root`, which is
    JAX's own, where its user solves."""
    if is_root(eqn):
        lines = (_user_line(inner) for inner in equations(plain_jaxpr(eqn)))
        return next(filter(None, lines), "")
    return _of_function(eqn)[1]


def _user_line(eqn: Any) -> str:
    from jax._src import source_info_util

    frame = source_info_util.user_frame(eqn.source_info.traceback)
    if frame is None or "funprop/verify/" in frame.file_name.replace("\\", "/"):
        return ""  # traced anew here: the line is lost
    return f"{frame.file_name}:{frame.start_line}"


def equation_source(eqn: Any) -> str:
    """The line of the user's code that the equation comes from: `file.py:12`."""
    return _user_line(eqn).replace("\\", "/").rpartition("/")[2]


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


def is_root(eqn: Any) -> bool:
    """Whether the rule is that of `jax.lax.custom_root`."""
    name, place = _of_function(eqn)
    return name in ("_custom_root", "CustomRoot") and "/jax/" in place.replace("\\", "/")


def input_names(eqn: Any) -> list[str]:
    """What the rule's function calls its inputs; empty for constants that it closes over."""
    if eqn.primitive.name == "call_hi_primitive":
        return _hi_names(hi_primitive(eqn))
    jaxpr = open_jaxpr(plain_jaxpr(eqn))[0]
    n_consts, n = eqn.params.get("num_consts", 0), len(jaxpr.invars)
    names = list(getattr(jaxpr.debug_info, "arg_names", None) or ())
    for function in ("fwd_jaxpr_thunk", "jvp_jaxpr_fun"):
        info = getattr(eqn.params.get(function), "debug_info", None)
        names = names or list((info and info.arg_names) or ())
    if not n_consts and 0 < len(names) < n:
        n_consts = n - len(names)  # bound anew, a rule has its constants among its arguments
    if len(names) != n:
        names = [""] * n_consts + names
    if len(names) != n:  # arguments that are not differentiated have names too
        names = [f"args[{i - n_consts}]" for i in range(n)]
    told = ["" if i < n_consts else str(name or "") for i, name in enumerate(names)]
    return ["" if name.startswith(GIVEN) else name for name in told]


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
