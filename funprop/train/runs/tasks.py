"""The data sets that `funprop train` knows, each with its models, its loss and what it reports."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from funprop.combinators import serial
from funprop.layers import lstm, reshape, sigmoid
from funprop.losses import binary_cross_entropy, mean_squared, softmax_cross_entropy
from funprop.metrics import absolute_error, accuracy, binary_accuracy
from funprop.models import autoencoder, cnn, mlp, rnn
from funprop.train.data.in_memory import split
from funprop.train.task import Task

if TYPE_CHECKING:
    from funprop.typing import Array, Float

HELD_OUT = 0.2
SPLIT_SEED = 0  # the split never depends on the seed of a run, so that runs compare
NOISE = 0.3  # the standard deviation, where pixels are from 0 to 1
NOISY_COPIES = 8  # of every picture to train on, each with noise of its own


def _argmax(outputs: Float[Array, "n c"]) -> Any:
    return np.asarray(outputs).argmax(-1)


def digits() -> Task:
    """Handwritten digits, 8 x 8 pixels, 10 classes, 1,797 examples (UCI, through scikit-learn)."""
    data = _sklearn().load_digits()
    inputs = (data.data / 16).astype(np.float32)
    train, test = split((inputs, data.target.astype(np.int32)), HELD_OUT, SPLIT_SEED)
    return Task(
        title="handwritten digits",
        train=train,
        test=test,
        models={
            "mlp": lambda: mlp(128, 64, 10),
            "cnn": lambda: serial(reshape(8, 8, 1), cnn(10)),
            "rnn": lambda: serial(reshape(8, 8), rnn(10, lstm(128))),  # row by row
        },
        loss=softmax_cross_entropy(),
        metrics={"accuracy": accuracy},
        classes=tuple("0123456789"),
        decide=_argmax,
        image_shape=(8, 8),
    )


def digits_denoise() -> Task:
    """The same digits with Gaussian noise on them; the target is the picture without."""
    data = _sklearn().load_digits()
    pictures = (data.data / 16).astype(np.float32).reshape(-1, 8, 8, 1)
    (train, _), (test, _) = split((pictures, data.target), HELD_OUT, SPLIT_SEED)
    rng = np.random.default_rng(SPLIT_SEED)

    def noisy(clean: Float[np.ndarray, "n 8 8 1"]) -> tuple[Any, Any]:
        return clean + NOISE * rng.standard_normal(clean.shape, np.float32), clean

    return Task(
        title="handwritten digits out of noise",
        train=noisy(np.tile(train, (NOISY_COPIES, 1, 1, 1))),
        test=noisy(test),
        models={"autoencoder": lambda: serial(autoencoder((8, 8, 1)), sigmoid())},
        loss=mean_squared(),
        metrics={"absolute_error": absolute_error},
        classes=(),
        decide=np.asarray,
        image_shape=(8, 8),
        learning_rate=2e-3,
        epochs=20,
    )


def iris() -> Task:
    """Three species of iris from four measures, 150 examples (Fisher 1936)."""
    data = _sklearn().load_iris()
    train, test = _standardised(data.data, data.target.astype(np.int32))
    return Task(
        title="iris",
        train=train,
        test=test,
        models={"mlp": lambda: mlp(16, 3)},
        loss=softmax_cross_entropy(),
        metrics={"accuracy": accuracy},
        classes=tuple(map(str, data.target_names)),
        decide=_argmax,
        learning_rate=1e-2,
        batch_size=16,
    )


def breast_cancer() -> Task:
    """Malignant or benign from thirty measures, 569 examples (Wisconsin): a binary loss."""
    data = _sklearn().load_breast_cancer()
    train, test = _standardised(data.data, data.target.astype(np.int32))
    return Task(
        title="breast cancer",
        train=train,
        test=test,
        models={"mlp": lambda: serial(mlp(16, 1), reshape())},
        loss=binary_cross_entropy(),
        metrics={"accuracy": binary_accuracy},
        classes=tuple(map(str, data.target_names)),
        decide=lambda logits: (np.asarray(logits) > 0).astype(int),
        learning_rate=3e-3,
        batch_size=32,
    )


def diabetes() -> Task:
    """Progression of diabetes after a year from ten measures, 442 examples: a regression."""
    data = _sklearn().load_diabetes()
    (x, y), (x_test, y_test) = _standardised(data.data, data.target.astype(np.float32))
    mean, deviation = float(y.mean()), float(y.std())
    return Task(
        title="diabetes",
        train=(x, (y - mean) / deviation),
        test=(x_test, (y_test - mean) / deviation),
        models={"mlp": lambda: serial(mlp(32, 1), reshape())},
        loss=mean_squared(),
        metrics={"absolute_error": absolute_error},
        classes=(),
        decide=np.asarray,
        unit=("disease progression", mean, deviation),
        learning_rate=3e-3,
        batch_size=32,
    )


TASKS: dict[str, Callable[[], Task]] = {
    "digits": digits,
    "digits-denoise": digits_denoise,
    "iris": iris,
    "breast-cancer": breast_cancer,
    "diabetes": diabetes,
}


def task(name: str) -> Task:
    """The task of that name.

    Raises:
      ValueError: there is none of that name.
    """
    if name == "stdlib":
        raise ValueError("stdlib is text, which funprop.train.runs.text.train trains on")
    if name not in TASKS:
        raise ValueError(f"unknown data set {name!r}, there are {', '.join(TASKS)}, stdlib")
    return TASKS[name]()


def _standardised(inputs: Any, targets: Any) -> tuple[Any, Any]:
    """Train and test, the inputs with mean 0 and deviation 1 over the training part."""
    (x, y), (x_test, y_test) = split((inputs, targets), HELD_OUT, SPLIT_SEED)
    mean, deviation = x.mean(0), x.std(0)

    def scaled(part: Any) -> Any:
        return ((part - mean) / deviation).astype(np.float32)

    return (scaled(x), y), (scaled(x_test), y_test)


def _sklearn() -> Any:
    try:
        import sklearn.datasets
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            "the data sets need scikit-learn: pip install 'funprop[train]'"
        ) from None
    return sklearn.datasets
