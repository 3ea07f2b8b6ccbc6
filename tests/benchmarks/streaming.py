"""What it costs that tokens come from a file: time beside the same updates from memory; memory.

Target: the device waits for data at most 2% of an update; 100 GB train in the memory of a batch.
Run: python -m tests.benchmarks.streaming [small | larger | memory] [PAIRS]
"""

import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax

import funprop as fp
from funprop import trees
from funprop.train.data.feeds import Block
from funprop.train.data.prefetch import AHEAD
from funprop.train.data.streamed import BLOCK_BYTES, Streamed
from tests.benchmarks.harness import header, ratio

TIME, BATCH = 128, 16
SIZES = {"small": {"features": 32, "depth": 1}, "larger": {"features": 128, "depth": 4}}
UPDATES = {"small": 200, "larger": 24}
GIGABYTES = 100


def trainer(name: str) -> tuple[fp.Step, Any]:
    """A step of a language model of bytes, and its state."""
    model = fp.language_model(fp.gpt(256, heads=4, longest=TIME, **SIZES[name]), 256)
    step = fp.step(fp.backprop(model), optax.adam(1e-3))
    params = model.init(jax.random.key(0), (np.zeros((1, TIME), np.int32),) * 2)
    return step, step.init(params, None)


def token_file(folder: Path, tokens: int) -> Path:
    file = folder / f"{tokens}.bin"
    np.random.default_rng(0).integers(0, 256, tokens, np.uint8).tofile(file)
    return file


def timed(name: str, pairs: int) -> str:
    """An epoch from the file and from memory, in turns."""
    with tempfile.TemporaryDirectory() as folder:
        file = token_file(Path(folder), UPDATES[name] * BATCH * TIME + 1)
        return f"{name}: {_timed(name, file, UPDATES[name], pairs)}"


def _timed(name: str, file: Path, updates: int, pairs: int) -> str:
    source = fp.Tokens(file, TIME, dtype="uint8", vocabulary=256)
    resident = tuple(np.stack(part) for part in zip(*source, strict=True))
    step, state = trainer(name)

    def run(data: Any) -> fp.Fit:
        return fp.fit(step, state, data, epochs=1, batch_size=BATCH, progress=None)

    found, noise = ratio(
        lambda: run(source).state.params, lambda: run(resident).state.params, pairs
    )
    per_update = 1e3 * run(resident).history[0]["seconds"] / updates
    waits = sorted(_waiting(lambda: run(source)) for _ in range(3))
    return (
        f"{trees.size(state.params):,} params, {per_update:.2f} ms an update; from the file over "
        f"from memory {found}, noise {noise}; fit waits for a block {100 * waits[0]:.2f} to "
        f"{100 * waits[-1]:.2f}% of an epoch's time"
    )


def _waiting(run: Callable[[], fp.Fit]) -> float:
    """The share of an epoch in which `fit` waits for a block, while the device may still compute:
    not less than that in which the device waits."""
    blocks, waited = Streamed.blocks, []

    def timed(self: Streamed, epoch: int, done: int = 0) -> Generator[Block]:
        found = blocks(self, epoch, done)
        while True:
            start = time.perf_counter()
            block = next(found, None)
            waited.append(time.perf_counter() - start)
            if block is None:
                return
            yield block

    Streamed.blocks = timed
    try:
        seconds = run().history[0]["seconds"]
        return sum(waited) / seconds
    finally:
        Streamed.blocks = blocks


def resident_bytes(peak: bool) -> int:
    field = "VmHWM:" if peak else "VmRSS:"
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def memory(seconds: float = 10) -> None:
    """The peak of resident memory while 100 GB are trained on, over what the same program took."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background has it ignored
    step, state = trainer("small")
    with tempfile.TemporaryDirectory() as folder:
        few = fp.Tokens(token_file(Path(folder), 2**22), TIME, dtype="uint8", vocabulary=256)
        large = Path(folder) / "large.bin"
        large.touch()
        os.truncate(large, GIGABYTES * 10**9)  # sparse: zeros that take no place on the disk
        many = fp.Tokens(large, TIME, dtype="uint8", vocabulary=256)
        found = []
        for source in (few, many):
            Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
            before = resident_bytes(peak=False)
            timer = threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGINT))
            timer.start()
            result = fp.fit(step, state, source, epochs=10**6, batch_size=BATCH, progress=None)
            timer.cancel()
            found.append((before, resident_bytes(peak=True), result.stopped))
        (_, before, _), (_, after, stopped) = found
        print(
            f"{many.tokens:,} tokens, an epoch of {len(many) // BATCH:,} updates ({stopped} after "
            f"{seconds:.0f} s): peak {after / 2**20:.0f} MiB; of 4 MB of tokens "
            f"{before / 2**20:.0f} MiB; {(after - before) / 2**20:+.1f} MiB. A batch has "
            f"{2 * BATCH * TIME * 4 / 2**20:.2f} MiB, {AHEAD + 3} blocks at most "
            f"{(AHEAD + 3) * BLOCK_BYTES / 2**20:.0f}"
        )


def main() -> None:
    wanted = sys.argv[1:2] or [*UPDATES, "memory"]
    header()
    for name in wanted:
        if name == "memory":
            memory()
        else:
            print(timed(name, int(sys.argv[2]) if len(sys.argv) > 2 else 8))


if __name__ == "__main__":
    main()
