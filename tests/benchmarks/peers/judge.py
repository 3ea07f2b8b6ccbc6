"""Whether all peers did the same work: as many params, and the same loss within its noise."""

from typing import Any

import numpy as np
from scipy import stats

from tests.benchmarks.peers.listed import PEERS

CHANCE = (
    0.003  # of a false alarm for a peer: what three standard deviations are where seeds are many
)


def wrong(work: str, runs: list[dict[str, Any]]) -> list[str]:
    """What is wrong with the runs of one work, a sentence each.

    The training loss of a peer after the last epoch that all runs have, its mean over seeds, is
    compared with the others' by a t-test, whose spread is the one among the seeds of each peer; or,
    where each has one seed, among the others.
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
    losses = {
        peer: {run["seed"]: run["losses"][at] for run in some}
        for peer, some in by.items()
        if not PEERS[peer].own_init
    }
    several = [list(some.values()) for some in losses.values() if len(some) > 1]
    freedom = sum(len(some) - 1 for some in several)
    among_seeds = sum((len(some) - 1) * np.var(some, ddof=1) for some in several)
    means = {peer: np.mean(list(some.values())) for peer, some in losses.items()}
    for peer, mean in means.items():
        others = [other for name, other in means.items() if name != peer]
        if not freedom and len(others) < 2:
            continue
        if freedom:
            variance, degrees = among_seeds / freedom, freedom
            # The others may have drawn the same params from a seed: they count as one.
            error = np.sqrt(2 * variance / len(losses[peer]))
        else:
            variance, degrees = np.var(others, ddof=1), len(others) - 1
            error = np.sqrt(variance * (1 + 1 / len(others)))
        around = np.mean(others)
        if 2 * stats.t.sf(abs(mean - around) / error, degrees) < CHANCE:
            found.append(
                f"{work}: the loss of {peer} is {mean:.4f}, the others' at {around:.4f}; "
                f"runs are {np.sqrt(variance):.4f} apart"
            )
    return found
