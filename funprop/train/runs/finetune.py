"""`funprop finetune`: adapters beside a model that others have trained, on one's own text."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import optax

from funprop import trees
from funprop.gradients import backprop, measure
from funprop.params import trained
from funprop.rewrites import autodiff, merged
from funprop.steps import step
from funprop.train.pretrained import to_pretrained
from funprop.train.runs import in_folder
from funprop.train.runs.adapters import Tuned, drawing, text_of, tuned_by, verify_adapters
from funprop.train.runs.corpus import Text
from funprop.train.runs.files import (
    check_choice,
    check_installed,
    check_rate,
    check_seed,
)
from funprop.train.runs.in_folder import Shown
from funprop.train.runs.outcome import NonFinite, Outcome, guarded
from funprop.train.runs.replay import Work
from funprop.train.runs.rounds import Rounds
from funprop.train.stopping import Row
from funprop.values import whole_number

MODEL = "model"  # within the run's folder: what transformers loads
SECONDS = 300.0  # between checkpoints, which hold the frozen weights too


def finetune(
    folder: Path,
    files: Sequence[Path],
    *,
    rank: int = 8,
    where: str = "*/qkv",
    learning_rate: float = 5e-4,
    epochs: int = 3,
    batch_size: int = 8,
    length: int | None = None,
    held_out: float = 0.1,
    prompt: str | None = None,
    seed: int = 0,
    backward: str = "manual",
    out: Path | None = None,
    nonfinite: NonFinite = "stop",
    restart: bool = False,
    override: bool = False,
) -> Path:
    """Train adapters, print samples as they learn, and write the run's folder, with the model in
    it that transformers loads; or go on with the run that is there.

    Args:
      folder: a model of transformers, GPT-2 or Llama.
      files: text in UTF-8, for the tokenizer of the folder; or one file of tokens that `funprop
        prepare` made by it, with a part held out.
      rank: of the adapters.
      where: a pattern for the dense layers that are adapted.
      learning_rate: of AdamW, at its highest; it warms up and falls along a cosine.
      epochs: passes over the text.
      batch_size: windows an update.
      length: tokens a window; 128, or as many as the model has positions for.
      held_out: the share of the text that is not trained on.
      prompt: what samples go on from; the beginning of what is held out, if not given.
      seed: of the adapters, the order of windows and the samples.
      backward: "manual" or "autodiff".
      out, nonfinite, restart, override: as `funprop.train.runs.text.train` takes them.

    Returns:
      The run's folder: `model`, `params.safetensors` (the adapters), `history.jsonl`,
      `report.png`, `samples.txt`, `run.json`, `checkpoints`.

    Raises:
      ValueError: an argument that cannot be, or a folder; before anything is computed or written.
      OSError: a file cannot be read.
      FloatingPointError: training diverged; the folder is written all the same.
      Stopped: a signal ended it; the folder is written, to be gone on with.
    """
    check_choice("backward", backward, ("manual", "autodiff"))
    check_rate(learning_rate)
    check_seed(seed)
    whole_number(epochs, "epochs", 1)
    whole_number(batch_size, "batch_size", 1)
    if not 0 < held_out < 1:
        raise ValueError(f"held_out must be above 0 and below 1, got {held_out}")
    check_installed()
    settings: dict[str, Any] = {
        "data": ", ".join(file.name for file in files),
        "texts": [str(file) for file in files],
        "model": folder.name or str(folder),
        "pretrained": str(folder),
        "rank": rank,
        "where": where,
        "learning_rate": learning_rate,
        "epochs": epochs,
        "batch_size": batch_size,
        "length": length,
        "held_out": held_out,
        "seed": seed,
        "backward": backward,
        "nonfinite": nonfinite,
    }
    tuned = tuned_by(settings)
    text = text_of(settings, tuned.loaded)
    work = _work(tuned, text, settings)
    title = f"funprop finetune {settings['model']}: {settings['data']}"

    def begin(place: Path) -> Shown:
        few, all_of_them = trees.size(trained(tuned.params)), trees.size(tuned.loaded.params)
        print(
            f"{text.title}\n{tuned.loaded}\n{few:,} params in adapters of rank {rank} at {where} "
            f"are trained, {all_of_them:,} stay as they are\n"
        )
        verify_adapters(tuned, settings)
        draw = drawing(tuned.loaded, text, prompt, jax.random.key(seed))
        windows = text.held_out[0].shape[1]
        shown = Rounds(place, windows, measure(_grad_fn(tuned, settings)), draw).shown(title)

        def write(place: Path, params: Any, history: Sequence[Row], outcome: Outcome) -> None:
            if not outcome.diverged:
                to_pretrained(place / MODEL, merged(params), tuned.loaded)
            shown.write(place, params, history, outcome)

        return shown._replace(write=write)

    own = in_folder.Job(
        name=f"{settings['model']}-tuned",
        title=title,
        settings=settings,
        work=work,
        held_out=text.held_out,
        nbytes=2 * trees.nbytes(tuned.params),  # a checkpoint, and the model
        begin=begin,
        saved=trained,
        keep={"seconds": SECONDS, "keep": 1},
    )
    return in_folder.train(own, out, restart=restart, override=override)


def work_of(settings: dict[str, Any]) -> Work:
    """What a run with these settings repeats."""
    tuned = tuned_by(settings)
    return _work(tuned, text_of(settings, tuned.loaded), settings)


def _grad_fn(tuned: Tuned, settings: dict[str, Any]) -> Any:
    by_hand = settings["backward"] == "manual"
    return backprop(tuned.small if by_hand else autodiff(tuned.small))


def _work(tuned: Tuned, text: Text, settings: dict[str, Any]) -> Work:
    epochs, seed = settings["epochs"], settings["seed"]
    updates = max(1, text.windows // settings["batch_size"])
    schedule = optax.warmup_cosine_decay_schedule(
        0, settings["learning_rate"], min(20, epochs * updates // 2), epochs * updates
    )
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule))
    training = guarded(step(_grad_fn(tuned, settings), optimizer), settings["nonfinite"])
    state = training.init(tuned.params, jax.random.key(seed))
    return Work(training, state, text.batch, {"epochs": epochs, "updates": updates, "seed": seed})
