"""Whether all peers did the same work: as many params, and the same loss within its noise."""

from typing import Any

import numpy as np

from tests.benchmarks.peers.listed import PEERS

DEVIATIONS = 3


def wrong(work: str, runs: list[dict[str, Any]]) -> list[str]:
    """What is wrong with the runs of one work, a sentence each.

    The training loss of a peer after the last epoch that all runs have, its mean over seeds, is to
    be within 3 standard deviations of the runs of all others.
    """
    found, by = [], {}
    at = min(len(run["losses"]) for run in runs) - 1  # timed runs may end earlier
    for run in {(run["peer"], run["seed"]): run for run in runs}.values():
        by.setdefault(run["peer"], []).append(run)
    for name in ("plain_jax", "funprop"):
        if name in by:
            counts = {peer: some[0]["params"] for peer, some in by.items()}
            wanted = counts[name]
            found += [
                f"{work}: {peer} has {count:,} params, {name} {wanted:,}"
                for peer, count in counts.items()
                if count != wanted
            ]
            break
    for peer, some in by.items():
        if PEERS[peer].own_init:
            continue
        others = [
            run["losses"][at]
            for other, theirs in by.items()
            for run in theirs
            if other != peer and not PEERS[other].own_init
        ]
        if len(others) < 2:
            continue
        mean, around, spread = np.mean([r["losses"][at] for r in some]), np.mean(others), 0.0
        spread = np.std(others, ddof=1)
        if abs(mean - around) > DEVIATIONS * spread:
            found.append(
                f"{work}: the loss of {peer} is {mean:.4f}, the others' at {around:.4f} "
                f"± {spread:.4f}"
            )
    return found
