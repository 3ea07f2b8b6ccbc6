"""What is chosen where nothing is asked for, and what is made of it: for one run and for many."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import optax

from funprop.gradients import backprop
from funprop.layer import Layer
from funprop.objectives import objective
from funprop.params import decayed
from funprop.rewrites import autodiff
from funprop.train.arguments import check_sizes
from funprop.train.runs.files import check_choice, check_rate, check_seed
from funprop.train.task import Task

OPTIMIZERS: dict[str, Callable[..., optax.GradientTransformation]] = {
    "sgd": optax.sgd,
    "momentum": functools.partial(optax.sgd, momentum=0.9),
    "adam": optax.adam,
    "adamw": functools.partial(optax.adamw, mask=decayed),
}
SGD_RATES = {"sgd": 0.1, "momentum": 0.03}  # the tasks' own rates are for Adam


def settled(
    task: Task, model: str | None, optimizer: str | None, learning_rate: float | None, seed: int
) -> tuple[str, str, float]:
    """The names of model and optimizer, and the learning rate: the task's where none is given.

    Raises:
      ValueError: one of them, or the seed, cannot be.
    """
    optimizer = task.optimizer if optimizer is None else optimizer
    check_choice("optimizer", optimizer, OPTIMIZERS)
    model = task.names[0] if model is None else model
    check_choice("model", model, task.names)
    own = SGD_RATES.get(optimizer, task.learning_rate)
    rate = own if learning_rate is None else learning_rate
    check_rate(rate)
    check_seed(seed)
    return model, optimizer, rate


def sizes(task: Task, epochs: int | None, batch_size: int | None) -> tuple[int, int]:
    """Epochs and examples a batch: the task's where none is given, of no more than there are.

    Raises:
      ValueError: one of them cannot be.
    """
    n = examples(task.train)
    epochs = task.epochs if epochs is None else epochs
    batch_size = min(task.batch_size, n) if batch_size is None else batch_size
    check_sizes(n, epochs, batch_size)
    return epochs, batch_size


def examples(data: Any) -> int:
    """How many there are."""
    return len(jax.tree.leaves(data)[0])


def built(task: Task, model: str) -> tuple[Task, Layer, Layer]:
    """The task with all that was left out, the network, and the objective around it."""
    network = task.built(model)
    task = task.told_of(network)
    return task, network, objective(network, task.loss, **(task.metrics or {}))


def grad_fn_of(whole: Layer, backward: str) -> Any:
    """Of an objective, by its own backward pass ("manual") or by `jax.vjp` ("autodiff")."""
    return backprop(whole if backward == "manual" else autodiff(whole))


def optimizer_of(task: Task, name: str, rate: Any, **numbers: Any) -> optax.GradientTransformation:
    """The optimizer of that name; `numbers` in the place of its own."""
    decay = {"weight_decay": task.weight_decay} if name == "adamw" else {}
    return OPTIMIZERS[name](**{"learning_rate": rate, **decay, **numbers})
