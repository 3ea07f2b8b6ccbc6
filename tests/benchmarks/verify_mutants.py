"""How well are wrong gradients found, and right ones left in peace?

Run `python -m tests.benchmarks.verify_mutants`; `--only NAME` for one operation, `--quick` without
the other checkers. Prints, for `funprop.verify`, `jax.test_util.check_grads`, a plain comparison of
two gradients and (where torch is installed) `torch.autograd.gradcheck`, on the same cases: the
share of wrong rules caught, of right rules called wrong, and of right culprits and stories.
"""

from __future__ import annotations

import argparse
import collections
import concurrent.futures
import functools
import importlib.util
import json
import multiprocessing
import os
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import funprop as fp
from tests.benchmarks.corpus import OPERATIONS, Operation, as_rule

DTYPES = {"float64": jnp.float64, "float32": jnp.float32, "bfloat16": jnp.bfloat16}
SCALES = (1e-4, 1e4)


def cast(args: Any, dtype: Any) -> Any:
    def one(leaf: Any) -> Any:
        is_float = jnp.issubdtype(leaf.dtype, jnp.floating)
        return jnp.asarray(np.asarray(leaf), dtype) if is_float else leaf

    with jax.enable_x64(dtype == jnp.float64):
        return jax.tree.map(one, args)


def share(part: list[Any], whole: list[Any]) -> str:
    return f"{100 * len(part) / max(len(whole), 1):.1f}%"


def points(operation: Operation) -> dict[str, Any]:
    """The inputs at which the right rule is tried: three dtypes, bad scales, kinks."""
    given = operation.inputs(np.random.default_rng(0))
    found = {name: cast(given, dtype) for name, dtype in DTYPES.items()}
    for scale in SCALES:
        for dtype in ("float32", "bfloat16"):
            scaled = list(given)
            for place in operation.scalable:
                scaled[place] = jax.tree.map(lambda leaf, s=scale: s * leaf, given[place])
            found[f"{dtype}, scaled by {scale:g}"] = cast(tuple(scaled), DTYPES[dtype])
    if operation.kinks is not None:
        kinks = operation.kinks(np.random.default_rng(1))
        found |= {f"{name}, at kinks": cast(kinks, dtype) for name, dtype in DTYPES.items()}
    return found


# ---------------------------------------------------------------------------------- the checkers


def by_verify(rule: Any, forward: Any, args: Any) -> Any:
    report = fp.verify(rule, *args)
    return not report.ok, report


def by_check_grads(rule: Any, forward: Any, args: Any, **tolerance: float) -> Any:
    from jax.test_util import check_grads

    floats, rebuild = split(args)
    try:
        check_grads(lambda *f: rule(*rebuild(f)), floats, 1, modes=("rev",), **tolerance)
    except AssertionError:
        return True, None
    return False, None


def by_allclose(rule: Any, forward: Any, args: Any) -> Any:
    floats, rebuild = split(args)
    y = jax.eval_shape(forward, *args)
    rng = np.random.default_rng(0)
    dy = jnp.asarray(rng.standard_normal(y.shape), y.dtype)
    pair = [jax.vjp(lambda *f, r=r: r(*rebuild(f)), *floats)[1](dy) for r in (rule, forward)]
    same = [
        np.allclose(np.asarray(a, np.float64), np.asarray(b, np.float64))
        for a, b in zip(*map(jax.tree.leaves, pair), strict=True)
    ]
    return not all(same), None


def split(args: Any) -> tuple[list[Any], Any]:
    leaves, tree = jax.tree.flatten(args)
    places = [i for i, leaf in enumerate(leaves) if jnp.issubdtype(leaf.dtype, jnp.floating)]

    def rebuild(floats: Any) -> Any:
        filled = list(leaves)
        for i, value in zip(places, floats, strict=True):
            filled[i] = value
        return jax.tree.unflatten(tree, filled)

    return [leaves[i] for i in places], rebuild


def by_gradcheck(rule: Any, forward: Any, args: Any) -> Any:
    """`torch.autograd.gradcheck` of the same functions, through NumPy, in the float64 it needs."""
    import torch  # type: ignore[import-not-found]  # where it is installed

    floats, rebuild = split(cast(args, jnp.float64))

    class Ported(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *tensors: Any) -> Any:
            ctx.save_for_backward(*tensors)
            with jax.enable_x64(True):
                y = rule(*rebuild([jnp.asarray(t.detach().numpy()) for t in tensors]))
                return torch.from_numpy(np.array(y))

        @staticmethod
        def backward(ctx: Any, *dys: Any) -> Any:
            with jax.enable_x64(True):
                inputs = [jnp.asarray(t.detach().numpy()) for t in ctx.saved_tensors]
                _, pullback = jax.vjp(lambda *f: rule(*rebuild(f)), *inputs)
                grads = pullback(jnp.asarray(dys[0].detach().numpy()))
            return tuple(torch.from_numpy(np.array(g)) for g in grads)

    tensors = [torch.from_numpy(np.array(f)).requires_grad_() for f in floats]
    return not torch.autograd.gradcheck(Ported.apply, tensors, raise_exception=False), None


CHECKERS = {
    "funprop.verify": by_verify,
    "check_grads": by_check_grads,
    "check_grads, 1e-3": functools.partial(by_check_grads, atol=1e-3, rtol=1e-3),
    "allclose": by_allclose,
}
if importlib.util.find_spec("torch"):
    CHECKERS["torch gradcheck"] = by_gradcheck


# ------------------------------------------------------------------------------------- the table


def measure(place: int, checkers: tuple[str, ...]) -> list[dict[str, Any]]:
    """One row for each right and each wrong rule of an operation, and each checker."""
    operation = OPERATIONS[place]
    rows = []
    rules = [("", operation.backward, None)] + [(m.name, m.backward, m) for m in operation.mutants]
    for name, backward, mutant in rules:
        rule = as_rule(operation.forward, backward)
        tried = points(operation)
        for point, args in tried.items() if mutant is None else [("float32", tried["float32"])]:
            for checker in checkers:
                if checker == "torch gradcheck" and mutant is None and point != "float64":
                    continue  # it takes no other precision
                start = time.perf_counter()
                with jax.enable_x64(point.startswith("float64")):
                    try:
                        wrong, report = CHECKERS[checker](rule, operation.forward, args)
                        note = ""
                    except (ValueError, TypeError) as error:
                        wrong, report, note = None, None, str(error).splitlines()[0]
                row = {
                    "operation": operation.name,
                    "mutant": name,
                    "point": point,
                    "checker": checker,
                    "wrong": wrong,
                    "note": note,
                    "seconds": time.perf_counter() - start,
                }
                if report is not None:
                    row["paths"] = sorted({f.path for f in report.findings})
                    row["stories"] = sorted({f.story or "unknown" for f in report.findings})
                    row["text"] = str(report)
                if mutant is not None:
                    row["leaves"], row["expected"] = sorted(mutant.leaves), mutant.stories
                rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", default="")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--verbose", action="store_true")
    parser.add_argument("--rows", default="", help="where to keep every row, as JSON")
    options = parser.parse_args()
    checkers = ("funprop.verify",) if options.quick else tuple(CHECKERS)
    places = [i for i, o in enumerate(OPERATIONS) if options.only in o.name]
    work = functools.partial(measure, checkers=checkers)
    with concurrent.futures.ProcessPoolExecutor(
        os.cpu_count(), multiprocessing.get_context("spawn")
    ) as pool:
        rows = [row for found in pool.map(work, places) for row in found]
    if options.rows:
        Path(options.rows).write_text(json.dumps(rows))
    report(rows, checkers, options.verbose)


def report(rows: list[dict[str, Any]], checkers: tuple[str, ...], verbose: bool) -> None:
    mutants = {(r["operation"], r["mutant"]) for r in rows if r["mutant"]}
    right = {(r["operation"], r["point"]) for r in rows if not r["mutant"]}
    operations = {r["operation"] for r in rows}
    print(f"{len(operations)} operations, {len(mutants)} wrong rules, {len(right)} right cases\n")
    print(f"{'':20}  caught  false alarms  right leaf  right story  seconds a case")
    for checker in checkers:
        own = [r for r in rows if r["checker"] == checker]
        wrong = [r for r in own if r["mutant"]]
        good = [r for r in own if not r["mutant"] and r["wrong"] is not None]
        caught = [r for r in wrong if r["wrong"]]
        alarms = [r for r in good if r["wrong"]]
        line = f"{checker:20}  {share(caught, wrong):>6}  {share(alarms, good):>12}"
        if checker == "funprop.verify":
            leaf = [r for r in wrong if r.get("paths") == r["leaves"]]
            story = [r for r in wrong if r["wrong"] and set(r["stories"]) <= set(r["expected"])]
            line += f"  {share(leaf, wrong):>10}  {share(story, wrong):>11}"
        else:
            line += f"  {'-':>10}  {'-':>11}"
        print(f"{line}  {np.median([r['seconds'] for r in own]):14.2f}")
    kinds = collections.Counter(s for r in rows if r["mutant"] for s in r.get("stories", ()))
    print("\nstories told:", ", ".join(f"{k} {n}" for k, n in kinds.most_common()))
    print("\nnot as it should be:")
    for r in (r for r in rows if r["checker"] == "funprop.verify"):
        what = []
        if not r["mutant"] and r["wrong"]:
            what.append(f"false alarm at {r['point']}")
        if not r["mutant"] and r["wrong"] is None:
            what.append(f"refused at {r['point']}: {r['note']}")
        if r["mutant"] and not r["wrong"]:
            what.append(f"not caught {r['note']}")
        elif r["mutant"]:
            if r["paths"] != r["leaves"]:
                what.append(f"blamed {r['paths']} for {r['leaves']}")
            if not set(r["stories"]) <= set(r["expected"]):
                what.append(f"told {r['stories']} for {list(r['expected'])}")
        if what:
            print(f"  {r['operation']}: {r['mutant'] or 'right'}: {'; '.join(what)}")
            if verbose:
                print(r.get("text", ""))


if __name__ == "__main__":
    main()
