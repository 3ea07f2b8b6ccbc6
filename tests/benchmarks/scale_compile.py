"""Is the time of compiling a training step the same at any depth, under `repeat`?

XLA's compilation alone, traced and lowered anew before each, without any cache: by the clock and by
the processor, of few and of many blocks in turns; and the lines of both programs, before and after.
Run: python -m tests.benchmarks.scale_compile SCALE.json funprop|plain [DEPTH ...]
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from tests.benchmarks import scale
from tests.benchmarks.harness import header
from tests.benchmarks.language_models import tokens

ROUNDS = 5


def made(way: str, depth: int) -> tuple[Any, ...]:
    """`(update, state, batch)`, the state by its shapes."""
    sizes = scale.Sizes(depth=depth)
    batch = tokens(sizes.batch, sizes.sequence, sizes.vocabulary)
    step, objective = scale.ours(sizes, lambda block: block)
    update = step.update
    params = jax.eval_shape(objective.init, jax.random.key(0), batch)
    state = jax.eval_shape(lambda params: step.init(params, None), params)
    if way == "plain":
        update, adam = scale.plain(sizes, False)
        state = params, jax.eval_shape(adam.init, params)
    return update, state, batch


def main(numbers: Path, way: str, depths: list[int]) -> None:
    """Print a row a depth, and keep the medians among the numbers."""
    header()
    jax.config.update("jax_enable_compilation_cache", False)
    clock: dict[int, list[float]] = {depth: [] for depth in depths}
    processor: dict[int, list[float]] = {depth: [] for depth in depths}
    ways = {depth: made(way, depth) for depth in depths}
    lines = {}
    for i in range(ROUNDS):
        for depth in depths if i % 2 else depths[::-1]:
            update, *arguments = ways[depth]
            jax.clear_caches()
            jitted = jax.jit(lambda *arguments, update=update: update(*arguments))
            lowered = jitted.lower(*arguments)
            start = time.perf_counter(), time.process_time()
            compiled = lowered.compile()
            clock[depth].append(time.perf_counter() - start[0])
            processor[depth].append(time.process_time() - start[1])
            if i:
                continue
            lines[depth] = [text.count("\n") for text in (lowered.as_text(), compiled.as_text())]
    known = json.loads(numbers.read_text()) if numbers.exists() else {}
    for depth in depths:
        kept = known.setdefault("compiling", {}).setdefault(way, {})
        kept[str(depth)] = float(np.median(clock[depth]))
        cells = [
            "{1:.2f} ({0:.2f} to {2:.2f})".format(*np.percentile(took[depth], [25, 50, 75]))
            for took in (clock, processor)
        ]
        print(
            f"{way}, {depth:2} blocks: {cells[0]} s, of the processor {cells[1]} s; lines "
            f"{lines[depth][0]:,}, compiled {lines[depth][1]:,}"
        )
    numbers.write_text(json.dumps(known, indent=1))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], list(map(int, sys.argv[3:])) or list(scale.AXES["depth"]))
