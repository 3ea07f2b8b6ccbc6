"""The history for MLflow, by its own client."""

from __future__ import annotations

from typing import Any

from funprop.train.callbacks.protocol import Rows, Start, numbers
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
        try:
            import mlflow as client  # noqa: F401
        except ModuleNotFoundError:
            raise ModuleNotFoundError(
                "mlflow needs mlflow: pip install 'funprop[mlflow]'"
            ) from None
        self.options = options
        self.begun, self.id = False, ""

    def __enter__(self) -> mlflow:
        return self

    def begin(self, start: Start) -> None:
        import mlflow as client

        active = client.active_run()
        self.begun = active is None
        run = client.start_run(**self.options) if active is None else active
        self.id = run.info.run_id

    def on_epoch(self, row: Row, state: object) -> None:
        import mlflow as client

        client.log_metrics(numbers(row), step=int(row["update"]), run_id=self.id)

    def __exit__(self, kind: object, *_: object) -> None:
        if self.begun:
            import mlflow as client

            client.end_run("FINISHED" if kind is None else "FAILED")
