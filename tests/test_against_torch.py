"""Layers and losses are PyTorch's: forward and every gradient, on the same weights, in float64.

Skipped without PyTorch, which nothing else here needs.
"""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import funprop as fp
from funprop.trees import is_float
from tests.cases import Case, both, build, distribution, labels, normal, positive, seen

pytestmark = pytest.mark.usefixtures("any_ranks")

torch = pytest.importorskip("torch")
F = torch.nn.functional


# ------------------------------------------------------------------------------- PyTorch's layouts


def over_space(x, function, *weights, **how):
    """Of channels last what PyTorch computes of channels first."""
    return function(x.movedim(-1, 1), *weights, **how).movedim(1, -1)


def conv(function, **how):
    return lambda p, x: over_space(x, function, p.w.movedim((-1, -2), (0, 1)), p.b, **how)


def conv_transpose(function, **how):
    """Our kernel stands as that of a convolution over the spread input: PyTorch's, flipped."""

    def reference(p, x):
        w = p.w.flip(tuple(range(p.w.ndim - 2))).movedim((-2, -1), (0, 1))
        return over_space(x, function, w, p.b, **how)

    return reference


def lstm(p, x):
    return over_time(torch.nn.LSTM, x, p.w_x, p.w_h, p.b, torch.zeros_like(p.b))


def gru(p, x):
    """Of PyTorch's second bias, only the part inside the reset gate does not add to the first."""
    inside = torch.cat([torch.zeros_like(p.b[: -len(p.b_h)]), p.b_h])
    return over_time(torch.nn.GRU, x, p.w_x, p.w_h, p.b, inside)


def over_time(make, x, w_x, w_h, b, b_h):
    """Hidden states of every step and the last of each sequence; with lengths, packed."""
    module = make(len(w_x), len(w_h), batch_first=True, dtype=torch.float64)
    weights = {
        "weight_ih_l0": w_x.T,
        "weight_hh_l0": w_h.T,
        "bias_ih_l0": b,
        "bias_hh_l0": b_h,
    }
    if not isinstance(x, tuple):
        return torch.func.functional_call(module, weights, (x,))
    x, lengths = x
    packed = torch.nn.utils.rnn.pack_padded_sequence(x, lengths, True, enforce_sorted=False)
    y, last = torch.func.functional_call(module, weights, (packed,))
    return torch.nn.utils.rnn.pad_packed_sequence(y, True, total_length=x.shape[1]), last


def attention(heads, kv_heads, **how):
    def reference(_, x):
        x, mask = x if isinstance(x, tuple) else (x, None)
        masked = how if mask is None else how | {"attn_mask": mask[:, None, None]}
        parts = x.unflatten(-1, (heads + 2 * kv_heads, -1)).transpose(1, 2)
        q, k, v = parts.split((heads, kv_heads, kv_heads), 1)
        y = F.scaled_dot_product_attention(q, k, v, enable_gqa=heads != kv_heads, **masked)
        return y.transpose(1, 2).flatten(2)

    return reference


def multi_head(p, x):
    inner, _, outer = p
    module = torch.nn.MultiheadAttention(x.shape[-1], 2, batch_first=True, dtype=torch.float64)
    weights = {
        "in_proj_weight": inner.w.T,
        "in_proj_bias": inner.b,
        "out_proj.weight": outer.w.T,
        "out_proj.bias": outer.b,
    }
    later = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
    how = {"attn_mask": later, "is_causal": True, "need_weights": False}
    return torch.func.functional_call(module, weights, (x, x, x), how)[0]


def summed(terms, weights=1):
    weights = torch.ones_like(terms) * weights
    return fp.Sum((terms * weights).sum(), weights.sum())


def cross_entropy(logits, targets, *weights, **how):
    targets = targets if targets.is_floating_point() else targets.long()
    terms = F.cross_entropy(logits.movedim(-1, 1), targets, reduction="none", **how)
    return summed(terms, *weights)


# ----------------------------------------------------------------------------------------- inputs


def ties(*shape):
    return lambda rng: jnp.round(normal(*shape)(rng))


def with_ignored(logits, *shape, classes):
    """Labels, some of them what PyTorch takes for none, and weights that leave those out."""

    def make(rng):
        x, known = logits(rng), labels(*shape, classes=classes)(rng)
        known = jnp.where(rng.random(shape) < 0.4, -100, known)
        return x, known, (known != -100).astype(jnp.int32)

    return make


SEQUENCES = both(normal(3, 5, 2), lambda rng: jnp.array([2, 5, 1]))


# ------------------------------------------------------------------------------------------ table

TABLE = [
    (Case("dense", fp.dense(4), normal(2, 3, 5)), lambda p, x: F.linear(x, p.w.T, p.b)),
    (
        Case("embedding", fp.embedding(6, 3), labels(2, 9, classes=6)),
        lambda p, x: F.embedding(x, p.table),
    ),
    (Case("relu", fp.relu(), normal(5, 6)), lambda _, x: F.relu(x)),
    (Case("leaky_relu", fp.leaky_relu(), normal(5, 6)), lambda _, x: F.leaky_relu(x)),
    (Case("elu", fp.elu(0.3), normal(5, 6)), lambda _, x: F.elu(x, 0.3)),
    (Case("gelu", fp.gelu(), normal(5, 6)), lambda _, x: F.gelu(x)),
    (Case("gelu_tanh", fp.gelu_tanh(), normal(5, 6)), lambda _, x: F.gelu(x, approximate="tanh")),
    (Case("silu", fp.silu(), normal(5, 6)), lambda _, x: F.silu(x)),
    (Case("tanh", fp.tanh(), normal(5, 6)), lambda _, x: F.tanh(x)),
    (Case("sigmoid", fp.sigmoid(), normal(5, 6)), lambda _, x: F.sigmoid(x)),
    (Case("softplus", fp.softplus(), normal(5, 6)), lambda _, x: F.softplus(x)),
    (Case("softmax", fp.softmax(1), normal(2, 4, 3)), lambda _, x: F.softmax(x, 1)),
    (Case("log_softmax", fp.log_softmax(), normal(5, 6)), lambda _, x: F.log_softmax(x, -1)),
    # PyTorch's sigmoid is of the second half.
    (Case("gated", fp.gated(fp.sigmoid()), normal(3, 8)), lambda _, x: F.glu(x.roll(4, -1))),
    # ---------------------------------------------------------------------------- convolutions
    (
        Case("conv1d", fp.conv(4, (3,), stride=2, padding="valid"), normal(2, 8, 3)),
        conv(F.conv1d, stride=2),
    ),
    (
        Case("conv2d", fp.conv(4, (3, 2), bias=False), normal(2, 5, 4, 3)),
        conv(F.conv2d, padding="same"),
    ),
    (
        Case(
            "conv2d-all-choices",
            fp.conv(6, (3, 2), stride=(2, 1), padding=((2, 2), (1, 1)), dilation=(2, 1), groups=2),
            normal(2, 7, 5, 4),
        ),
        conv(F.conv2d, stride=(2, 1), padding=(2, 1), dilation=(2, 1), groups=2),
    ),
    (
        Case("conv2d-depthwise", fp.conv(6, (3, 3), groups=3), normal(2, 4, 5, 3)),
        conv(F.conv2d, padding=1, groups=3),
    ),
    (
        Case(
            "conv_transpose1d",
            fp.conv_transpose(4, (3,), stride=2, padding="valid"),
            normal(2, 4, 3),
        ),
        conv_transpose(F.conv_transpose1d, stride=2),
    ),
    (
        # Around the spread input there is what PyTorch's padding leaves of the window's extent.
        Case(
            "conv_transpose2d",
            fp.conv_transpose(4, (3, 2), stride=(2, 3), padding=((3, 4), (1, 1)), dilation=(2, 1)),
            normal(2, 4, 3, 3),
        ),
        conv_transpose(
            F.conv_transpose2d,
            stride=(2, 3),
            padding=(1, 0),
            output_padding=(1, 0),
            dilation=(2, 1),
        ),
    ),
    (
        Case("max_pool", fp.max_pool((3, 2), stride=2, padding=((1, 1), (0, 0))), ties(2, 6, 5, 3)),
        lambda _, x: over_space(x, F.max_pool2d, kernel_size=(3, 2), stride=2, padding=(1, 0)),
    ),
    (
        Case(
            "average_pool",
            fp.average_pool((3, 2), stride=(2, 1), padding=((1, 1), (1, 1))),
            normal(2, 6, 5, 3),
        ),
        lambda _, x: over_space(
            x, F.avg_pool2d, kernel_size=(3, 2), stride=(2, 1), padding=1, count_include_pad=False
        ),
    ),
    (
        Case(
            "average_pool-padding-counts",
            fp.average_pool((3,), padding=((1, 1),), count_include_pad=True),
            normal(2, 7, 3),
        ),
        lambda _, x: over_space(x, F.avg_pool1d, kernel_size=3, padding=1),
    ),
    (
        Case("global_average_pool", fp.global_average_pool(), normal(2, 3, 4, 3)),
        lambda _, x: over_space(x, F.adaptive_avg_pool2d, output_size=1).flatten(1),
    ),
    (
        Case("global_max_pool", fp.global_max_pool(), ties(2, 3, 4, 3)),
        lambda _, x: over_space(x, F.adaptive_max_pool2d, output_size=1).flatten(1),
    ),
    (
        Case("upsample", fp.upsample((2, 3)), normal(2, 3, 2, 2)),
        lambda _, x: over_space(x, F.interpolate, scale_factor=(2, 3), mode="nearest"),
    ),
    (
        Case("upsample-bilinear", fp.upsample((2, 3), "bilinear"), normal(2, 3, 4, 2)),
        lambda _, x: over_space(x, F.interpolate, scale_factor=(2, 3), mode="bilinear"),
    ),
    # -------------------------------------------------------------------------- normalisations
    (
        Case("layer_norm", fp.layer_norm(), normal(2, 3, 6)),
        lambda p, x: F.layer_norm(x, x.shape[-1:], p.scale, p.bias),
    ),
    (
        Case("rms_norm", fp.rms_norm(), normal(2, 3, 6)),
        lambda p, x: F.rms_norm(x, x.shape[-1:], p.scale, 1e-6),
    ),
    (
        Case("group_norm", fp.group_norm(3), normal(2, 4, 3, 6)),
        lambda p, x: over_space(x, F.group_norm, 3, p.scale, p.bias),
    ),
    (
        Case("batch_norm", fp.batch_norm(), normal(3, 4, 2, 3), key=True),
        lambda p, x: over_space(x, F.batch_norm, None, None, p.scale, p.bias, training=True),
    ),
    # ------------------------------------------------------------------------------- recurrent
    (Case("lstm", fp.lstm(4), normal(3, 5, 2)), lambda p, x: lstm(p, x)[0]),
    (Case("lstm-lengths", fp.lstm(4), SEQUENCES), lambda p, x: lstm(p, x)[0]),
    (Case("gru", fp.gru(4), normal(3, 5, 2)), lambda p, x: gru(p, x)[0]),
    (Case("gru-lengths", fp.gru(4), SEQUENCES), lambda p, x: gru(p, x)[0]),
    (
        Case("rnn", fp.rnn(3, fp.gru(4)), SEQUENCES),
        lambda p, x: F.linear(gru(p.gru, x)[1][0], p.head.w.T, p.head.b),
    ),
    # ------------------------------------------------------------------------------- attention
    (
        Case("attention", fp.attention(2, block=2), normal(2, 5, 24)),
        attention(2, 2, is_causal=True),
    ),
    (
        Case("attention-grouped", fp.attention(4, kv_heads=2, block=3), normal(2, 5, 32)),
        attention(4, 2, is_causal=True),
    ),
    (
        # One sequence is all padding: PyTorch gives zero there as well.
        Case(
            "attention-masked",
            fp.attention(2, causal=False, block=2),
            both(normal(3, 5, 24), seen(3, 5)),
        ),
        attention(2, 2),
    ),
    (
        Case(
            "attention-grouped-window",
            fp.attention(6, kv_heads=2, window=2, block=2),
            normal(2, 5, 40),
        ),
        attention(6, 2, attn_mask=torch.ones(5, 5, dtype=torch.bool).tril().triu(-1)),
    ),
    (Case("self_attention", fp.self_attention(6, 2), normal(2, 5, 6)), multi_head),
    # ---------------------------------------------------------------------------------- losses
    (
        Case("mean_squared", fp.mean_squared(), both(normal(5, 3), normal(5, 3))),
        lambda _, x: summed(F.mse_loss(*x, reduction="none")),
    ),
    (
        Case("mean_absolute", fp.mean_absolute(), both(normal(5, 3), normal(5, 3))),
        lambda _, x: summed(F.l1_loss(*x, reduction="none")),
    ),
    (
        Case("huber", fp.huber(0.5), both(normal(5, 3), normal(5, 3))),
        lambda _, x: summed(F.huber_loss(*x, delta=0.5, reduction="none")),
    ),
    (
        Case("binary_cross_entropy", fp.binary_cross_entropy(), both(normal(5, 3), positive(5, 3))),
        lambda _, x: summed(F.binary_cross_entropy_with_logits(*x, reduction="none")),
    ),
    (
        Case(
            "softmax_cross_entropy",
            fp.softmax_cross_entropy(0.1),
            both(normal(3, 5, 4), labels(3, 5, classes=4), positive(3, 5)),
        ),
        lambda _, x: cross_entropy(*x, label_smoothing=0.1),
    ),
    (
        Case(
            "softmax_cross_entropy-ignored",
            fp.softmax_cross_entropy(0.1),
            with_ignored(normal(3, 5, 4), 3, 5, classes=4),
        ),
        lambda _, x: cross_entropy(*x, label_smoothing=0.1),
    ),
    (
        Case(
            "softmax_cross_entropy-distributions",
            fp.softmax_cross_entropy(0.2),
            both(normal(5, 4), distribution(5, 4)),
        ),
        lambda _, x: cross_entropy(*x, label_smoothing=0.2),
    ),
    (
        Case(
            "linear_cross_entropy",
            fp.linear_cross_entropy(7, chunk=3, smoothing=0.1, bias=True),
            with_ignored(normal(3, 5, 4), 3, 5, classes=7),
        ),
        lambda p, x: cross_entropy(F.linear(x[0], p.w, p.b), *x[1:], label_smoothing=0.1),
    ),
]


# ------------------------------------------------------------------------------------------- test


def to_torch(leaf):
    tensor = torch.tensor(np.array(leaf))
    return tensor.requires_grad_(tensor.is_floating_point())


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths:UserWarning")
@pytest.mark.parametrize(("case", "reference"), TABLE, ids=[case.id for case, _ in TABLE])
def test_forward_and_every_gradient_are_those_of_torch(case, reference, x64):
    params, x, key = build(case, jnp.float64)
    y, residuals = case.layer.forward(params, x, key)
    rng = np.random.default_rng(1)
    dy = jax.tree.map(
        lambda leaf: jnp.asarray(rng.standard_normal(leaf.shape)) if is_float(leaf) else None, y
    )
    got = y, case.layer.backward(params, residuals, dy)

    # PyTorch differentiates through the conversion of the weights too: gradients are in our layout.
    # Statistics have none, and in training they are not looked at.
    inputs = jax.tree.map(to_torch, (fp.trained(params), x))
    want = reference(*inputs)
    outputs = [leaf for leaf in jax.tree.leaves(want) if leaf.is_floating_point()]
    products = [
        (leaf * to_torch(d)).sum() for leaf, d in zip(outputs, jax.tree.leaves(dy), strict=True)
    ]
    leaves = [leaf for leaf in jax.tree.leaves(inputs) if leaf.requires_grad]
    grads = iter(torch.autograd.grad(sum(products), leaves, materialize_grads=True))
    wanted = (
        jax.tree.map(lambda leaf: leaf.detach().numpy(), want),
        jax.tree.map(lambda leaf: next(grads).numpy() if leaf.requires_grad else None, inputs),
    )
    chex.assert_trees_all_close(got, wanted, rtol=1e-11, atol=1e-12)
