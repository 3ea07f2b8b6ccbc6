"""The public API as text: every name that people may write, and how it is called.

`python -m tests.public_api` writes it to tests/public_api.txt. A line there that changes is a
change for users: CHANGELOG.md tells of it, and from 1.0 on the old way works for one more release.

It is read from the sources, so that it is the same in all versions of Python and of JAX.
"""

import ast
import inspect
from pathlib import Path
from typing import Any

import funprop
from funprop import estimators, testing

FILE = Path(__file__).with_suffix(".txt")
MODULES = {"": funprop, "callbacks.": funprop.callbacks, "estimators.": estimators}
MODULES["testing."] = testing


def public(module) -> list[str]:
    """What it lists; or, where it lists nothing, the functions that are its own."""
    if hasattr(module, "__all__"):
        return sorted(set(module.__all__) - {"callbacks"})
    own = [thing for thing in vars(module).values() if inspect.isfunction(thing)]
    return sorted(
        f.__name__ for f in own if f.__module__ == module.__name__ and f.__name__[0] != "_"
    )


def source(thing) -> Any:
    """What defines a function or class."""
    thing = inspect.unwrap(thing)
    tree = ast.parse(Path(inspect.getfile(thing)).read_text())
    (found,) = [
        node
        for node in tree.body
        if isinstance(node, ast.FunctionDef | ast.ClassDef)
        and node.name == thing.__name__
        and not any("overload" in ast.unparse(item) for item in node.decorator_list)
    ]
    return found


def lines(name: str, thing) -> list[str]:
    """A function's signature; or a class, its fields, and the signatures of its methods."""
    node = source(thing)
    if isinstance(node, ast.FunctionDef):
        return [signature(name, node)]
    out = [f"class {name}({', '.join(map(ast.unparse, node.bases))})"]
    ours = (base for base in thing.__mro__ if base.__module__.startswith("funprop"))
    for item in (item for base in ours for item in source(base).body):
        if isinstance(item, ast.AnnAssign) and ast.unparse(item.target)[0] != "_":
            out.append(f"{name}.{ast.unparse(item)}")
        elif isinstance(item, ast.FunctionDef) and (item.name[0] != "_" or item.name == "__init__"):
            out.append(signature(f"{name}.{item.name}", item))
    return list(dict.fromkeys(out))


def signature(name: str, node: ast.FunctionDef) -> str:
    returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    kinds = [ast.unparse(item) for item in node.decorator_list]
    kind = "".join(f"@{item} " for item in kinds if item in ("property", "classmethod"))
    return f"{kind}{name}({ast.unparse(node.args)}){returns}"


def printed() -> str:
    out = []
    for prefix, module in MODULES.items():
        for name in public(module):
            out += lines(prefix + name, getattr(module, name))
    return "\n".join(out) + "\n"


if __name__ == "__main__":
    FILE.write_text(printed())
