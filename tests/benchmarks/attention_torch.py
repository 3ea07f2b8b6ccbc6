"""The core of attention on a CPU, forward and backward, beside PyTorch's: processes in turns.

PyTorch's threads wait busily, so the two do not share a process. Target: at most 1.0 of PyTorch's
time. Run: python -m tests.benchmarks.attention_torch PYTHON [ROUNDS], with the Python of an
environment that has PyTorch, which may be this one.
"""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

SHAPES = [(4, 256, 8), (1, 1024, 8), (1, 4096, 4)]  # batch, places, heads
FEATURES = 32, 64, 128  # of a head
Run = Callable[[], Any]


def ours(batch: int, places: int, heads: int, features: int) -> tuple[Run, Run]:
    """The forward pass, and the backward pass of what it kept."""
    import jax
    import jax.numpy as jnp

    import funprop as fp

    x = jax.random.normal(jax.random.key(0), (batch, places, 3 * heads * features))
    dy, layer = jnp.ones((batch, places, heads * features)), fp.attention(heads)
    forward = jax.jit(lambda x: layer.forward((), x))
    backward = jax.jit(lambda kept, dy: layer.backward((), kept, dy)[1])
    kept = forward(x)[1]
    wait = jax.block_until_ready
    return lambda: wait(forward(x)), lambda: wait(backward(kept, dy))


def theirs(batch: int, places: int, heads: int, features: int) -> tuple[Run, Run]:
    """The same by `scaled_dot_product_attention`."""
    import torch  # pyright: ignore[reportMissingImports]

    x = torch.randn(batch, places, 3 * heads * features, requires_grad=True)
    dy = torch.ones(batch, places, heads * features)
    attend, kept = torch.nn.functional.scaled_dot_product_attention, []

    def forward() -> None:
        q, k, v = x.view(batch, places, 3 * heads, features).transpose(1, 2).split(heads, 1)
        kept[:] = [attend(q, k, v, is_causal=True).transpose(1, 2).reshape(dy.shape)]

    def backward() -> None:
        x.grad = None
        kept[0].backward(dy)

    return forward, backward


def measured(passes: Callable[..., tuple[Run, Run]]) -> dict[str, float]:
    """Milliseconds of both passes together, medians, by shape."""
    found = {}
    for batch, places, heads in SHAPES:
        for features in FEATURES:
            both = passes(batch, places, heads, features)
            took: list[float] = []
            for turn in range(25 if places < 4096 else 11):
                start = time.perf_counter()
                for one in both:
                    one()
                took += [time.perf_counter() - start] if turn > 4 else []
            name = f"{places} places, batch {batch}, {heads} heads of {features}"
            found[name] = 1e3 * sorted(took)[len(took) // 2]
    return found


def main(python: str, rounds: str = "4") -> None:
    """Print a row a shape: the medians of all rounds, and of them the fastest."""
    rows: dict[str, list[dict[str, float]]] = {"ours": [], "theirs": []}
    for _ in range(int(rounds)):
        for who, interpreter in (("ours", sys.executable), ("theirs", python)):
            run = [interpreter, str(Path(__file__)), "--only", who]
            done = subprocess.run(run, capture_output=True, text=True, check=True)
            rows[who].append(json.loads(done.stdout.splitlines()[-1]))
    print(f"{'milliseconds, medians':38}  ours  PyTorch  ratio  of the fastest")
    for name in rows["ours"][0]:
        mine, other = (sorted(row[name] for row in rows[who]) for who in ("ours", "theirs"))
        middle = mine[len(mine) // 2], other[len(other) // 2]
        print(
            f"{name:38} {middle[0]:5.1f}  {middle[1]:7.1f}  {middle[0] / middle[1]:5.2f}  "
            f"{mine[0] / other[0]:14.2f}"
        )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--only"]:
        print(json.dumps(measured(ours if sys.argv[2] == "ours" else theirs)))
    else:
        main(*sys.argv[1:])
