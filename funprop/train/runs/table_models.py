"""What is trained on tables, and how."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from funprop.combinators import parallel, serial
from funprop.layer import Layer, named
from funprop.layers import dense, dropout, relu, reshape
from funprop.losses import mean_squared, softmax_cross_entropy
from funprop.metrics import absolute_error, accuracy
from funprop.train.tables.several import loss_of_each, metric_of
from funprop.train.tables.targets import Target
from funprop.train.task import Task


class Recipe(NamedTuple):
    """What suits tables of a size: chosen by docs/benchmarks/tables.md.

    Attributes:
      hidden: features of each hidden layer.
      dropped: the rate of dropout after each.
      decay, rate: of AdamW.
    """

    hidden: tuple[int, ...]
    dropped: float
    decay: float
    rate: float


SMALL = Recipe((64, 32), dropped=0.2, decay=0.3, rate=1e-3)
LARGE = Recipe((128, 128), dropped=0.1, decay=0.03, rate=2e-3)
MANY = 5000  # rows, from which on a table is large
UPDATES = 2000  # about so many, of a small table, in at most so many epochs
EPOCHS = 30, 200


def recipe_for(rows: int) -> Recipe:
    """What suits so many rows to train on."""
    return LARGE if rows >= MANY else SMALL


def task_for(targets: Sequence[Target], **known: Any) -> Task:
    """The task that predicts these targets, with what suits its number of rows; `known` are fields
    of it."""
    n = len(known["train"][0])
    recipe, size = recipe_for(n), 64 if n > 2000 else 32 if n > 64 else min(16, n)
    shared = {
        "models": models(targets, recipe),
        "optimizer": "adamw",
        "weight_decay": recipe.decay,
        "learning_rate": recipe.rate,
        "epochs": min(max(round(UPDATES * size / n), EPOCHS[0]), EPOCHS[1]),
        "batch_size": size,
    }
    each = [_of_one(target) for target in targets]
    if len(targets) == 1:
        return Task(**shared, **known, **each[0])
    (inputs, values), (seen, wanted) = known["test"], known["train"][:2]
    parts = tuple(
        Task(
            **shared, **{"unit": (target.name, 0.0, 1.0), **one}, train=(seen, t), test=(inputs, v)
        )
        for target, one, t, v in zip(targets, each, wanted, values, strict=True)
    )
    metrics = {
        f"{name}_{target.name}": metric_of(metric, i)
        for i, (target, one) in enumerate(zip(targets, each, strict=True))
        for name, metric in one["metrics"].items()
    }
    loss = loss_of_each([one["loss"] for one in each])
    return Task(**shared, **known, loss=loss, metrics=metrics, parts=parts)


def _of_one(target: Target) -> dict[str, Any]:
    if target.classes:
        return {
            "loss": softmax_cross_entropy(),
            "metrics": {"accuracy": accuracy},
            "classes": target.classes,
            "decide": lambda logits: np.asarray(logits).argmax(-1),
        }
    return {
        "loss": mean_squared(),
        "metrics": {"absolute_error": absolute_error},
        "decide": np.asarray,
        "unit": (target.name, target.mean, target.deviation),
    }


def models(targets: Sequence[Target], recipe: Recipe) -> dict[str, Any]:
    """What is trained on tables, by name."""

    def head() -> Layer:
        each = [
            dense(len(target.classes)) if target.classes else serial(dense(1), reshape())
            for target in targets
        ]
        return named("head", each[0] if len(each) == 1 else parallel(*each))

    def perceptron() -> Layer:
        hidden = [
            part
            for width in recipe.hidden
            for part in (dense(width), relu(), dropout(recipe.dropped))
        ]
        return named("mlp", serial(*hidden, head()))

    return {"mlp": perceptron, "linear": lambda: named("linear", serial(head()))}
