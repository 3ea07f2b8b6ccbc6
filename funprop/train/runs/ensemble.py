"""Many classifiers as one: how right they are together, and how much their probabilities can be
trusted."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from funprop.typing import Float, Int

BINS = 15  # of confidence


class Trust(NamedTuple):
    """Of probabilities, averaged over the members that gave them.

    Attributes:
      accuracy: the share of examples whose likeliest class is the true one.
      log_loss: the mean of `-log p` of the true class.
      calibration: the expected calibration error: how far confidence and accuracy are apart, over
        15 equal bins of confidence (Naeini et al., AAAI 2015).
      disagreement: the mutual information of class and member, in nats: zero where all members
        agree (Lakshminarayanan et al., arXiv:1612.01474; Houlsby et al., arXiv:1112.5745).
    """

    accuracy: float
    log_loss: float
    calibration: float
    disagreement: float


def trust(probabilities: Float[np.ndarray, "members n c"], truth: Int[np.ndarray, " n"]) -> Trust:
    """How right they are, on examples that none was trained on.

    Example:
      >>> sure, other = [[0.9, 0.1]], [[0.1, 0.9]]
      >>> found = trust(np.array([sure, other]), np.array([0]))
      >>> round(found.log_loss, 3), round(found.disagreement, 3)
      (0.693, 0.368)
    """
    p = np.asarray(probabilities, np.float64)
    mean = p.mean(0)
    right = mean.argmax(-1) == truth
    tiny = np.finfo(np.float64).tiny
    log_loss = -np.log(np.maximum(mean[np.arange(len(truth)), truth], tiny)).mean()
    apart = _entropy(mean).mean() - _entropy(p).mean()
    return Trust(
        float(right.mean()), float(log_loss), _calibration(mean.max(-1), right), float(apart)
    )


def _entropy(p: Float[np.ndarray, "*n c"]) -> Float[np.ndarray, "*n"]:
    return -(p * np.log(np.maximum(p, np.finfo(np.float64).tiny))).sum(-1)


def _calibration(confidence: Float[np.ndarray, " n"], right: Float[np.ndarray, " n"]) -> float:
    bins = np.minimum((confidence * BINS).astype(int), BINS - 1)
    gaps = [abs(confidence[bins == b].sum() - right[bins == b].sum()) for b in np.unique(bins)]
    return float(sum(gaps) / len(right))


def softmax(logits: Float[np.ndarray, "*n c"]) -> Float[np.ndarray, "*n c"]:
    """Probabilities of logits; of one column, those of the two classes it tells apart.

    Example:
      >>> softmax(np.array([[0.0, 0.0]])).tolist(), softmax(np.array([[0.0]])).tolist()
      ([[0.5, 0.5]], [[0.5, 0.5]])
    """
    z = np.asarray(logits, np.float64)
    z = np.concatenate([np.zeros_like(z), z], -1) if z.shape[-1] == 1 else z
    p = np.exp(z - z.max(-1, keepdims=True))
    return p / p.sum(-1, keepdims=True)
