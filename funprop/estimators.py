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
from funprop.steps import Step, step
from funprop.train.fit import fit
from funprop.train.progress import for_terminal
from funprop.train.runs import choices
from funprop.values import number_within

try:
    from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
    from sklearn.utils.multiclass import check_classification_targets
    from sklearn.utils.validation import (
        _check_sample_weight,
        check_is_fitted,
        check_random_state,
        validate_data,
    )
except ModuleNotFoundError:
    raise ModuleNotFoundError(
        "funprop.estimators needs scikit-learn: pip install 'funprop[train]'"
    ) from None

__all__ = ["Classifier", "Regressor"]

PRECISIONS = np.float64, np.float32
OPTIMIZERS = {name: choices.OPTIMIZERS[name] for name in ("adam", "adamw", "sgd")}


class _Estimator(BaseEstimator):
    """What both have in common."""

    def __init__(
        self,
        hidden: Sequence[int] = (64,),
        *,
        model: Layer | Callable[[], Layer] | None = None,
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

    def _weighed(self, x: Any, y: Any, sample_weight: Any) -> tuple[Any, Any, Any]:
        """What has a weight, and the weights, of 1 on average; `None` where all count alike."""
        if sample_weight is None:
            return x, y, None
        weights = _check_sample_weight(sample_weight, x, dtype=np.float64, ensure_non_negative=True)
        if not weights.any():
            raise ValueError("sample_weight must be above zero somewhere, got zeros")
        counted = weights > 0
        weights = weights[counted]
        return x[counted], y[counted], weights / weights.mean()

    def _trained(self, x: Any, y: Any, weights: Any, outputs: int, loss: str) -> Self:
        """`params_`, `history_`, and what standardises the inputs: in the precision of `x`."""
        # Of columns that are all the same, the deviation may be what rounding made of zero.
        self.mean_, deviation = _mean_and_deviation(x, weights)
        least = 10 * np.finfo(np.float64).eps * np.abs(self.mean_)
        self.deviation_ = np.where(deviation > least, deviation, 1.0)
        inputs = self._standardised(x)
        data = (inputs, y) if weights is None else (inputs, y, weights.astype(inputs.dtype))
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        model, train = self._step(outputs, loss)
        init_key, train_key = jax.random.split(jax.random.key(seed))
        params = model.init(init_key, inputs.astype(np.float32))
        self._check_outputs(model, params, inputs, outputs)
        with jax.enable_x64(inputs.dtype == np.float64):
            params = jax.tree.map(_wide, params) if inputs.dtype == np.float64 else params
            result = fit(
                train,
                train.init(params, train_key),
                data,
                epochs=self.epochs,
                batch_size=min(self.batch_size, len(inputs)),
                seed=seed,
                progress=for_terminal if self.verbose else None,
            )
        if "diverged" in result.stopped:
            raise ValueError(f"training went wrong, {result.stopped}: lower learning_rate")
        self.params_ = jax.device_get(result.state.params)
        self.history_, self.n_iter_ = result.history, len(result.history)
        self.outputs_ = outputs
        return self

    def _step(self, outputs: int, loss: str) -> tuple[Layer, Step]:
        if isinstance(self.hidden, str) or not isinstance(self.hidden, Sequence | np.ndarray):
            raise TypeError(f"hidden must be widths of layers, as (64,) is, got {self.hidden!r}")
        number_within(self.learning_rate, "learning_rate", lambda x: x > 0, "above 0")
        known = self.model, self.optimizer, self.learning_rate, loss
        return _steps(tuple(self.hidden), outputs, *known)

    def _check_outputs(self, model: Layer, params: Any, x: Any, outputs: int) -> None:
        """Of a model that was given: a column for each class, or each target."""
        given = jax.eval_shape(lambda p, x: model.forward(p, x)[0], params, x)
        shape = getattr(given, "shape", None)
        if shape != (len(x), outputs):
            raise ValueError(f"model must give outputs of shape {(len(x), outputs)}, got {shape}")

    def _standardised(self, x: Any) -> Any:
        return ((x - self.mean_) / self.deviation_).astype(_precision(x))

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
      model: a layer from `[batch, features]` to logits `[batch, classes]`; or a function that makes
        one, which pickle knows by its name, as it knows no layer.
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
      >>> model = Classifier(optimizer="sgd", learning_rate=0.3, epochs=60, random_state=0)
      >>> model.fit(x, y).predict([[0.05], [0.95]]).tolist()
      ['no', 'yes']
    """

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:  # noqa: N803
        """Train anew. Inputs are standardised; what is trained is in the precision of `X`."""
        X, y = validate_data(self, X, y, dtype=PRECISIONS)  # noqa: N806
        check_classification_targets(y)
        X, y, weights = self._weighed(X, y, sample_weight)  # noqa: N806
        self.classes_, labels = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(f"y must have two classes at least, got 1 class: {self.classes_[0]}")
        labels = labels.astype(np.int32)
        return self._trained(X, labels, weights, len(self.classes_), "classes")

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
      >>> momentum = optax.sgd(0.02, momentum=0.9)
      >>> model = Regressor(optimizer=momentum, epochs=400, random_state=0)
      >>> model.fit(x, 100 * x[:, 0] ** 2).score(x, 100 * x[:, 0] ** 2) > 0.99
      True
    """

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:  # noqa: N803
        """Train anew. Inputs and targets are standardised; the precision is that of `X`."""
        X, y = validate_data(  # noqa: N806
            self, X, y, dtype=PRECISIONS, multi_output=True, y_numeric=True
        )
        X, y, weights = self._weighed(X, np.asarray(y, np.float64), sample_weight)  # noqa: N806
        self.shape_ = y.shape[1:]
        y = y.reshape(len(y), -1)
        self.target_mean_, deviation = _mean_and_deviation(y, weights)
        self.target_deviation_ = np.where(deviation > 0, deviation, 1.0)
        y = ((y - self.target_mean_) / self.target_deviation_).astype(_precision(X))
        return self._trained(X, y, weights, y.shape[1], "numbers")

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags

    def predict(self, X: Any) -> Any:  # noqa: N803
        """A number for each example, or one for each target."""
        y = self._outputs(X) * self.target_deviation_ + self.target_mean_
        return y.reshape(len(y), *self.shape_)


def _precision(x: Any) -> Any:
    """To train in: that of the inputs; off a CPU float32, as float64 is slow there or missing."""
    return x.dtype if jax.default_backend() == "cpu" else np.float32


def _mean_and_deviation(x: Any, weights: Any) -> tuple[Any, Any]:
    """Of each column."""
    x = np.asarray(x, np.float64)
    mean = np.average(x, axis=0, weights=weights)
    return mean, np.sqrt(np.average((x - mean) ** 2, axis=0, weights=weights))


def _wide(leaf: Any) -> Any:
    return leaf.astype(np.float64) if np.issubdtype(leaf.dtype, np.floating) else leaf


def _network(
    model: Layer | Callable[[], Layer] | None, hidden: tuple[int, ...], outputs: int
) -> Layer:
    """The model that was given, or made; or a perceptron."""
    if model is not None:
        return model() if callable(model) else model
    between = [part for width in hidden for part in (dense(width), relu())]
    return serial(*between, dense(outputs))


@functools.lru_cache(maxsize=32)
def _forward(hidden: tuple[int, ...], outputs: int, model: Any) -> Callable[..., Any]:
    network = _network(model, hidden, outputs)
    return jax.jit(lambda params, x: network.forward(params, x)[0])


@functools.lru_cache(maxsize=32)
def _steps(
    hidden: tuple[int, ...],
    outputs: int,
    model: Layer | Callable[[], Layer] | None,
    optimizer: Any,
    rate: float,
    loss: str,
) -> tuple[Layer, Step]:
    """Kept, since a step of its own compiles anew: a search fits hundreds that are alike."""
    network = _network(model, hidden, outputs)
    whole = objective(network, softmax_cross_entropy() if loss == "classes" else mean_squared())
    if isinstance(optimizer, str):
        if optimizer not in OPTIMIZERS:
            known = ", ".join(OPTIMIZERS)
            raise ValueError(f"unknown optimizer {optimizer!r}, there are {known}, or optax's")
        optimizer = OPTIMIZERS[optimizer](rate)
    return network, step(backprop(whole), optimizer)
