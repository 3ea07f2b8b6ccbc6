"""Loops and branches, each with its body as a function inside."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from funprop.deriving.flat import Operation, Value
from funprop.deriving.text import Text, tuple_of

if TYPE_CHECKING:
    from funprop.deriving.source import Source


def _inner(source: Source, jaxpr: Any, outer: list[Value], names: list[str]) -> list[Value]:
    """Values for what a body takes: those of outside as they are, then those with a name."""
    body = jaxpr.jaxpr if hasattr(jaxpr, "jaxpr") else jaxpr
    takes = list(outer)
    for variable, name in zip(body.invars[len(outer) :], names, strict=True):
        value = Value(tuple(variable.aval.shape), variable.aval.dtype)
        source.texts[value] = Text(name)
        takes.append(value)
    return takes


def _fixed(source: Source, values: list[Value]) -> None:
    """What a body refers to from outside must be a name."""
    for value in values:
        if value.number is None and not source.whole(value).code.isidentifier():
            code = source.code(value)
            source.line([value], code, None)


def _kind(operation: Operation, what: str) -> str:
    place = operation.place
    return f"{place.stage}_{(place.path or place.layer.name)}" if place else what


def scan(source: Source, operation: Operation) -> None:
    p = operation.params
    n_consts, n_carry = p["num_consts"], p["num_carry"]
    consts = operation.takes[:n_consts]
    carry = operation.takes[n_consts : n_consts + n_carry]
    xs = operation.takes[n_consts + n_carry :]
    source.heading(operation.place)
    _fixed(source, consts)
    name = source.names.new(_kind(operation, "turn"))
    jaxpr = p["jaxpr"]
    given = [source.names.new(value.hint or "carry") for value in carry]
    each = [source.names.new(f"{_plain(source, value)}_i") for value in xs]
    source.write("")
    source.write(f"def {name}(carry, xs):")
    source.indent += 4
    place, source.place = source.place, None
    if given:
        source.write(f"{', '.join(given)}{',' if len(given) == 1 else ''} = carry")
    if each:
        source.write(f"{', '.join(each)}{',' if len(each) == 1 else ''} = xs")
    gives = source.function(jaxpr, _inner(source, jaxpr, consts, [*given, *each]))
    out = [source.code(value) for value in gives]
    source.write(f"return {tuple_of(out[:n_carry])}, {tuple_of(out[n_carry:])}")
    source.indent -= 4
    source.place = place
    source.write("")
    more = [f"length={p['length']}"]
    if p["reverse"]:
        more.append("reverse=True")
    starts = tuple_of([source.code(value) for value in carry])
    stacked = tuple_of([source.code(value) for value in xs])
    for value, inside in zip(operation.gives, gives, strict=True):
        value.hint = value.hint or inside.hint
    targets = [source.named(value) for value in operation.gives]
    left = f"{_targets(targets[:n_carry])}, {_targets(targets[n_carry:])}"
    source.write(f"{left} = lax.scan({name}, {starts}, {stacked}, {', '.join(more)})")


def _targets(names: list[str]) -> str:
    return tuple_of(names) if any(name != "_" for name in names) else "_"


def _plain(source: Source, value: Value) -> str:
    code = source.code(value)
    return code if code.isidentifier() and not code.startswith("t_") and code != "t" else "x"


def while_loop(source: Source, operation: Operation) -> None:
    p = operation.params
    n_cond, n_body = p["cond_nconsts"], p["body_nconsts"]
    of_cond, of_body = operation.takes[:n_cond], operation.takes[n_cond : n_cond + n_body]
    carry = operation.takes[n_cond + n_body :]
    source.heading(operation.place)
    _fixed(source, [*of_cond, *of_body])
    names = []
    for kind, jaxpr, consts in (
        ("more", p["cond_jaxpr"], of_cond),
        ("turn", p["body_jaxpr"], of_body),
    ):
        names.append(source.names.new(f"{_kind(operation, 'loop')}_{kind}"))
        given = [source.names.new("carry") for _ in carry]
        source.write("")
        source.write(f"def {names[-1]}(carry):")
        source.indent += 4
        source.write(f"{', '.join(given)}{',' if len(given) == 1 else ''} = carry")
        gives = source.function(jaxpr, _inner(source, jaxpr, consts, given))
        out = [source.code(value) for value in gives]
        source.write(f"return {out[0] if kind == 'more' else tuple_of(out)}")
        source.indent -= 4
    source.write("")
    starts = tuple_of([source.code(value) for value in carry])
    targets = tuple_of([source.named(value) for value in operation.gives])
    source.write(f"{targets} = lax.while_loop({names[0]}, {names[1]}, {starts})")


def cond(source: Source, operation: Operation) -> None:
    which, *takes = operation.takes
    source.heading(operation.place)
    _fixed(source, takes)
    names = []
    for jaxpr in operation.params["branches"]:
        names.append(source.names.new(f"{_kind(operation, 'branch')}_case"))
        source.write("")
        source.write(f"def {names[-1]}():")
        source.indent += 4
        gives = source.function(jaxpr, list(takes))
        source.write(f"return {tuple_of([source.code(value) for value in gives])}")
        source.indent -= 4
    source.write("")
    targets = tuple_of([source.named(value) for value in operation.gives])
    source.write(f"{targets} = lax.switch({source.code(which)}, [{', '.join(names)}])")


LOOPS = {"scan": scan, "while": while_loop, "cond": cond}
