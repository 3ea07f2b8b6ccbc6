"""What a custom rule is called, where it stands, and what its inputs are called: as JAX notes them
of the function that has the rule, seen through functions that only wrap another one."""

from __future__ import annotations

import contextlib
import inspect
import itertools
from collections.abc import Iterator
from typing import Any

import jax

from funprop.verify.truth.internals import (
    equations,
    hi_primitive,
    open_jaxpr,
    plain_jaxpr,
    user_frames,
)

GIVEN = "given_"  # begins the names of inputs that a rule does not differentiate

# Functions that people never wrote: of `lax.custom_root`, `jax.custom_gradient`, and Equinox's
# `filter_custom_vjp` and `filter_custom_jvp`.
ROOTS = ("_custom_root", "CustomRoot")
WRAPPERS = (*ROOTS, "wrapped_fun", "fn_wrapped", "fn_wrapper")
LIBRARIES = ("/jax/", "/equinox/")


def _of_function(eqn: Any) -> tuple[str, str]:
    """Name and place of the function with the custom rule."""
    if eqn.primitive.name == "custom_linear_solve":
        return eqn.primitive.name, _noted(eqn.params["jaxprs"].solve)[1]
    if eqn.primitive.name != "call_hi_primitive":
        return _noted(plain_jaxpr(eqn))
    primitive = hi_primitive(eqn)
    if hasattr(primitive, "traced"):  # a function with a rule, in its new form
        return _noted(primitive.traced.jaxpr)
    kind = type(primitive)
    with contextlib.suppress(OSError, TypeError):  # made where there is no source
        return kind.__name__, f"{inspect.getsourcefile(kind)}:{inspect.getsourcelines(kind)[1]}"
    return kind.__name__, ""


def _noted(jaxpr: Any) -> tuple[str, str]:
    """Name and place of the function that was traced."""
    info = getattr(open_jaxpr(jaxpr)[0], "debug_info", None)
    name, _, place = ((info and info.func_src_info) or "").partition(" at ")
    return name or "rule", place


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
    if is_root(eqn):
        return "custom_root"
    for frame in _of_people(eqn) if _wraps(eqn) else ():
        return frame.function_name.rpartition(".")[2]
    return _of_function(eqn)[0]


def rule_source(eqn: Any) -> str:
    """File and line where the function with the custom rule is defined; where that is a library's
    that wraps another's, the first line in the other; where people gave a rule to a function of
    JAX, that rule's."""
    place = _of_function(eqn)[1]
    for frame in _of_people(eqn) if _wraps(eqn) else ():
        return f"{frame.file_name}:{frame.start_line}"
    code = getattr(getattr(eqn.params.get("bwd"), "f", None), "__code__", None)
    if code is None or not _in_libraries(place) or _in_libraries(code.co_filename):
        return place
    return f"{code.co_filename}:{code.co_firstlineno}"


def _wraps(eqn: Any) -> bool:
    name, place = _of_function(eqn)
    return name in WRAPPERS and _in_libraries(place)


def _in_libraries(place: str) -> bool:
    place = place.replace("\\", "/")
    return "funprop" not in place.rpartition("site-packages")[2] and any(
        library in place for library in LIBRARIES
    )


def _of_people(eqn: Any) -> Iterator[Any]:
    """Where the function's own steps come from, but for libraries that wrap it."""
    for inner in equations(plain_jaxpr(eqn)):
        yield from (f for f in user_frames(inner) if not _in_libraries(f.file_name))


def is_root(eqn: Any) -> bool:
    """Whether the rule is that of `jax.lax.custom_root`."""
    name, place = _of_function(eqn)
    return name in ROOTS and "/jax/" in place.replace("\\", "/")


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
    told = ["" if name.startswith(GIVEN) else name for name in told]
    return list(_people_s(told)) if _wraps(eqn) and not is_root(eqn) else told


def _people_s(names: list[str]) -> Iterator[str]:
    """The names in a function that wraps another, as far as people know them: else their number."""
    numbered = (f"input {n}" for n in itertools.count())
    for name in names:
        if name.startswith("dynamic["):
            yield next(numbered)
        else:
            yield name.removeprefix("diff_array_")
