"""Some of the copies that `repeat` made, apart from the others: `blocks[-1]`, `blocks[:-2]`."""

from __future__ import annotations

import itertools
import re
from typing import TYPE_CHECKING, Any

import jax

from funprop.combinators import serial
from funprop.layer import Layer, check_layer, named
from funprop.names import below, label, params_of
from funprop.params.selection import Pattern, fits, require_name, several

if TYPE_CHECKING:
    from funprop.typing import PyTree

COPIES = re.compile(r"(?P<path>[^\[\]]+)\[(?P<which>[-\d:]+)\](?P<rest>/.*)?")


def apart(
    model: Layer, *patterns: Pattern | None, params: PyTree = None
) -> tuple[Layer, PyTree, *tuple[Any, ...]]:
    """The model, its params, and patterns without brackets that mean the same in it.

    Where a pattern means some copies only, the `repeat` that made them becomes a `serial` of
    repeats, one for each run of copies: `blocks/copies_0_to_3`, `blocks/copy_4`.

    Raises:
      ValueError: brackets in which there is no index or slice; nothing is repeated at that path;
        or there is no such copy.
    """
    check_layer("model", model)
    chosen: dict[str, list[tuple[int, range, str]]] = {}
    plain: list[list[str]] = [[] for _ in patterns]
    for who, pattern in enumerate(patterns):
        for each in several(pattern) if pattern is not None else ():
            if "[" not in each:
                plain[who].append(each)
                continue
            found = COPIES.fullmatch(each)
            if found is None:
                raise ValueError(f"a pattern must mean copies by an index or a slice, got {each!r}")
            for path, n in _repeated(model, found["path"], each).items():
                which = _which(found["which"], n, each)
                chosen.setdefault(path, []).append((who, which, found["rest"] or ""))
    for path, several_of in chosen.items():
        n = _repeated(model, path, path)[path]
        cuts = {0, n} | {end for _, which, _ in several_of for end in (which[0], which[-1] + 1)}
        runs = [range(a, b) for a, b in itertools.pairwise(sorted(cuts))]
        model, params = _cut(model, path, runs, params)
        if len(runs) > 1:
            plain = [[_below_copies(path, each) for each in those] for those in plain]
        for who, which, rest in several_of:
            plain[who] += [
                f"{path}/{_name(run)}{rest}" if len(runs) > 1 else f"{path}{rest}"
                for run in runs
                if run[0] in which
            ]
    made = (
        tuple(each) if given is not None else None
        for given, each in zip(patterns, plain, strict=True)
    )
    return model, params, *made


def _below_copies(path: str, pattern: str) -> str:
    """What means a part of every copy, where the copies are in runs."""
    return re.sub(f"^{re.escape(path)}/", f"{path}/cop*/", pattern)


def _repeated(node: Layer, wanted: str, pattern: str) -> dict[str, int]:
    """The number of copies of each `repeat` that a path means, the outermost, by its own path."""
    names: dict[str, bool] = {}
    found: dict[str, int] = {}

    def look(node: Layer, path: str) -> None:
        names[path] = node.frozen
        if path and node.copies and fits(path, wanted):
            found[path] = node.copies
            return
        for child, name in zip(node.children, below(path, node), strict=True):
            look(child, name)

    look(node, "")
    if not found:
        require_name(wanted, names)
        if any(frozen and fits(path, wanted) for path, frozen in names.items()):
            raise ValueError(f"copies must be of what is not frozen already, got {pattern!r}")
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
    children = node.children
    try:
        parts = tuple(named(_name(run), node.rebuild(*children, copies=len(run))) for run in runs)
    except TypeError:
        raise ValueError(
            f"copies must be chosen before {node.name} is rewritten, freeze within cast"
        ) from None
    whole = named(label(node), serial(*parts)) if len(parts) > 1 else node
    if params is None or len(parts) == 1:
        return whole, params
    cut = [jax.tree.map(lambda leaf, r=run: leaf[r[0] : r[-1] + 1], params) for run in runs]
    return whole, params_of(parts, cut)
