"""Some of the copies that `repeat` made, apart from the others: `blocks[-1]`, `blocks[:-2]`."""

from __future__ import annotations

import itertools
import re
from typing import TYPE_CHECKING, Any

import jax

from funprop.combinators import serial
from funprop.layer import Layer, check_layer, named
from funprop.names import below, label, params_of
from funprop.params.selection import Pattern, require_name, several

if TYPE_CHECKING:
    from jaxtyping import PyTree

COPIES = re.compile(r"(?P<path>[^\[\]]+)\[(?P<which>[-\d:]+)\](?P<rest>/.*)?")


def apart(model: Layer, pattern: Pattern, params: PyTree = None) -> tuple[Layer, PyTree, Pattern]:
    """The model, its params, and a pattern without brackets that means the same in it.

    Where a pattern means some copies only, the `repeat` that made them becomes a `serial` of
    repeats, one for each run of copies: `blocks/copies_0_to_3`, `blocks/copy_4`.

    Raises:
      ValueError: brackets in which there is no index or slice; nothing is repeated at that path;
        or there is no such copy.
    """
    check_layer("model", model)
    chosen: dict[str, list[tuple[range, str]]] = {}
    plain = []
    for each in several(pattern):
        if "[" not in each:
            plain.append(each)
            continue
        found = COPIES.fullmatch(each)
        if found is None:
            raise ValueError(f"a pattern must mean copies by an index or a slice, got {each!r}")
        n = _repeated(model, found["path"], each).copies or 0
        which = _which(found["which"], n, each)
        chosen.setdefault(found["path"], []).append((which, found["rest"] or ""))
    for path, several_of in chosen.items():
        n = _repeated(model, path, path).copies or 0
        cuts = {0, n} | {end for which, _ in several_of for end in (which[0], which[-1] + 1)}
        runs = [range(a, b) for a, b in itertools.pairwise(sorted(cuts))]
        model, params = _cut(model, path, runs, params)
        plain = [re.sub(f"^{re.escape(path)}/", f"{path}/cop*/", each) for each in plain]
        plain += [
            f"{path}/{_name(run)}{rest}" if len(runs) > 1 else f"{path}{rest}"
            for which, rest in several_of
            for run in runs
            if run[0] in which
        ]
    return model, params, tuple(plain)


def _repeated(node: Layer, wanted: str, pattern: str) -> Layer:
    """The `repeat` at a path."""
    names: list[str] = []

    def look(node: Layer, path: str) -> Layer | None:
        names.append(path)
        if path == wanted and node.copies:
            return node
        each = zip(node.children, below(path, node), strict=True)
        return next((found for child, name in each if (found := look(child, name))), None)

    found = look(node, "")
    if found is None:
        require_name(wanted, names)
        raise ValueError(f"copies must be of what is repeated, got {pattern!r}")
    return found


def _which(text: str, n: int, pattern: str) -> range:
    numbers = [int(part) if part else None for part in text.split(":")]
    every = range(n)
    single = len(numbers) == 1 and numbers[0] is not None and -n <= numbers[0] < n
    which = every[numbers[0] :][:1] if single else every[slice(*numbers)] if ":" in text else ()
    if len(which) == 0 or (len(numbers) == 3 and numbers[2] not in (None, 1)):
        raise ValueError(f"a pattern must mean some of the {n} copies in a row, got {pattern!r}")
    return range(which[0], which[-1] + 1)


def _name(run: range) -> str:
    return f"copy_{run[0]}" if len(run) == 1 else f"copies_{run[0]}_to_{run[-1]}"


def _cut(node: Layer, wanted: str, runs: list[range], params: PyTree) -> tuple[Layer, PyTree]:
    """The model with the `repeat` at a path cut in runs of copies, and its params alike."""

    def look(node: Layer, path: str, params: Any) -> tuple[Layer, Any]:
        if path == wanted and node.copies:
            return _in_runs(node, runs, params)
        if not wanted.startswith(path):
            return node, params
        names = below(path, node)
        parts = [None] * len(names) if params is None else node.split(params)
        each = zip(node.children, names, parts, strict=True)
        children = [look(child, name, part) for child, name, part in each]
        if not children:
            return node, params
        new = node.rebuild(*(child for child, _ in children))
        return new, None if params is None else node.join(params, [p for _, p in children])

    return look(node, "", params)


def _in_runs(node: Layer, runs: list[range], params: PyTree) -> tuple[Layer, PyTree]:
    (child,) = node.children
    try:
        parts = tuple(named(_name(run), node.rebuild(child, copies=len(run))) for run in runs)
    except TypeError:
        raise ValueError(
            f"copies must be chosen before {node.name} is rewritten, freeze within cast"
        ) from None
    whole = named(label(node), serial(*parts)) if len(parts) > 1 else node
    if params is None or len(parts) == 1:
        return whole, params
    cut = [jax.tree.map(lambda leaf, r=run: leaf[r[0] : r[-1] + 1], params) for run in runs]
    return whole, params_of(parts, cut)
