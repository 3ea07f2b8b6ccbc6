"""`funprop train stdlib`, or a file of tokens: a language model, on Python's own standard library
or on what `funprop prepare` made."""

from __future__ import annotations

from collections.abc import Callable
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
from funprop.train.runs import in_folder
from funprop.train.runs.corpus import BYTES, SUFFIX, TIME, Text, library, text_files, token_file
from funprop.train.runs.files import (
    check_choice,
    check_installed,
    check_rate,
    check_seed,
)
from funprop.train.runs.in_folder import Shown
from funprop.train.runs.outcome import NonFinite, guarded
from funprop.train.runs.replay import Work
from funprop.train.runs.rounds import Rounds
from funprop.train.runs.sources import name_of

UPDATES = 100  # a round, after which it is measured and a sample is drawn
PROMPT, SAMPLE = b"def ", 120
SIZES: dict[str, Any] = {"features": 128, "depth": 4, "heads": 4}


def models(vocabulary: int = BYTES) -> dict[str, Layer]:
    """The models that the job knows, by name."""
    return {
        "gpt": gpt(vocabulary, longest=TIME + SAMPLE, rewrite=remat, **SIZES),
        "llama": llama(vocabulary, rewrite=remat, **SIZES),
    }


def train(
    data: str = "stdlib",
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
    nonfinite: NonFinite = "stop",
    restart: bool = False,
    override: bool = False,
    watch: bool = False,
) -> Path:
    """Train, print samples as it learns, and write the run's folder; or go on with the run that is
    there.

    Args:
      data: `stdlib`; a `.txt` file, or a folder of them; or a file of tokens with one beside it
        that is held out.
      model: gpt or llama.
      learning_rate: of AdamW, at its highest; it warms up and falls along a cosine over all epochs.
      epochs: rounds of 100 updates.
      batch_size: windows of 128 tokens an update.
      seed: of the params, the windows and the samples.
      backward: "manual" or "autodiff".
      out: the run's folder.
      all_devices: whether batches are split over all devices that the run's processes have.
      ordered: into how many parts, for bits that do not depend on the number of devices.
      nonfinite: whether an update that is not finite ends the run, or is left out: "stop", "skip".
      restart, override: as `run_folder` takes them.
      watch: whether `gradient_flow.png` is written too.

    Returns:
      The folder: `history.jsonl`, `params.safetensors`, `report.png`, `samples.txt`, `run.json`,
      `checkpoints`.

    Raises:
      ValueError: an argument that cannot be, or a folder; before anything is computed or written.
      FloatingPointError: training diverged; the folder is written all the same.
      Stopped: a signal ended it; the folder is written, to be gone on with.
    """
    check_choice("model", model, models())
    check_choice("backward", backward, ("manual", "autodiff"))
    rate = 3e-3 if learning_rate is None else learning_rate
    rounds, batch = 12 if epochs is None else epochs, 16 if batch_size is None else batch_size
    check_rate(rate)
    check_seed(seed)
    if rounds < 1 or batch < 1:
        raise ValueError(f"epochs and batch_size must be at least 1, got {rounds} and {batch}")
    check_installed()
    text = _text(data, batch)
    settings = {
        "data": data,
        "model": model,
        "learning_rate": rate,
        "epochs": rounds,
        "batch_size": batch,
        "seed": seed,
        "backward": backward,
        "ordered": ordered,
        "nonfinite": nonfinite,
    }
    processes.check_same(text.same, settings)

    network, grad_fn = _model(text, settings)
    work = _work(text, settings, all_devices)
    params, sample_key = work.state.params, jax.random.split(jax.random.key(seed), 3)[2]
    title = f"funprop train {data}: {model}"

    def begin(folder: Path) -> Shown:
        by = "the hand-written backward pass" if backward == "manual" else "jax.vjp"
        print(
            f"{text.title}\n{model}, {trees.size(params):,} params, by {by}; {rounds} rounds of "
            f"{UPDATES} updates of {batch} windows of {TIME} tokens\n",
            flush=True,
        )
        draw = _drawing(network, sample_key) if text.vocabulary == BYTES else None
        return Rounds(folder, TIME, measure(grad_fn), draw).shown(title)

    size = trees.nbytes(work.state)
    own = in_folder.Job(name_of(data), title, settings, work, text.held_out, size, begin)
    return in_folder.train(own, out, restart=restart, override=override, watch=watch)


def work_of(settings: dict[str, Any]) -> Work:
    """What a run with these settings repeats."""
    return _work(_text(settings["data"], settings["batch_size"]), settings, all_devices=False)


def _text(data: str, batch_size: int) -> Text:
    if data == "stdlib":
        return library(batch_size)
    path = Path(data)
    if path.is_dir() or path.suffix.lower() == SUFFIX:
        return text_files(path, batch_size)
    return token_file(path, batch_size)


def _model(text: Text, settings: dict[str, Any]) -> tuple[Layer, Any]:
    """The network, and what gives its gradient."""
    network = models(text.vocabulary)[settings["model"]]
    whole = language_model(network, text.vocabulary)
    return network, backprop(whole if settings["backward"] == "manual" else autodiff(whole))


def _work(text: Text, settings: dict[str, Any], all_devices: bool) -> Work:
    epochs, seed = settings["epochs"], settings["seed"]
    _, grad_fn = _model(text, settings)
    split, mesh = spread(grad_fn, settings["batch_size"], all_devices, settings["ordered"])
    optimizer = _optimizer(settings["learning_rate"], epochs * UPDATES)
    training = guarded(step(split, optimizer), settings["nonfinite"])
    params_key, train_key, _ = jax.random.split(jax.random.key(seed), 3)
    state = training.init(grad_fn.objective.init(params_key, text.held_out), train_key)
    options = {"epochs": epochs, "updates": UPDATES, "seed": seed, "mesh": mesh}
    return Work(training, state, text.batch, options)


def _optimizer(rate: float, updates: int) -> optax.GradientTransformation:
    schedule = optax.warmup_cosine_decay_schedule(0, rate, min(50, updates // 2), updates)
    # Decay for the matrices of the blocks, stacked by repeat; not for scales and biases.
    decay = optax.adamw(
        schedule, weight_decay=0.1, mask=lambda p: jax.tree.map(lambda leaf: leaf.ndim > 2, p)
    )
    return optax.chain(optax.clip_by_global_norm(1.0), decay)


def _drawing(network: Layer, key: Any) -> Callable[[Any, int], str]:
    """What the model writes after `def `, after some rounds."""

    def draw(params: Any, turn: int) -> str:
        return _sample(network, jax.device_get(params), jax.random.fold_in(key, turn))

    return draw


def _sample(network: Layer, params: Any, key: Any) -> str:
    """What the model writes after `def `."""
    head: LinearParams = unembedding(params)
    prompt = jnp.asarray([list(PROMPT)])
    made = generate(network, params, head, prompt, SAMPLE, key=key, temperature=0.8, top_p=0.95)
    return bytes(np.asarray(made[0], np.uint8)).decode(errors="replace")
