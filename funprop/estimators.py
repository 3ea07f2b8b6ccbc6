"""A classifier and a regressor as scikit-learn has them: thin shells over `funprop.fit`.

They work in a `Pipeline`, in `GridSearchCV` and in `cross_val_score`. Needs scikit-learn:
`pip install 'funprop[train]'`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, Self

import jax
import numpy as np
import optax

from funprop.combinators import serial
from funprop.gradients import backprop
from funprop.layer import Layer
from funprop.layers import dense, relu
from funprop.losses import mean_squared, softmax_cross_entropy
from funprop.objectives import objective
from funprop.params import decayed
from funprop.steps import Step, step
from funprop.train.fit import fit
from funprop.train.progress import for_terminal

try:
    from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
    from sklearn.utils.multiclass import check_classification_targets
    from sklearn.utils.validation import (
        check_is_fitted,
        check_random_state,
        validate_data,
    )
except ModuleNotFoundError:
    raise ModuleNotFoundError(
        "funprop.estimators needs scikit-learn: pip install 'funprop[train]'"
    ) from None

__all__ = ["Classifier", "Regressor"]

OPTIMIZERS: dict[str, Callable[..., optax.GradientTransformation]] = {
    "adam": optax.adam,
    "adamw": functools.partial(optax.adamw, mask=decayed),
    "sgd": optax.sgd,
}


class _Estimator(BaseEstimator):
    """What both have in common."""

    def __init__(
        self,
        hidden: Sequence[int] = (64,),
        *,
        model: Layer | None = None,
        optimizer: str | optax.GradientTransformation = "adam",
        learning_rate: float = 3e-3,
        epochs: int = 100,
        batch_size: int = 32,
        random_state: Any = None,
        verbose: bool = False,
    ) -> None:
        self.hidden = hidden
        self.model = model
        self.optimizer = optimizer
        self.learning_rate = learning_rate
        self.epochs = epochs
        self.batch_size = batch_size
        self.random_state = random_state
        self.verbose = verbose

    def _trained(self, x: Any, y: Any, outputs: int, loss: str) -> Self:
        """`params_`, `history_`, and what standardises the inputs."""
        # Of columns that are all the same, the deviation may be what rounding made of zero.
        self.mean_, deviation = x.mean(0), x.std(0)
        least = 10 * np.finfo(np.float64).eps * np.abs(self.mean_)
        self.deviation_ = np.where(deviation > least, deviation, 1.0)
        inputs = self._standardised(x)
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        model, train = self._step(outputs, loss)
        init_key, train_key = jax.random.split(jax.random.key(seed))
        params = model.init(init_key, inputs)
        result = fit(
            train,
            train.init(params, train_key),
            (inputs, y),
            epochs=self.epochs,
            batch_size=min(self.batch_size, len(inputs)),
            seed=seed,
            progress=for_terminal if self.verbose else None,
        )
        self.params_ = jax.device_get(result.state.params)
        self.history_, self.n_iter_ = result.history, len(result.history)
        self.outputs_ = outputs
        return self

    def _step(self, outputs: int, loss: str) -> tuple[Layer, Step]:
        known = self.model, self.optimizer, self.learning_rate, loss
        return _steps(tuple(self.hidden), outputs, *known)

    def _standardised(self, x: Any) -> Any:
        return ((x - self.mean_) / self.deviation_).astype(np.float32)

    def _outputs(self, x: Any) -> Any:
        check_is_fitted(self)
        x = validate_data(self, x, reset=False, dtype=np.float64)
        forward = _forward(tuple(self.hidden), self.outputs_, self.model)
        # In float64, so that what is said of a row does not hang on the rows beside it.
        with jax.enable_x64(True):
            wide = jax.tree.map(_wide, (self.params_, self._standardised(x)))
            return np.asarray(forward(*wide), np.float64)


class Classifier(ClassifierMixin, _Estimator):
    """A network that tells classes apart, with scikit-learn's interface.

    Args:
      hidden: features of each hidden layer, with relu between; where no model is given.
      model: a layer from `[batch, features]` to logits `[batch, classes]`.
      optimizer: `"adam"`, `"adamw"`, `"sgd"`, or any of optax's, which has its own rate.
      learning_rate: of an optimizer that is given by name.
      epochs, batch_size: how often to go over the data, in batches of how many.
      random_state: of the params and the order of examples: a number, a `RandomState` or `None`.
      verbose: whether progress is shown.

    Attributes:
      classes_: as the labels were.
      params_: as NumPy's arrays.
      history_: as `fit` returns it.

    Example:
      >>> x, y = np.array([[0.0], [0.1], [0.9], [1.0]]), ["no", "no", "yes", "yes"]
      >>> Classifier(epochs=60, random_state=0).fit(x, y).predict([[0.05], [0.95]]).tolist()
      ['no', 'yes']
    """

    def fit(self, X: Any, y: Any) -> Self:  # noqa: N803
        """Train anew. Inputs are standardised."""
        X, y = validate_data(self, X, y, dtype=np.float64)  # noqa: N806
        check_classification_targets(y)
        self.classes_, labels = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(f"y must have two classes at least, got 1 class: {self.classes_[0]}")
        labels = labels.astype(np.int32)
        return self._trained(X, labels, len(self.classes_), "classes")

    def predict_proba(self, X: Any) -> Any:  # noqa: N803
        """How probable each class is, `[examples, classes]`."""
        logits = self._outputs(X)
        shares = np.exp(logits - logits.max(-1, keepdims=True))
        return shares / shares.sum(-1, keepdims=True)

    def predict(self, X: Any) -> Any:  # noqa: N803
        """The most probable class of each example."""
        check_is_fitted(self)
        return self.classes_[self.predict_proba(X).argmax(-1)]


class Regressor(RegressorMixin, _Estimator):
    """A network that predicts numbers, with scikit-learn's interface.

    Args:
      hidden, optimizer, learning_rate, epochs, batch_size, random_state, verbose: as `Classifier`
        takes them.
      model: a layer from `[batch, features]` to `[batch, targets]`, one target too.

    Example:
      >>> x = np.linspace(-1, 1, 50)[:, None]
      >>> model = Regressor(epochs=200, random_state=0).fit(x, 100 * x[:, 0] ** 2)
      >>> model.score(x, 100 * x[:, 0] ** 2) > 0.99
      True
    """

    def fit(self, X: Any, y: Any) -> Self:  # noqa: N803
        """Train anew. Inputs and targets are standardised."""
        X, y = validate_data(  # noqa: N806
            self, X, y, dtype=np.float64, multi_output=True, y_numeric=True
        )
        y = np.asarray(y, np.float64)
        self.shape_ = y.shape[1:]
        y = y.reshape(len(y), -1)
        self.target_mean_, deviation = y.mean(0), y.std(0)
        self.target_deviation_ = np.where(deviation > 0, deviation, 1.0)
        y = ((y - self.target_mean_) / self.target_deviation_).astype(np.float32)
        return self._trained(X, y, y.shape[1], "numbers")

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags

    def predict(self, X: Any) -> Any:  # noqa: N803
        """A number for each example, or one for each target."""
        y = self._outputs(X) * self.target_deviation_ + self.target_mean_
        return y.reshape(len(y), *self.shape_)


def _wide(leaf: Any) -> Any:
    return leaf.astype(np.float64) if np.issubdtype(leaf.dtype, np.floating) else leaf


def _perceptron(hidden: tuple[int, ...], outputs: int) -> Layer:
    between = [part for width in hidden for part in (dense(width), relu())]
    return serial(*between, dense(outputs))


@functools.lru_cache(maxsize=32)
def _forward(hidden: tuple[int, ...], outputs: int, model: Layer | None) -> Callable[..., Any]:
    model = model or _perceptron(hidden, outputs)
    return jax.jit(lambda params, x: model.forward(params, x)[0])


@functools.lru_cache(maxsize=32)
def _steps(
    hidden: tuple[int, ...],
    outputs: int,
    model: Layer | None,
    optimizer: Any,
    rate: float,
    loss: str,
) -> tuple[Layer, Step]:
    """Kept, since a step of its own compiles anew: a search fits hundreds that are alike."""
    network = model or _perceptron(hidden, outputs)
    whole = objective(network, softmax_cross_entropy() if loss == "classes" else mean_squared())
    if isinstance(optimizer, str):
        if optimizer not in OPTIMIZERS:
            known = ", ".join(OPTIMIZERS)
            raise ValueError(f"unknown optimizer {optimizer!r}, there are {known}, or optax's")
        optimizer = OPTIMIZERS[optimizer](rate)
    return network, step(backprop(whole), optimizer)
