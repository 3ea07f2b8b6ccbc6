"""What a step tells: metrics are means over the examples, of the params before the update."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from funprop.trees import is_float
from funprop.verify.training.case import Case, NotAsked
from funprop.verify.training.closeness import FACTOR, UNITS
from funprop.verify.training.objective import loss_of
from funprop.verify.training.report import StepCheck

SUMS = ("sum", "total", "count", "num", "weight", "token", "example", "samples", "size", "norm")
LOSS = "loss"


def metrics(case: Case) -> Iterator[StepCheck]:
    """Metrics do not grow with the batch, and the loss is that of the params before the update."""
    told = case.metrics[1]
    scalars = [name for name, value in told.items() if np.ndim(value) == 0]
    if not scalars:
        raise NotAsked("the step gives no scalar metrics")
    summed = list(_sums(case, scalars))
    yield from summed
    names = [n for n in scalars if LOSS in n.lower()] or scalars * (len(scalars) == 1)
    if not summed and len(names) == 1 and case.said["loss_fn"] is not None:
        yield from _of_other_params(case, names[0])


def _sums(case: Case, names: list[str]) -> Iterator[StepCheck]:
    if case.examples.n < 1:
        raise NotAsked("the batch has no examples")
    one, two = case.run(case.examples.batch), case.run(case.examples.twice())
    found = case.noise(case.examples.batch)
    for name in names:
        if any(word in name.lower() for word in SUMS) or not is_float(
            np.asarray(one.metrics[name])
        ):
            continue
        a, b = float(one.metrics[name]), float(two.metrics[name])
        slack = FACTOR * found.metrics[name] + UNITS * found.eps * abs(a)
        counts = a == round(a) and a >= case.examples.n
        if a and abs(b - 2 * a) <= 2 * slack and not counts:
            yield StepCheck(
                "metrics",
                f"the metric {name} doubles where every example is there twice: it is a sum over "
                "examples (or devices), not a mean",
                leaf=name,
            )


def _of_other_params(case: Case, name: str) -> Iterator[StepCheck]:
    loss, eps = loss_of(case, case.examples.batch)
    new = case.run(case.examples.batch)
    before, after = loss(case.here), loss(new.arrays)
    told = float(new.metrics[name])
    most = case.noise(case.examples.batch).metrics[name]
    slack = FACTOR * most + UNITS * max(eps, case.eps(case.examples.batch)) * abs(before)
    if abs(told - before) <= slack:
        return
    if abs(told - after) <= slack:
        yield StepCheck(
            "metrics", f"the metric {name} is that of the params after the update", leaf=name
        )
        return
    ratio = told / before if before else np.inf
    yield StepCheck(
        "metrics",
        f"the metric {name} is {told:.6g}, the loss of this batch is {before:.6g} "
        f"({ratio:.6g} times)",
        leaf=name,
        error=abs(told - before) / abs(before) if before else np.inf,
    )


def nonfinite(case: Case) -> Iterator[StepCheck]:
    """A batch with a NaN leaves all of the state as it was, or none of it."""
    batch = case.examples.spoilt()
    if batch is None:
        raise NotAsked("the batch holds no floating numbers")
    new = case.run(batch)
    learned = case.learned()
    spoilt = [i for i in learned if not np.isfinite(np.asarray(new.arrays[i], np.float64)).all()]
    params = [i for i in spoilt if i in case.layout.params]
    if not spoilt:
        return
    path = case.layout.paths[spoilt[0]]
    if case.said["guarded"]:
        said = f"an example with a NaN makes {path} NaN, and all updates that follow"
        yield StepCheck("nan", said, leaf=path)
    elif not params:
        said = (
            f"an example with a NaN leaves the params as they are and makes {path} NaN, and with "
            "it the next update"
        )
        yield StepCheck("nan", said, leaf=path)
    else:
        yield StepCheck("nan", note="one NaN in a batch makes the params NaN for good")
