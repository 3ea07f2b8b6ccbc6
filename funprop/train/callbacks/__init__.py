"""What `fit` calls after every row of its history: functions, objects, and a few that are ready."""

from funprop.train.callbacks.best_params import best_params
from funprop.train.callbacks.csv_file import csv
from funprop.train.callbacks.learning_rate import learning_rate
from funprop.train.callbacks.mlflow_run import mlflow
from funprop.train.callbacks.protocol import Callback, Start
from funprop.train.callbacks.tensorboard_events import tensorboard
from funprop.train.callbacks.wandb_run import wandb

__all__ = [
    "Callback",
    "Start",
    "best_params",
    "csv",
    "learning_rate",
    "mlflow",
    "tensorboard",
    "wandb",
]
