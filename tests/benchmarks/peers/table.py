"""What the runs say: one row a peer and work, as dictionaries, and as text."""

from typing import Any

import numpy as np

from tests.benchmarks.peers.data import WORKS
from tests.benchmarks.peers.listed import PEERS

MIB = 2**20


def rows(work: str, runs: list[dict[str, Any]], clock: str = "seconds") -> list[dict[str, Any]]:
    """Of every peer that was run: medians over rounds, means over seeds.

    Args:
      work: of the runs.
      runs: as they were written.
      clock: "seconds" from process start, or "cpu", the process's own.
    """
    timed = [run | {"clock": run[clock]} for run in runs if run["timed"]]
    at = min(len(run["losses"]) for run in runs) - 1  # timed runs may end earlier
    base = {run["round"]: rate(work, run) for run in timed if run["peer"] == "plain_jax"}
    # All do the same work, so what they need differs by chance alone.
    same = [run for run in runs if run["held_out"] and not PEERS[run["peer"]].own_init]
    alike, found = needed(work, same), []
    for peer in PEERS:
        own = [run for run in timed if run["peer"] == peer]
        judged = [run for run in runs if run["held_out"] and run["peer"] == peer]
        if not own and not judged:
            continue
        row: dict[str, Any] = {"peer": peer, "lines": PEERS[peer].lines(work)}
        losses = [*{run["seed"]: run["losses"][at] for run in runs if run["peer"] == peer}.values()]
        row |= {"loss": np.mean(losses), "loss_deviation": np.std(losses), "at": at + 1}
        row["seeds"] = len(losses)
        if judged:
            name = WORKS[work].target[0]
            row["held_out"] = np.mean([run["held_out"][at][name] for run in judged])
        if own:
            row["rate"] = np.median([rate(work, run) for run in own])
            row["ratios"] = [rate(work, r) / base[r["round"]] for r in own if r["round"] in base]
            row["ratio"] = np.median(row["ratios"]) if row["ratios"] else None
            row["peak"] = np.median([run["peak_bytes"] for run in own]) / MIB
            row["first"] = np.median([run["clock"][0] for run in own])
            epochs = needed(work, judged) if PEERS[peer].own_init else alike
            if epochs is not None:
                row |= {"epochs": epochs, "target": np.median([reached(r, epochs) for r in own])}
        found.append(row)
    return found


def rate(work: str, run: dict[str, Any]) -> float:
    """Examples or tokens a second, in the median epoch after the first."""
    return run["examples"] * WORKS[work].unit[1] / float(np.median(np.diff(run["clock"])))


def reached(run: dict[str, Any], epochs: int) -> float:
    """Seconds from process start to the end of so many epochs."""
    if epochs <= len(run["clock"]):
        return run["clock"][epochs - 1]
    return run["clock"][-1] + (epochs - len(run["clock"])) * np.median(np.diff(run["clock"]))


def needed(work: str, judged: list[dict[str, Any]]) -> int | None:
    """Epochs to the target, the median over runs; `None` where not all reach it."""
    name, wanted = WORKS[work].target
    enough = (lambda v: v >= wanted) if name == "accuracy" else (lambda v: v <= wanted)
    epochs: list[int] = []
    for run in judged:
        reached = [i + 1 for i, told in enumerate(run["held_out"]) if enough(told[name])]
        if not reached:
            return None
        epochs.append(reached[0])
    return int(np.median(epochs)) if epochs else None


def text(work: str, found: list[dict[str, Any]]) -> str:
    """As a table of Markdown."""
    told = WORKS[work]
    name, wanted = told.target
    at = max((row.get("at", 0) for row in found), default=0)
    target = f"{wanted:.0%}" if name == "accuracy" else f"a loss of {wanted}"
    head = (
        f"| {told.says} | {told.unit[0]}/s | to plain JAX's | s to {target} | "
        f"s to the end of epoch 1 | peak MiB | lines | loss after {at} epochs | held-out {name} |"
    )
    lines = [head, "|---|" + "---:|" * 8]
    for row in found:

        def cell(key: str, form: str, row: dict[str, Any] = row) -> str:
            return "" if row.get(key) is None else format(row[key], form)

        noise = f" ± {row['loss_deviation']:.4f}" if row["seeds"] > 1 else ""
        target = cell("target", ".2f") and f"{row['target']:.2f} ({row['epochs']} epochs)"
        cells = [
            PEERS[row["peer"]].says,
            cell("rate", ",.0f"),
            cell("ratio", ".2f"),
            target,
            cell("first", ".2f"),
            cell("peak", ",.0f"),
            cell("lines", "d"),
            cell("loss", ".4f") + noise,
            cell("held_out", ".2%" if name == "accuracy" else ".3f"),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)
