"""funprop against other libraries: four works, each peer as its own documentation writes it, in a
process and an environment of its own.

    python -m tests.benchmarks.peers [--only PEER ...] [--work WORK ...] [--rounds 3] [--seeds 3]

Quality first: three seeds of every peer, not timed, by which all must have done the same work.
Then rounds, each peer in turn, timed, over as many epochs as a stable rate takes. Runs are added to
OUT/runs.jsonl, so a measurement can be made in parts, and no quality run is made twice; the tables,
OUT/peers.json and OUT/peers.png are of all that is there. Environments are made at pinned versions
under build/peers; `--python` gives one that is there.
"""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from tests.benchmarks.peers import judge, table
from tests.benchmarks.peers.data import SEEDS, WORKS, written
from tests.benchmarks.peers.environments import CACHE, python_of
from tests.benchmarks.peers.listed import PEERS
from tests.benchmarks.peers.process import run


def read(out: Path) -> list[dict[str, Any]]:
    """The runs that are there."""
    file = out / "runs.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def measured(given: argparse.Namespace) -> None:
    """The runs asked for, each added to the file as it ends."""
    there = {(run["peer"], run["work"], run["seed"]) for run in read(given.out) if run["held_out"]}
    for work in given.work:
        peers = [peer for peer in given.only if work in PEERS[peer].works]
        data = written(work, given.out / "data", tiny=given.tiny)
        examples = int(np.prod(np.load(data)["order"].shape[2:]))
        plan = [(seed, False, seed) for seed in range(given.seeds)]
        plan += [(0, True, given.round or time.time() + i) for i in range(given.rounds)]
        for seed, timed, number in plan:
            for peer in peers:
                if not timed and (peer, work, seed) in there:
                    continue
                python = given.python or python_of(PEERS[peer].environment)
                told = run(peer, work, data, python, seed=seed, timed=timed, core=given.core)
                about = {"peer": peer, "work": work, "seed": seed, "round": number}
                told |= {**about, "timed": timed, "examples": examples, "core": given.core}
                with (given.out / "runs.jsonl").open("a") as file:
                    file.write(json.dumps(told) + "\n")
                print(
                    f"{work} {peer}: {told['seconds'][-1]:.1f} s, loss {told['losses'][-1]:.4f}",
                    file=sys.stderr,
                )


def main() -> None:
    parser = argparse.ArgumentParser(prog="peers", description=__doc__)
    parser.add_argument("--only", nargs="+", choices=PEERS, default=list(PEERS))
    parser.add_argument("--work", nargs="+", choices=WORKS, default=list(WORKS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seeds", type=int, default=SEEDS, help="0 leaves quality out")
    parser.add_argument("--round", type=float, help="its number, of a round made in parts")
    parser.add_argument(
        "--core", type=int, help="pin each run to it, and go by its CPU time: for a busy machine"
    )
    parser.add_argument("--python", type=Path, help="of an environment that has what is run")
    parser.add_argument("--out", type=Path, default=CACHE / "out")
    parser.add_argument("--tiny", action="store_true", help="small enough for a test")
    given = parser.parse_args()
    given.out = given.out.resolve()
    measured(given)
    runs = read(given.out)
    found, wrong = {}, []
    for work in WORKS:
        some = [run for run in runs if run["work"] == work]
        if some:
            found[work] = table.rows(work, some, "seconds" if given.core is None else "cpu")
            print(table.text(work, found[work]) + "\n")
            wrong += judge.wrong(work, some)
    (given.out / "peers.json").write_text(json.dumps(found, indent=1, default=float))
    if not given.tiny:
        from tests.benchmarks.peers.plot import drawn

        clock = "seconds" if given.core is None else "processor seconds"
        drawn(found, given.out / "peers.png", clock)
    if wrong:
        sys.exit("\n".join(wrong))
    print("All did the same work: as many params, the same loss within its noise.")


if __name__ == "__main__":
    main()
