"""What does `funprop.verify` say of the third corpus, written without sight of it?

Run `python -m tests.benchmarks.verify_third`; `--only NAME` for one operation, `--rows FILE` keeps
every row as JSON, a line each. One process; a case's seconds hold all compilation.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np

import funprop as fp
from tests.benchmarks.corpus.third import CASES, Case, function

SEEDS = (0, 1, 2)


def judged(case: Case, wrong: str, seed: int) -> dict[str, Any]:
    """One row: a rule, right or wrong, on inputs of one seed."""
    args = case.inputs(np.random.default_rng(seed))
    how = {} if case.intended is None else {"intended": case.intended}
    row: dict[str, Any] = {"operation": case.name, "wrong": wrong, "seed": seed}
    start = time.perf_counter()
    try:
        report = fp.verify(function(case, wrong), *args, **how)
        row["ok"] = report.ok
        row["findings"] = [[f.path, f.story, f.problem] for f in report.findings]
    except Exception as error:  # a crash is a result too
        row["refused"] = f"{type(error).__name__}: {error}".splitlines()[0]
    return row | {"seconds": round(time.perf_counter() - start, 2)}


def rows_of(case: Case) -> list[dict[str, Any]]:
    """The right rule on three inputs, and each wrong one on the first."""
    rows = [judged(case, "", seed) for seed in SEEDS]
    for wrong in case.wrong:
        row = judged(case, wrong.name, 0)
        rows.append(row | {"leaves": sorted(wrong.leaves), "kind": wrong.kind})
    return rows


def share(part: list[Any], whole: list[Any]) -> str:
    return f"{len(part)} of {len(whole)} ({100 * len(part) / max(len(whole), 1):.1f}%)"


def leaves_of(row: dict[str, Any]) -> list[str]:
    return sorted({path for path, _, _ in row.get("findings", [])})


def report(rows: list[dict[str, Any]]) -> None:
    wrong = [r for r in rows if r["wrong"]]
    right = [r for r in rows if not r["wrong"]]
    caught = [r for r in wrong if not r.get("ok", True)]
    told = [r for r in caught if all(story for _, story, _ in r["findings"])]
    print("caught", share(caught, wrong))
    print("right leaves", share([r for r in caught if leaves_of(r) == r["leaves"]], wrong))
    print("story told", share(told, wrong))
    print("false alarms", share([r for r in right if not r.get("ok", True)], right))
    print("refused", share([r for r in rows if "refused" in r], rows))
    seconds = [r["seconds"] for r in rows]
    print(f"seconds: median {np.median(seconds):.2f}, most {max(seconds):.2f}\n")
    for r in rows:
        what = []
        if "refused" in r:
            what.append(f"refused: {r['refused']}")
        elif not r["wrong"] and not r["ok"]:
            what.append(f"false alarm, seed {r['seed']}: {r['findings']}")
        elif r["wrong"] and r["ok"]:
            what.append("not caught")
        elif r["wrong"] and leaves_of(r) != r["leaves"]:
            what.append(f"blamed {leaves_of(r)} for {r['leaves']}")
        if what:
            print(f"  {r['operation']}: {r['wrong'] or 'right'}: {'; '.join(what)}")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", default="")
    parser.add_argument("--rows", default="")
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for case in CASES:
        if options.only in case.name:
            found = rows_of(case)
            rows += found
            if options.rows:
                with Path(options.rows).open("a") as file:
                    file.writelines(json.dumps(row) + "\n" for row in found)
    report(rows)


if __name__ == "__main__":
    main()
