"""`funprop train stdlib`: a language model of bytes, on Python's own standard library."""

from __future__ import annotations

import math
import sysconfig
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from funprop import trees
from funprop.gradients import backprop, measure
from funprop.layer import Layer
from funprop.losses import LinearParams
from funprop.models import generate, gpt, language_model, llama, unembedding
from funprop.rewrites import autodiff, remat
from funprop.steps import step
from funprop.train import processes
from funprop.train.arrays import spread
from funprop.train.fit import Fit, fit
from funprop.train.interrupts import interrupts
from funprop.train.plots import curve
from funprop.train.runs import (
    check_choice,
    check_installed,
    check_not_diverged,
    check_rate,
    check_seed,
    contents,
    run_folder,
    save_reached,
    write_history,
    write_run,
    write_settings,
    write_text,
)
from funprop.train.stopping import Row

BYTES = 256
TIME = 128  # bytes a window
UPDATES = 100  # a round, after which it is measured and a sample is drawn
HELD_OUT_WINDOWS = 256
PROMPT, SAMPLE = b"def ", 120
SIZES = {"features": 128, "depth": 4, "heads": 4}


def models() -> dict[str, Layer]:
    """The models that the job knows, by name."""
    return {
        "gpt": gpt(BYTES, longest=TIME + SAMPLE, rewrite=remat, **SIZES),
        "llama": llama(BYTES, rewrite=remat, **SIZES),
    }


def sources() -> tuple[np.ndarray, np.ndarray]:
    """The standard library's own sources, bytes: to train on, and every twentieth file held out."""
    root = Path(sysconfig.get_paths()["stdlib"])
    files = sorted(
        path
        for path in root.rglob("*.py")
        if not {"site-packages", "test", "tests", "idlelib"} & set(path.relative_to(root).parts)
    )
    parts: tuple[list[bytes], list[bytes]] = [], []
    for i, path in enumerate(files):
        parts[i % 20 == 0].append(path.read_bytes())
    train, test = (np.frombuffer(b"\n".join(part), np.uint8) for part in parts)
    return train, test


def windows(text: np.ndarray, n: int, seed: int, turn: int) -> tuple[np.ndarray, np.ndarray]:
    """`n` windows and the bytes after them, `[n, TIME]` each, drawn by `(seed, turn)` alone."""
    starts = np.random.default_rng([seed, turn]).integers(0, len(text) - TIME - 1, n)
    rows = text[starts[:, None] + np.arange(TIME + 1)].astype(np.int32)
    return rows[:, :-1], rows[:, 1:]


def train(
    *,
    model: str = "llama",
    learning_rate: float | None = None,
    epochs: int | None = None,
    batch_size: int | None = None,
    seed: int = 0,
    backward: str = "manual",
    out: Path | None = None,
    all_devices: bool = False,
    ordered: int | None = None,
) -> Path:
    """Train, print samples as it learns, and write the run's folder.

    Args:
      model: gpt or llama.
      learning_rate: of AdamW, at its highest; it warms up and falls along a cosine.
      epochs: rounds of 100 updates.
      batch_size: windows of 128 bytes an update.
      seed: of the params, the windows and the samples.
      backward: "manual" or "autodiff".
      out: the run's folder.
      all_devices: whether batches are split over all devices that the run's processes have.
      ordered: into how many parts, for bits that do not depend on the number of devices.

    Returns:
      The folder: `history.jsonl`, `params.safetensors`, `report.png`, `samples.txt`, `run.json`.

    Raises:
      ValueError: an argument that cannot be, or a folder; before anything is computed or written.
      FloatingPointError: training diverged; the folder is written all the same.
    """
    known = models()
    check_choice("model", model, known)
    check_choice("backward", backward, ("manual", "autodiff"))
    rate = 3e-3 if learning_rate is None else learning_rate
    rounds, batch = 12 if epochs is None else epochs, 16 if batch_size is None else batch_size
    check_rate(rate)
    check_seed(seed)
    if rounds < 1 or batch < 1:
        raise ValueError(f"epochs and batch_size must be at least 1, got {rounds} and {batch}")
    check_installed()
    text, unseen = sources()
    settings = {
        "data": "stdlib",
        "model": model,
        "learning_rate": rate,
        "rounds": rounds,
        "batch_size": batch,
        "seed": seed,
        "backward": backward,
        "ordered": ordered,
    }
    processes.check_same((text, unseen), settings)

    held_out = windows(unseen, HELD_OUT_WINDOWS, 0, 0)  # the same in every run
    network = known[model]
    whole = language_model(network, BYTES)
    grad_fn = backprop(whole if backward == "manual" else autodiff(whole))
    split, mesh = spread(grad_fn, batch, all_devices, ordered)
    training = step(split, _optimizer(rate, rounds * UPDATES))
    params_key, train_key, sample_key = jax.random.split(jax.random.key(seed), 3)
    params = whole.init(params_key, held_out)
    by = "the hand-written backward pass" if backward == "manual" else "jax.vjp"
    with run_folder("stdlib", out, settings, trees.nbytes(params)) as folder:
        print(
            f"Python's standard library: {len(text):,} bytes to train on, {len(unseen):,} held "
            f"out\n{model}, {trees.size(params):,} params, by {by}; {rounds} rounds of {UPDATES} "
            f"updates of {batch} windows of {TIME} bytes\n",
            flush=True,
        )
        state, history, samples = training.init(params, train_key), [], []
        stopped = f"all {rounds} rounds done"
        for turn in range(1, rounds + 1):
            data = windows(text, UPDATES * batch, seed, turn)
            start = time.perf_counter()
            result = fit(
                training, state, data, epochs=1, batch_size=batch, progress=None, mesh=mesh
            )
            speed = UPDATES * batch * TIME / (time.perf_counter() - start)
            state = result.state
            if not result.history:  # interrupted before the first update
                stopped = result.stopped
                break
            with interrupts() as noted:
                row = _row(turn, result, measure(grad_fn)(state.params, held_out), speed)
                history.append(row)
                sample = "(the loss is not finite: nothing is drawn)"
                if math.isfinite(row["held_out/bits_per_byte"]):
                    here = jax.device_get(state.params)
                    sample = _sample(network, here, jax.random.fold_in(sample_key, turn))
                samples.append(sample)
                print(f"round {turn}/{rounds}  {_said(row)}\n{_quoted(samples[-1])}\n", flush=True)
                interrupted = processes.anywhere(noted())
            if interrupted or result.stopped == "interrupted":
                stopped = "interrupted"
                break
            if not math.isfinite(row["loss"]):
                stopped = result.stopped
                break
        if processes.first():
            settings |= {"stopped": stopped, "final": history[-1] if history else None}
            params = jax.device_get(state.params)
            write_run(folder, lambda place: _write(place, settings, params, history, samples))
        check_not_diverged(history, folder)
    return folder


def _optimizer(rate: float, updates: int) -> optax.GradientTransformation:
    schedule = optax.warmup_cosine_decay_schedule(0, rate, min(50, updates // 2), updates)
    # Decay for the matrices of the blocks, stacked by repeat; not for scales and biases.
    decay = optax.adamw(
        schedule, weight_decay=0.1, mask=lambda p: jax.tree.map(lambda leaf: leaf.ndim > 2, p)
    )
    return optax.chain(optax.clip_by_global_norm(1.0), decay)


def _row(turn: int, result: Fit, held_out: dict[str, trees.Sum], speed: float) -> Row:
    loss = result.history[-1]["loss"]
    return {
        "epoch": float(turn),
        "loss": loss,
        "bits_per_byte": loss / math.log(2),
        "held_out/bits_per_byte": float(held_out["loss"].mean) / math.log(2),
        "tokens_per_second": speed,
    }


def _said(row: Row) -> str:
    return (
        f"bits per byte {row['bits_per_byte']:.3f}, held out {row['held_out/bits_per_byte']:.3f}  "
        f"{row['tokens_per_second']:,.0f} tokens/s"
    )


def _write(
    folder: Path, settings: dict[str, Any], params: Any, history: list[Row], samples: list[str]
) -> None:
    """Write what training came to, what took longest first."""
    save_reached(folder, params)
    write_history(folder, history)
    write_text(folder / "samples.txt", "\n\n".join(samples) + "\n")
    write_settings(folder, settings, finished=True)
    if history:
        title = f"funprop train stdlib: {settings['model']}"
        curve(folder / "report.png", history, "bits_per_byte", title)
    print(contents(folder))


def _sample(network: Layer, params: Any, key: Any) -> str:
    """What the model writes after `def `."""
    head: LinearParams = unembedding(params)
    prompt = jnp.asarray([list(PROMPT)])
    made = generate(network, params, head, prompt, SAMPLE, key=key, temperature=0.8, top_p=0.95)
    return bytes(np.asarray(made[0], np.uint8)).decode(errors="replace")


def _quoted(sample: str) -> str:
    """A sample behind a bar, without what would move the cursor."""
    lines = "".join(c if c.isprintable() or c == "\n" else "?" for c in sample).splitlines()
    return "\n".join(f"    | {line}" for line in lines)
