"""A NaN planted in every family of layers, forward and backward, is found where it was planted."""

import functools

import jax
import numpy as np
import pytest

import funprop as fp
from tests.plants import plantable_everywhere, planted

KEY = jax.random.key(0)
draw = np.random.default_rng(0)
ROWS = draw.normal(size=(4, 6)).astype(np.float32)
PICTURES = draw.normal(size=(2, 8, 8, 3)).astype(np.float32)
SERIES = draw.normal(size=(2, 5, 3)).astype(np.float32)
LABELS = draw.integers(0, 4, 4)
TOKENS = draw.integers(0, 16, (2, 9))
EVERY = ("activation", "residual", "cotangent", "gradient")
NO_PARAMS = ("activation", "residual", "cotangent")
LINEAR = ("activation", "cotangent")  # keeps no number, and has no params
TABLE = ("activation", "gradient")  # of whole numbers there is no cotangent

shared = fp.reparam(
    fp.serial(fp.dense(3, bias=False), fp.dense(6, bias=False)),
    expand=lambda w: (fp.DenseParams(w, None), fp.DenseParams(w.T, None)),
    initial=lambda params: params[0].w,
)
tied = fp.serial(fp.dense(6), shared)
deep = fp.serial(
    fp.dense(6),
    fp.named("deep", fp.repeat(fp.residual(fp.serial(fp.layer_norm(), fp.dense(6), fp.gelu())), 3)),
    fp.dropout(0.3),
    fp.serial(fp.parallel(fp.dense(8), fp.named("side", fp.tanh())), fp.concatenate()),
    fp.gated(fp.silu()),
    fp.dense(4),
    fp.log_softmax(),
)
pictures = fp.serial(
    *(fp.conv(4, 3), fp.batch_norm(), fp.relu(), fp.max_pool(2)),
    *(fp.upsample(2), fp.group_norm(2), fp.average_pool(2), fp.conv_transpose(4, 2)),
    *(fp.flatten(), fp.dense(4)),
)
series = fp.serial(fp.dense(3), fp.lstm(4), fp.gru(4), fp.last_step(), fp.dense(4))
text = fp.serial(
    fp.embedding(16, 8),
    fp.learned_positions(8),
    fp.named(
        "blocks",
        fp.repeat(
            fp.serial(
                fp.residual(fp.serial(fp.rms_norm(), fp.self_attention(8, 2, rotary=1e4))),
                fp.named("network", fp.remat(fp.serial(fp.dense(8), fp.softmax()))),
            ),
            3,
        ),
    ),
    fp.dense(16),
)
ENTROPY = fp.softmax_cross_entropy()
MODELS = {
    "deep": (fp.objective(deep, ENTROPY), (ROWS, LABELS)),
    "pictures": (fp.objective(pictures, ENTROPY), (PICTURES, LABELS[:2])),
    "series": (fp.objective(series, ENTROPY), (SERIES, LABELS[:2])),
    "tied": (fp.objective(tied, fp.mean_squared()), (ROWS, ROWS)),
    "text": (fp.objective(text, ENTROPY), (TOKENS[:, :-1], TOKENS[:, 1:])),
}
PLACES = [  # the model, the planted layer and which copy, the kinds of plants
    ("deep", "dense_0", ("activation", "residual", "gradient")),
    ("deep", "deep[0]/layer_norm", EVERY),
    ("deep", "deep[1]/dense", EVERY),
    ("deep", "deep[2]/gelu", NO_PARAMS),
    ("deep", "dropout", LINEAR),
    ("deep", "serial/parallel/side", NO_PARAMS),
    ("deep", "serial/concatenate", LINEAR),
    ("deep", "silu", NO_PARAMS),
    ("deep", "log_softmax", NO_PARAMS),
    ("deep", "softmax_cross_entropy", NO_PARAMS),
    ("pictures", "conv", ("activation", "residual", "gradient")),
    ("pictures", "batch_norm", EVERY),
    ("pictures", "max_pool", LINEAR),
    ("pictures", "upsample", LINEAR),
    ("pictures", "group_norm", EVERY),
    ("pictures", "average_pool", LINEAR),
    ("pictures", "conv_transpose", EVERY),
    ("series", "lstm", EVERY),
    ("series", "gru", EVERY),
    ("series", "last_step", LINEAR),
    ("tied", "reparam", EVERY),
    ("tied", "mean_squared", NO_PARAMS),
    ("text", "embedding", TABLE),
    ("text", "learned_positions", LINEAR),
    ("text", "blocks[1]/residual/self_attention/core", NO_PARAMS),
    ("text", "blocks[0]/residual/rms_norm", EVERY),
    ("text", "blocks[2]/network/softmax", NO_PARAMS),
]
PLANTS = [(model, where, kind) for model, where, kinds in PLACES for kind in kinds]
QUICK = [
    ("tied", "mean_squared", "residual"),
    ("deep", "deep[1]/dense", "gradient"),
    ("deep", "deep[2]/gelu", "cotangent"),
]


@functools.cache  # one for all the plants in a model: they differ in params alone
def ready(name):
    model, batch = MODELS[name]
    objective = plantable_everywhere(model)
    params = objective.init(KEY, batch)
    assert fp.first_nonfinite(objective, params, batch, KEY) is None
    return objective, params, batch


def those(plants, slow=()):
    return [pytest.param(*p, id=" ".join(p), marks=slow) for p in plants]


@pytest.mark.parametrize(
    "name, where, kind",
    those(QUICK) + those([p for p in PLANTS if p not in QUICK], pytest.mark.slow),
)
def test_the_planted_layer_and_kind_are_named(name, where, kind):
    objective, params, batch = ready(name)
    found = fp.first_nonfinite(objective, planted(params, where, kind), batch, KEY)
    during = "forward" if kind in ("activation", "residual") else "backward"
    path = found.path.removeprefix("serial/")  # the model's own name
    assert (found.kind, path, found.during) == (kind, where, during)
    assert found.numbers.nan == 1
