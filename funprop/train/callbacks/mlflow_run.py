"""The history for MLflow, by its own client."""

from __future__ import annotations

from typing import Any

from funprop.train.callbacks.protocol import Rows, Start, client, numbers
from funprop.train.stopping import Row


class mlflow(Rows):
    """Logs every row as metrics of an MLflow run, by the update that they were measured after.

    Where a run is active it is that one, and it stays open. Needs the package mlflow, or
    mlflow-skinny (`funprop[mlflow]`).

    Args:
      options: of `mlflow.start_run`, such as `run_name`; with `run_id` a run that goes on goes on
        there too.

    Raises:
      ModuleNotFoundError: mlflow is missing.

    Example:
      >>> callbacks = [mlflow(run_name="digits")]  # doctest: +SKIP
    """

    def __init__(self, **options: Any) -> None:
        self.client = client("mlflow", "mlflow")
        self.options = options
        self.begun, self.id = False, ""

    def __enter__(self) -> mlflow:
        return self

    def begin(self, start: Start) -> None:
        active = self.client.active_run()
        self.begun = active is None
        run = self.client.start_run(**self.options) if active is None else active
        self.id = run.info.run_id

    def on_epoch(self, row: Row, state: object) -> None:
        self.client.log_metrics(numbers(row), step=int(row["update"]), run_id=self.id)

    def __exit__(self, kind: object, *_: object) -> None:
        if self.begun:
            self.client.end_run("FINISHED" if kind is None else "FAILED")
