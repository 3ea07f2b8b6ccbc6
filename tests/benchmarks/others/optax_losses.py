"""Calls of `optax.losses` and `optax.projections`."""

from __future__ import annotations

import jax
import numpy as np
import optax

from tests.benchmarks.others.call import Calls, Table, array, at, by, every, normal, positive, unit
from tests.benchmarks.others.names import functions

X, Y, LOGITS = normal(3, 4), normal(3, 4), 4 * normal(3, 4)
PROBABILITIES = positive(3, 4) / 4
PROBABILITIES = PROBABILITIES / PROBABILITIES.sum(-1, keepdims=True)
ONE_HOT = np.eye(4, dtype=np.float32)[[0, 2, 2]]
LABELS, SIGNS = np.array([0, 2, 2]), np.sign(normal(3, 4))
BITS = (normal(3, 4) > 0).astype(np.float32)
CTC = (
    normal(2, 6, 4),
    np.zeros((2, 6), np.float32),
    np.array([[1, 2, 0], [2, 2, 1]]),
    array(*(0, 0, 1, 0, 0, 0)).reshape(2, 3),
)

LOSSES: Calls = {
    **every(
        "cosine_distance cosine_similarity huber_loss l2_loss log_cosh squared_error", at(X, Y)
    ),
    **every("hinge_loss perceptron_loss", at(X, SIGNS), at(array(1, -1, 0), array(1, -1, 1))),
    **every(
        "sigmoid_binary_cross_entropy sparsemax_loss sigmoid_focal_loss binary_dice_loss",
        at(LOGITS, BITS),
        at(array(0, 1, -1), array(1, 0, 1)),
    ),
    **every(
        "multiclass_hinge_loss multiclass_perceptron_loss multiclass_sparsemax_loss",
        at(LOGITS, LABELS),
    ),
    **every(
        "softmax_cross_entropy safe_softmax_cross_entropy poly_loss_cross_entropy",
        at(LOGITS, ONE_HOT),
        at(LOGITS, PROBABILITIES),
    ),
    **every(
        "kl_divergence convex_kl_divergence",
        at(np.log(PROBABILITIES), PROBABILITIES[::-1].copy()),
        at(np.log(PROBABILITIES), ONE_HOT),
    ),
    "ctc_loss": [at(*CTC), by(lambda f, x: jax.grad(lambda z: f(z, *CTC[1:]).sum())(x), CTC[0])],
    "ctc_loss_with_forward_probs": [at(*CTC)],
    "dice_loss": [at(LOGITS, ONE_HOT)],
    "generalized_kl_divergence": [
        at(np.log(PROBABILITIES), PROBABILITIES[::-1].copy()),
        at(X, unit(3, 4)),
    ],
    "kl_divergence_with_log_targets": [at(np.log(PROBABILITIES), np.log(PROBABILITIES[::-1]))],
    "make_fenchel_young_loss": [by(lambda f, s, t: f(jax.nn.logsumexp)(s, t), X[0], ONE_HOT[0])],
    "multiclass_generalized_dice_loss": [at(LOGITS, ONE_HOT)],
    "ntxent": [at(X, np.array([0, 1, 0]))],
    "ranking_softmax_loss": [
        at(LOGITS, positive(3, 4)),
        by(lambda f, x, y: f(x, y, where=BITS > 0), LOGITS, positive(3, 4)),
        by(lambda f, x, y: f(x, y, weights=BITS), LOGITS, positive(3, 4)),
    ],
    "smooth_labels": [at(ONE_HOT, 0.1)],
    "softmax_cross_entropy_with_integer_labels": [at(LOGITS, LABELS)],
    "triplet_margin_loss": [at(X, Y, normal(3, 4))],
}

PROJECTIONS: Calls = {
    "projection_box": [at(X, -0.5, 0.5)],
    "projection_halfspace": [at(X[0], Y[0], 0.1)],
    "projection_hypercube": [at(X)],
    "projection_hyperplane": [at(X[0], Y[0], 0.1)],
    "projection_l1_ball": [at(X), at(array(0.1, 0.2)), at(array(2, -1, 0))],
    "projection_l1_sphere": [at(X), at(array(2, -1, 0.5))],
    "projection_l2_ball": [at(X), at(array(0.1, 0.2))],
    "projection_l2_sphere": [at(X)],
    "projection_linf_ball": [at(X)],
    "projection_non_negative": [at(X)],
    "projection_simplex": [at(X), at(X, 2.0), at(array(0.2, 0.3, 0.5)), at(array(1, 1, 0, -1))],
    "projection_vector": [at(X[0], Y[0])],
}


def tables() -> list[Table]:
    """Losses, and projections, on which some of them rest."""
    losses, projections = optax.losses, optax.projections
    beside = {"scale_gradient": [by(lambda f, x: f(x, 0.5), X)]}
    return [
        Table("optax.losses", losses, LOSSES, functions(losses), {}),
        Table("optax.projections", projections, PROJECTIONS, functions(projections), {}),
        Table("optax", optax, beside, ["scale_gradient"], {}),
    ]
