"""A task: data, a model, a loss, and what is told of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from funprop.checks import described
from funprop.layer import Layer
from funprop.metrics import absolute_error, accuracy, binary_accuracy
from funprop.train.data.in_memory import arrays
from funprop.trees import is_float


@dataclass(frozen=True, kw_only=True)
class Task:
    """What `funprop train my_module:task` trains: a data set, and how a network is trained on it.

    Attributes:
      train, test: `(inputs, targets)` or `(inputs, targets, weights)`, arrays of equal length; the
        second is not trained on.
      model: a layer, or a function without arguments that makes one.
      loss: from outputs and targets.
      models: in the place of `model`, several that `--model` chooses from, by name.
      metrics: beside the loss, by name; the first is drawn. Left out, the accuracy for classes, the
        absolute error for numbers.
      classes: their names, in the order of the labels; left out, `"0"`, `"1"` and so on.
      decide: from outputs to what is predicted: class numbers, or values. Left out, the largest
        output, whether a lone logit is above zero, or the outputs themselves.
      unit: of a target that is a number: `(name, mean, standard deviation)`, where the targets here
        are `(value - mean) / deviation`.
      image_shape: of an input, where it is a picture: `(h, w)` or `(h, w, c)`.
      optimizer: `"adam"`, `"adamw"`, `"momentum"` or `"sgd"`.
      weight_decay: of `"adamw"`, on weights and tables.
      learning_rate, epochs, batch_size: what suits the data, where none is asked for.
      title: for headings.
      notes: lines that are printed below it.
      parts: of several targets, each by itself: tasks with its targets. Then outputs, and targets,
        are tuples.
      write: writes into the run's folder what `funprop predict` needs beside the params.

    Raises:
      TypeError: the data are no arrays of numbers, or the loss no layer.
      ValueError: the data are uneven, empty or not finite; there is no model, or one by two names.

    Example:
      >>> import funprop as fp
      >>> x = np.linspace(-1, 1, 40, dtype=np.float32)[:, None]
      >>> task = Task(train=(x, 3 * x), test=(x, 3 * x), model=fp.dense(1), loss=fp.mean_squared())
      >>> task
      Task(40 examples to train on, 40 held out; dense; mean_squared)
    """

    train: Any
    test: Any
    loss: Layer
    model: Layer | Callable[[], Layer] | None = None
    models: Mapping[str, Layer | Callable[[], Layer]] = field(default_factory=dict)
    metrics: Mapping[str, Any] | None = None
    classes: tuple[str, ...] = ()
    decide: Callable[[Any], Any] | None = None
    unit: tuple[str, float, float] = ("", 0.0, 1.0)
    image_shape: tuple[int, ...] = ()
    optimizer: str = "adam"
    weight_decay: float = 1e-4
    learning_rate: float = 1e-3
    epochs: int = 30
    batch_size: int = 64
    title: str = ""
    notes: tuple[str, ...] = ()
    parts: tuple[Task, ...] = ()
    write: Callable[[Path], None] | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.loss, Layer):
            raise TypeError(f"loss must be a layer, got {described(self.loss)}")
        if (self.model is None) == (not self.models):
            raise ValueError("a task must have one of model and models")
        for name in ("train", "test"):
            object.__setattr__(self, name, arrays(getattr(self, name), name))
        widths = [
            [leaf.shape[1:] for leaf in jax.tree.leaves(d[0])] for d in (self.train, self.test)
        ]
        if widths[0] != widths[1]:
            raise ValueError(f"train and test must have inputs alike, got {widths[0]}, {widths[1]}")
        for name, model in self.models.items():
            if not (isinstance(model, Layer) or callable(model)):
                raise TypeError(f"models: {name} must be a layer, got {described(model)}")

    def __repr__(self) -> str:
        n, n_test = (len(jax.tree.leaves(data)[0]) for data in (self.train, self.test))
        told = f"{n} examples to train on, {n_test} held out"
        return f"Task({told}; {', '.join(self.names)}; {self.loss.name})"

    @property
    def names(self) -> tuple[str, ...]:
        """Of its models; the first is the one that is built if none is named."""
        if self.models:
            return tuple(self.models)
        return (getattr(self.model, "name", None) or "model",)

    def built(self, name: str) -> Layer:
        """The model of that name.

        Raises:
          TypeError: what should make it makes something else.
        """
        made = self.models[name] if self.models else self.model
        made = made if isinstance(made, Layer) else made() if callable(made) else made
        if not isinstance(made, Layer):
            raise TypeError(f"model must be a layer, or make one, got {described(made)}")
        return made

    def told_of(self, model: Layer) -> Task:
        """With metrics, classes, `decide` and the shape of pictures where they were left out, as
        the shapes of outputs and targets say.

        Raises:
          TypeError, ValueError: the model does not take the inputs.
        """
        inputs, targets = self.train[:2]
        specs = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), inputs)
        params = jax.eval_shape(model.init, jax.random.key(0), specs)
        outputs = jax.eval_shape(lambda p, x: model.forward(p, x)[0], params, specs)
        metrics, decide, classes = _from_shapes(outputs, targets)
        shape = getattr(inputs, "shape", ())[1:]
        pictures = shape if len(shape) == 3 and shape[-1] in (1, 3) else ()
        return replace(
            self,
            metrics=metrics if self.metrics is None else self.metrics,
            decide=self.decide or decide,
            classes=self.classes or (() if self.decide or self.parts else classes),
            image_shape=self.image_shape or pictures,
        )


def _from_shapes(outputs: Any, targets: Any) -> tuple[dict[str, Any], Any, tuple[str, ...]]:
    """Metrics, what decides, and the names of classes."""
    if not (hasattr(outputs, "shape") and hasattr(targets, "shape")):
        return {}, lambda outputs: outputs, ()
    whole = not is_float(targets)
    if whole and outputs.ndim == 2 and targets.shape == outputs.shape[:1]:
        names = tuple(map(str, range(outputs.shape[1])))
        return {"accuracy": accuracy}, lambda logits: np.asarray(logits).argmax(-1), names
    if whole and outputs.shape == targets.shape and set(np.unique(targets)) <= {0, 1}:
        metrics = {"accuracy": binary_accuracy}
        return metrics, lambda logits: (np.asarray(logits) > 0).astype(int), ("0", "1")
    if outputs.shape == targets.shape:
        return {"absolute_error": absolute_error}, np.asarray, ()
    return {}, np.asarray, ()
