"""What is trained on tables, and how."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from funprop.combinators import parallel, serial
from funprop.layer import Layer, named
from funprop.layers import dense, dropout, relu, reshape
from funprop.losses import mean_squared, softmax_cross_entropy
from funprop.metrics import absolute_error, accuracy
from funprop.train.tables.several import loss_of_each, metric_of
from funprop.train.tables.targets import Target
from funprop.train.task import Task

HIDDEN, DROPPED = (64, 32), 0.2
DECAY = 0.3  # so much, since most tables are small: docs/benchmarks/tables.md
UPDATES = 2000  # about so many, in at least and at most so many epochs
EPOCHS = 10, 200


def task_for(targets: Sequence[Target], **known: Any) -> Task:
    """The task that predicts these targets, with what suits its number of rows; `known` are fields
    of it."""
    n = len(known["train"][0])
    size = 64 if n > 2000 else 32 if n > 64 else max(1, min(16, n))
    shared = {
        "models": models(targets),
        "optimizer": "adamw",
        "weight_decay": DECAY,
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


def models(targets: Sequence[Target]) -> dict[str, Any]:
    """What is trained on tables, by name."""

    def head() -> Layer:
        each = [
            dense(len(target.classes)) if target.classes else serial(dense(1), reshape())
            for target in targets
        ]
        return named("head", each[0] if len(each) == 1 else parallel(*each))

    def perceptron() -> Layer:
        hidden = [part for width in HIDDEN for part in (dense(width), relu(), dropout(DROPPED))]
        return named("mlp", serial(*hidden, head()))

    return {"mlp": perceptron, "linear": lambda: named("linear", serial(head()))}
