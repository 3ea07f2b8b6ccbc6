"""Judge the custom rules that other people wrote: JAX's own, optax's, and those of layers.

Calls the public functions of several packages, judges every `custom_vjp` and `custom_jvp` rule that
they reach, and prints one row for each rule. Run with

    pip install -e . flax equinox dm-haiku
    python -m tests.benchmarks.rules_of_others

For the packages of `tests/benchmarks/others/packages.py` see there. A package that is not installed
is left out, and said to be. Names without a call are listed, and so are rules that stand in the
packages' sources and that no call reached.
"""

from __future__ import annotations

import argparse
import ast
import collections
import importlib
import importlib.metadata
import importlib.util
import re
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from funprop.verify import verify_rules
from tests.benchmarks.harness import header
from tests.benchmarks.others import packages
from tests.benchmarks.others.call import Call, Table
from tests.benchmarks.others.limit import TooLong, limit

LIMIT = 60  # seconds for one call
FILES = [
    "jax_nn",
    "jax_numpy",
    "jax_special",
    "optax_losses",
    "flax_layers",
    "equinox_layers",
    "haiku_layers",
    *packages.FILES,
]
PACKAGES = {
    "jax": "jax",
    "optax": "optax",
    "flax": "flax",
    "equinox": "equinox",
    "haiku": "dm-haiku",
    **packages.DISTRIBUTIONS,
}
# What verify_rules notes of each rule that it found.
NOTE = re.compile(r"^(.+) is at (.+:\d+); (\d+) calls?(?:, [^;]+)?; (\d+) judged$")
REFUSED = re.compile(r"^(.+) \((.+:\d+)\) was not judged: (.*)", re.DOTALL)


class Rule:
    """What was seen of one rule."""

    def __init__(self, name: str):
        self.name = name
        self.reached: dict[str, None] = {}
        self.judged = 0
        self.right = 0
        self.problems: collections.Counter[str] = collections.Counter()
        self.where: dict[str, str] = {}


class Failure(NamedTuple):
    """A call that could not be judged."""

    call: str
    sentence: str


def all_tables(files: list[str]) -> Iterator[Table]:
    """The tables of every package that is installed."""
    for file in files:
        try:
            module = importlib.import_module(f"tests.benchmarks.others.{file}")
        except ModuleNotFoundError as error:
            print(f"{file}: {error.name} is not installed")
            continue
        yield from module.tables()


def judge(table: Table, name: str, call: Call, number: int, rules: dict[str, Rule]) -> str:
    """Judge the rules that one call reaches; what went wrong with it, if anything."""
    public: Any = None if "." in name else getattr(table.module, name)

    def function(*args: Any) -> Any:
        if call.function is None:
            return public(*args, **call.options)
        return call.function(public, *args)

    args = jax.tree.map(_as_wide_as_can_be, call.args)
    try:
        jax.eval_shape(function, *args)
    except Exception as error:  # a wrong row of the tables, or a package that has changed
        return f"the call fails: {_first(error)}"
    try:
        with limit(LIMIT):
            report = verify_rules(function, *args)
    except TooLong as error:
        return f"verify_rules takes {error}"
    except Exception as error:  # a defect of ours, which must be seen
        return f"verify_rules fails: {type(error).__name__}: {_first(error)}"
    where = f"{table.name}.{name}"
    found: dict[str, Rule] = {}
    for note in report.notes:
        if refused := REFUSED.match(note):
            rule = rules.setdefault(_short(refused[2]), Rule(refused[1]))
            rule.problems[f"not judged: {_plain(refused[3])[:150]}"] += 1
            rule.where.setdefault(f"not judged: {_plain(refused[3])[:150]}", f"{where} [{number}]")
        if match := NOTE.match(note):
            rule = rules.setdefault(_short(match[2]), Rule(match[1]))
            rule.reached[where] = None
            rule.judged += int(match[4])
            found[match[1]] = rule
    for check in report.checks:
        rule = found[check.layer]
        if not check.problem:
            rule.right += 1
            continue
        sentence = f"{check.path.rpartition('/')[2]}: {check.problem}"
        kind = re.sub(r"-?\d[\d.e+-]*|\[[^]]*\]", "#", sentence)
        rule.problems[kind] += 1
        rule.where.setdefault(kind, f"{where} [{number}]: {sentence}")
    return ""


def _as_wide_as_can_be(leaf: Any) -> Any:
    """Float64 where it is enabled; the tables hold float32."""
    wide = jax.config.read("jax_enable_x64") and getattr(leaf, "dtype", None) == np.float32
    return leaf.astype(np.float64) if wide else leaf


def _short(source: str) -> str:
    """The path below the folder that packages are installed in."""
    return re.sub(r"^.*/(?:site|dist)-packages/", "", source)


def _plain(text: str) -> str:
    return " ".join(text.split())


def _first(error: Exception) -> str:
    return (_plain(str(error)) or type(error).__name__)[:200]


# ------------------------------------------------------------------------- rules in the sources


def defined(package: str) -> Iterator[str]:
    """File and line of every function that stands under a decorator which makes it a rule."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        return
    root = Path(spec.origin).parent
    for path in sorted(root.rglob("*.py")):
        short = path.relative_to(root.parent)
        if {"test_util", "tests", "_test"} & set(path.parts):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            decorators = getattr(node, "decorator_list", [])
            if any(_makes_rule(d) for d in decorators):
                yield f"{short}:{min(d.lineno for d in decorators)}"


def _makes_rule(decorator: ast.expr) -> bool:
    names = {getattr(n, "attr", getattr(n, "id", "")) for n in ast.walk(decorator)}
    return bool(names & {"custom_vjp", "custom_jvp", "filter_custom_vjp", "filter_custom_jvp"})


# ------------------------------------------------------------------------------------- the print


def main() -> None:
    """Run every table and print what was found."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", default="", help="packages whose name holds this")
    parser.add_argument("--files", nargs="*", help="tables of tests/benchmarks/others")
    parser.add_argument("--x64", action="store_true", help="in float64")
    parser.add_argument("--times", action="store_true", help="print the slowest calls")
    options = parser.parse_args()
    jax.config.update("jax_enable_x64", options.x64)
    warnings.filterwarnings("ignore")
    header()
    for package, distribution in PACKAGES.items():
        if importlib.util.find_spec(package):
            print(package, importlib.metadata.version(distribution))
    rules: dict[str, Rule] = {}
    failures: list[Failure] = []
    seconds: list[tuple[float, str]] = []
    missing: dict[str, list[str]] = {}
    began = time.perf_counter()
    for table in all_tables(options.files or FILES):
        if options.only not in table.name:
            continue
        listed = {*table.calls, *table.excused}
        missing[table.name] = [name for name in table.public if name not in listed]
        start = time.perf_counter()
        for name, calls in table.calls.items():
            for number, call in enumerate(calls):
                before = time.perf_counter()
                if sentence := judge(table, name, call, number, rules):
                    failures.append(Failure(f"{table.name}.{name} [{number}]", sentence))
                seconds.append((time.perf_counter() - before, f"{table.name}.{name} [{number}]"))
        n = sum(map(len, table.calls.values()))
        print(
            f"{table.name}: {n} calls of {len(table.calls)} names, {len(table.excused)} excused,"
            f" {time.perf_counter() - start:.0f} s"
        )
    report(rules, failures, missing)
    if options.times:
        for took, call in sorted(seconds, reverse=True):
            print(f"{took:6.1f} s  {call}")
    print(f"\n{time.perf_counter() - began:.0f} s in all")


def report(rules: dict[str, Rule], failures: list[Failure], missing: dict[str, list[str]]) -> None:
    """The table of rules, and what was not looked at."""
    wrong = {source for source, rule in rules.items() if rule.problems}
    print(f"\n{len(rules)} rules reached, {len(wrong)} with something to look into\n")
    for source, rule in sorted(rules.items()):
        reached = list(rule.reached)
        more = f" and {len(reached) - 3} more" if len(reached) > 3 else ""
        verdict = "ok" if source not in wrong else f"{sum(rule.problems.values())} problems"
        print(f"{rule.name}  {source}  {rule.judged} judged  {verdict}")
        print(f"    by {', '.join(reached[:3])}{more}")
        for kind, count in rule.problems.most_common():
            print(f"    {count}x {rule.where[kind]}")
            if rule.where[kind].endswith("]"):
                print(f"       {kind}")
    for failure in failures:
        print(f"\n{failure.call}: {failure.sentence}")
    for name, names in missing.items():
        if names:
            print(f"\n{name} has no call for: {' '.join(names)}")
    print("\nin the sources, reached by no call:")
    for package in PACKAGES:
        for source in defined(package):
            if source not in rules:
                print(f"  {source}")


if __name__ == "__main__":
    main()
