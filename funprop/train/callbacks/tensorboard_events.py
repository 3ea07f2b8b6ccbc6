"""The history for TensorBoard, by tensorboardX: it needs NumPy and protobuf alone."""

from __future__ import annotations

import os
from typing import Any

from funprop.train.callbacks.protocol import Rows, Start, client, numbers
from funprop.train.stopping import Row


class tensorboard(Rows):
    """Writes every number of every row as a scalar, by the update that it was measured after.

    Of a run that goes on, what TensorBoard has beyond the row that is gone on from is hidden. Needs
    the package tensorboardX (`funprop[tensorboard]`), which needs neither PyTorch nor TensorFlow.

    Args:
      folder: for the files of events; made where it is not there.

    Raises:
      ModuleNotFoundError: tensorboardX is missing.

    Example:
      >>> callbacks = [tensorboard("runs/first")]  # doctest: +SKIP
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.client = client("tensorboardX", "tensorboard")
        self.folder = os.fspath(folder)
        self.writer: Any = None

    def __enter__(self) -> tensorboard:
        return self

    def __exit__(self, *exc: object) -> None:
        if self.writer is not None:
            self.writer.close()

    def begin(self, start: Start) -> None:
        beyond = int(start.history[-1]["update"]) + 1 if start.history else None
        self.writer = self.client.SummaryWriter(self.folder, purge_step=beyond)

    def on_epoch(self, row: Row, state: object) -> None:
        for name, value in numbers(row).items():
            if name != "update":
                self.writer.add_scalar(name, value, int(row["update"]))
        self.writer.flush()  # a process that is killed has written what it told
