"""What `funprop finetune` takes; what it does is in finetune.py."""

from pathlib import Path
from typing import Annotated, Literal

import tyro


def finetune(
    folder: tyro.conf.Positional[Path],
    files: Annotated[tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="FILES")],
    low_rank: int = 8,
    where: str = "*/qkv",
    learning_rate: float = 5e-4,
    epochs: int = 3,
    batch_size: int = 8,
    length: int | None = None,
    held_out: float = 0.1,
    prompt: str | None = None,
    seed: int = 0,
    backward: Literal["manual", "autodiff"] = "manual",
    out: Path | None = None,
    nonfinite: Literal["stop", "skip"] = "stop",
    restart: bool = False,
    override: bool = False,
) -> int:
    """Fine-tune GPT-2 or Llama on text of your own, by LoRA.

    Low-rank adapters learn beside the weights. Checks the gradient, trains, shows what the model
    writes, and writes a run folder: in its folder model the adapters are merged in, for
    transformers to load.

    Args:
      folder: the model, as transformers writes it: config.json, safetensors, tokenizer.json.
      files: text, which is cut into the model's tokens; or a file of tokens of funprop prepare.
      low_rank: the rank of the adapters.
      where: a pattern for the dense layers that are adapted, such as */qkv.
      learning_rate: of AdamW.
      epochs: passes over the text.
      batch_size: windows an update.
      length: tokens a window; without it, 128.
      held_out: the share of the text that is measured on.
      prompt: what samples go on from; without it, the beginning of what is held out.
      seed: of the adapters, the order of the windows and the samples.
      backward: by the hand-written backward pass, or by jax.vjp.
      out: the run folder, as of train.
      nonfinite: as of train.
      restart: as of train.
      override: as of train.
    """
    from funprop.starting import started
    from funprop.train.compilation import cache_compilations
    from funprop.train.runs import finetune as runs

    cache_compilations()
    started()
    runs.finetune(
        folder,
        files,
        rank=low_rank,
        where=where,
        learning_rate=learning_rate,
        epochs=epochs,
        batch_size=batch_size,
        length=length,
        held_out=held_out,
        prompt=prompt,
        seed=seed,
        backward=backward,
        out=out,
        nonfinite=nonfinite,
        restart=restart,
        override=override,
    )
    return 0
