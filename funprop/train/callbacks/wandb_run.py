"""The history for Weights & Biases, by its own client."""

from __future__ import annotations

from typing import Any

from funprop.train.callbacks.protocol import Rows, Start, client, numbers
from funprop.train.stopping import Row


class wandb(Rows):
    """Logs every row to a run of Weights & Biases, by the update that it was measured after.

    Needs the package wandb (`funprop[wandb]`).

    Args:
      run: one that is under way, which stays open; without it, one is begun and finished.
      options: of `wandb.init`, such as `project` and `config`; with `id` and `resume="allow"` a run
        that goes on goes on there too.

    Raises:
      ModuleNotFoundError: wandb is missing.
      TypeError: there are options for a run that is under way.

    Example:
      >>> callbacks = [wandb(project="digits", config={"rate": 1e-3})]  # doctest: +SKIP
    """

    def __init__(self, run: Any = None, **options: Any) -> None:
        self.client = client("wandb", "wandb")
        if run is not None and options:
            raise TypeError(f"options must be left out where run is given, got {[*options]}")
        self.given, self.options = run, options
        self.run: Any = run

    def __enter__(self) -> wandb:
        return self

    def begin(self, start: Start) -> None:
        if self.given is None:
            self.run = self.client.init(**self.options)

    def on_epoch(self, row: Row, state: object) -> None:
        self.run.log(numbers(row), step=int(row["update"]))

    def __exit__(self, kind: object, *_: object) -> None:
        if self.given is None and self.run is not None:
            self.run.finish(exit_code=int(kind is not None))
