"""Bytes that a device sends in a training step over many devices, beside the least by formula.

The model and the ways are those of `tests.benchmarks.sharding`, on 2, 4 and 8 virtual devices; the
program is XLA's, for a CPU, and is not run. Run: python -m tests.benchmarks.scale_devices FILE.json
"""

import json
import sys
from pathlib import Path
from typing import Any

from tests.benchmarks.sharding import (  # first of all: it asks for eight devices
    DEPTH,
    FEATURES,
    MIB,
    ROWS,
    TIME,
    WAYS,
    compiled,
)
from tests.benchmarks.traffic import collectives, sent

# isort: split
import jax

from tests.benchmarks.harness import header

CUT = 4096 * 4  # bytes: a smaller param is whole under `fsdp_rules`
ACTIVATION = 4 * ROWS * TIME * FEATURES


def least(way: str, params: Any, n: int) -> float:
    """Bytes that a device must send, by the ring, at least.

    `P` are the bytes of params. Data parallel: the gradient summed on every device,
    `2 (n-1)/n P`. FSDP: what is in a loop over blocks gathered for each pass, what is around it
    once, and a reduce-scatter of all gradients, `(n-1)/n` of each; small params, which are whole,
    as under data parallelism. Tensor parallel: an activation summed behind each of a block's two
    pairs of products in each pass, one behind the embedding and one before the head,
    `(4 L + 2) 2 (n-1)/n A`; and three numbers a token for the loss.
    """
    part = (n - 1) / n
    if way == "tensor":
        return 2 * part * ((4 * DEPTH + 2) * ACTIVATION + 3 * 4 * ROWS * TIME)
    total = 0.0
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        size = 4 * leaf.size
        in_loop = "blocks" in jax.tree_util.keystr(path)
        if way == "data" or size < CUT:
            total += 2 * part * size
        else:
            total += (3 if in_loop else 2) * part * size
    return total


def what(one: Any, n: int) -> str:
    """What a collective is for."""
    if one.kind == "all-gather" and "scatter-add" not in one.name:
        return "params gathered"
    if "attention/core" in one.name:
        return "queries, keys and values put to their heads"
    if one.kind != "all-reduce" and "embedding/scatter-add" in one.name:
        return "what the embedding's gradient is made of"
    activation = ACTIVATION <= sum(one.sizes) <= ACTIVATION + 4 * ROWS * TIME
    if activation or len(one.sizes) == 1:
        return "activations summed"
    return "gradients summed"


def row(way: str, n: int) -> dict[str, Any]:
    """What is sent and the least, in MiB."""
    program, state = compiled(WAYS[way], n)
    parts: dict[str, float] = {}
    scattered = 0.0
    for one in collectives(program.as_text()):
        whole = sent(one, n)
        parts[what(one, n)] = parts.get(what(one, n), 0) + whole / MIB
        scattered += whole
        if "fsdp" in way and one.kind == "all-reduce":
            # Of what is summed and then cut, a reduce-scatter sends half.
            of_cut = sum(s for s in one.sizes if s * (DEPTH if one.times > 1 else 1) >= CUT)
            scattered -= whole / 2 * of_cut / sum(one.sizes)
    return {
        "devices": n,
        "least MiB": least(way, state.params, n) / MIB,
        "with scatter MiB": scattered / MIB,
        "sent MiB": sum(parts.values()),
        "parts": parts,
    }


def main() -> None:
    """Print and keep the table."""
    header()
    found = {way: [row(way, n) for n in (2, 4, 8)] for way in ("data", "fsdp, gathered", "tensor")}
    print(f"{'MiB sent by a device':32}   least   with scatter   as compiled   of it")
    for way, rows in found.items():
        for r in rows:
            parts = "; ".join(f"{name} {size:.2f}" for name, size in r["parts"].items())
            print(
                f"{way:24}{r['devices']:8} {r['least MiB']:7.2f} {r['with scatter MiB']:14.2f} "
                f"{r['sent MiB']:13.2f}   {parts}"
            )
    Path(sys.argv[1]).write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
