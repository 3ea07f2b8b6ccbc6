"""Token by token as at once: every layer, every model, under every rewrite; and generated text."""

import functools
import gc
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import funprop as fp
from funprop.models.sampling import draw, likeliest, sampling
from tests.cases import COMBINATORS, LAYERS, quickly

KEY = jax.random.key(0)
WORDS, TIME = 11, 5


def drawn(model, x, dtype=jnp.float64):
    """Params far from their first values, so that every place depends on all before."""
    rng = np.random.default_rng(0)

    def one(path, leaf):
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            return jnp.zeros(leaf.shape, leaf.dtype)
        value = 0.6 * rng.standard_normal(leaf.shape)
        return jnp.asarray(abs(value) if "variance" in str(path[-1]) else value, dtype)

    return jax.tree_util.tree_map_with_path(one, jax.eval_shape(model.init, KEY, x))


def assert_as_at_once(layer, params, x, first=2):
    """What comes token by token, after the `first` places, is what forward gives of all of them."""
    length = jax.tree.leaves(x)[0].shape[1]

    def part(x, start, stop):
        return jax.tree.map(lambda leaf: leaf[:, start:stop], x)

    def both(params, x):
        def one(cache, x):
            x = jax.tree.map(lambda leaf: leaf[:, None], x)
            y, cache = layer.decoding.advance(params, cache, x)
            return cache, y[:, 0]

        y, cache = layer.decoding.prefill(params, part(x, 0, first), length)
        rest = jax.tree.map(lambda leaf: jnp.swapaxes(leaf, 0, 1), part(x, first, length))
        _, ys = jax.lax.scan(one, cache, rest)
        return jnp.concatenate([y, jnp.swapaxes(ys, 0, 1)], 1), layer.forward(params, x)[0]

    got, want = quickly(both)(params, x)
    assert got.dtype == want.dtype == jnp.float64
    np.testing.assert_allclose(got, want, rtol=1e-11, atol=1e-12)
    assert np.ptp(want) > 0


# ------------------------------------------------------------------------------------- layers

CANNOT = {
    *("flatten", "reshape", "reshape-scalar", "reshape-integers", "softmax-axis-0"),
    *("log_softmax-axis-0", "concatenate-axis-0", "own", "from_function", "conv", "conv-groups"),
    *("conv-depthwise", "conv_transpose", "max_pool", "average_pool", "global_average_pool"),
    *("global_max_pool", "upsample", "upsample-bilinear", "group_norm", "lstm-lengths"),
    *("last_step", "attention-masked"),
}
SAMPLES = [(case.id, case.layer, case.x) for case in LAYERS] + [
    (f"conv-causal-{kernel}", layer, None)
    for kernel, layer in (
        (3, fp.conv(4, (3,), padding=[(2, 0)])),
        (1, fp.conv(4, (1,))),
        ("dilated", fp.conv(4, (2,), padding=[(3, 0)], dilation=3, groups=2, bias=False)),
        ("longer", fp.conv(4, (9,), padding=[(8, 0)])),
    )
]


@pytest.mark.parametrize(("name", "layer", "make"), SAMPLES, ids=[s[0] for s in SAMPLES])
def test_every_layer_token_by_token_or_refused(name, layer, make, x64):
    rng = np.random.default_rng(0)

    def over_time(leaf):
        if jnp.issubdtype(leaf.dtype, jnp.integer) or leaf.dtype == bool:
            return leaf
        shape = leaf.shape if leaf.ndim == 3 else (2, 5, *leaf.shape[-1:])
        return jnp.asarray(rng.standard_normal(shape))

    x = jax.tree.map(over_time, make(rng)) if make else jnp.asarray(rng.standard_normal((2, 5, 4)))
    whole = fp.serial(layer)
    if name in CANNOT:
        x = x if make is None else make(rng)
        with pytest.raises(ValueError, match=f"^{layer.name}: ") as error:
            whole.decoding.prefill(((),), x, 5)
        assert "token by token" in str(error.value) and "\n" not in str(error.value)
        return
    assert_as_at_once(layer, drawn(layer, x), x)


def test_a_pointwise_layer_that_is_not_is_refused():
    mean = fp.from_function(lambda key, x: (), lambda p, x: x.mean(1), pointwise=True)
    with pytest.raises(ValueError, match=r"function: y of a pointwise layer must have batch and t"):
        fp.serial(mean).decoding.prefill(((),), jnp.ones((2, 3, 4)), 5)
    with pytest.raises(ValueError, match=r"relu: x must be \[batch, time, features\]"):
        fp.serial(fp.relu()).decoding.prefill(((),), jnp.ones((2, 3)), 5)
    with pytest.raises(ValueError, match="got both"):
        fp.from_function(mean.init, lambda p, x: x, pointwise=True, decoding=mean.decoding)


# ------------------------------------------------------------------------------------- models


def running_sum():
    """A user's layer that looks back, and says how."""
    return fp.layer(
        forward=lambda params, x: (jnp.cumsum(x, 1), ()),
        backward=lambda params, kept, dy: ((), jnp.cumsum(dy[:, ::-1], 1)[:, ::-1]),
        name="running_sum",
        decoding=fp.Decoding(
            prefill=lambda params, x, length: (jnp.cumsum(x, 1), x.sum(1, keepdims=True)),
            advance=lambda params, total, x: (total + x, total + x),
        ),
    )


def with_everything():
    branches = fp.parallel(
        fp.self_attention(8, 4, kv_heads=2, window=3, rotary=100.0),
        fp.serial(fp.conv(16, (2,), padding=[(2, 0)], dilation=2), fp.gated(fp.silu())),
        fp.serial(fp.lstm(8), fp.dropout(0.5), running_sum()),
        fp.serial(fp.gru(8), fp.named("net", fp.feed_forward(8, 12))),
    )
    block = fp.serial(fp.layer_norm(), branches, fp.add(), fp.batch_norm())
    sine = fp.from_function(lambda key, x: (), lambda params, x: jnp.sin(x), pointwise=True)
    front = fp.serial(fp.embedding(WORDS, 8), fp.named("places", fp.learned_positions(TIME)))
    return fp.serial(front, fp.repeat(fp.residual(block), 2), sine)


MODELS = {
    "gpt": fp.gpt(WORDS, features=8, depth=2, heads=2, longest=TIME, rate=0.2),
    "llama": fp.llama(WORDS, features=8, depth=2, heads=4, kv_heads=2, window=3),
    "lstm": fp.serial(fp.embedding(WORDS, 8), fp.lstm(8), fp.lstm(8)),
    "gru": fp.serial(fp.embedding(WORDS, 8), fp.repeat(fp.gru(8), 2)),
    "conv": fp.serial(
        fp.embedding(WORDS, 8),
        fp.repeat(fp.residual(fp.serial(fp.conv(8, (3,), padding=[(2, 0)]), fp.tanh())), 2),
    ),
    "everything": with_everything(),
}
SLOW = pytest.mark.slow


def with_slow(fast, *slow):
    return [*fast, *(pytest.param(name, marks=SLOW) for name in slow)]


REWRITES = {
    "none": lambda model: model,
    "autodiff": fp.autodiff,
    "autodiff-each": lambda model: fp.map_layers(fp.autodiff, model),
    "autodiff-policy": lambda model: fp.autodiff(
        model, jax.checkpoint_policies.everything_saveable
    ),
    "named": lambda model: fp.named("mine", model),
    "remat": fp.remat,
    "remat-keep": lambda model: fp.remat(model, "*/lstm"),
    "offload": fp.offload,
    "tap": lambda model: fp.tap(fp.tap(model, "*/dense*", forward=jnp.sum), backward=jnp.sum),
    "cast": lambda model: fp.cast(model, jnp.float64),
    "freeze": lambda model: fp.freeze(model, "*/self_attention"),
    "freeze-places": lambda model: fp.freeze(model, "*/places"),
    "low_rank": lambda model: fp.low_rank(model, "*/self_attention/dense*", 2),
    "fused_update": lambda model: fp.fused_update(model, optax.sgd(0.1)),
    "gathered": lambda model: fp.gathered(model, fp.make_mesh(data=1)),
    "reparam": lambda model: fp.reparam(model, lambda p: jax.tree.map(lambda leaf: 2 * leaf, p)),
    "all": lambda model: fp.remat(
        fp.low_rank(fp.cast(fp.freeze(model, "*/net"), float), "*/self_attention/dense*", 2)
    ),
}


FAST = ("none", "autodiff-each", "fused_update", "all")


@pytest.mark.parametrize("rewrite", with_slow(FAST, *(r for r in REWRITES if r not in FAST)))
def test_every_rewrite_token_by_token(rewrite, x64):
    model, x = REWRITES[rewrite](MODELS["everything"]), jnp.arange(2 * TIME).reshape(2, -1) % WORDS
    assert_as_at_once(model, drawn(model, x), x)


def greedy_by_forward(model, params, head, prompt, *, length):
    """The likeliest tokens, by the whole model on the growing sequence."""
    text = prompt
    for _ in range(length):
        logits = model.forward(params, text)[0][:, -1] @ head.w.T
        text = jnp.concatenate([text, logits.argmax(-1)[:, None].astype(text.dtype)], 1)
    return text


@pytest.mark.parametrize("name", with_slow(("gpt", "conv"), "llama", "lstm", "gru", "everything"))
@pytest.mark.parametrize("shape", [(1, 1), pytest.param((3, 2), marks=SLOW)])
def test_text_is_that_of_the_whole_model(name, shape, x64):
    """Up to as many places as the model has."""
    model = MODELS[name]
    prompt = jax.random.randint(jax.random.key(5), shape, 0, WORDS, jnp.int32)
    params = drawn(model, prompt)
    head, length = fp.unembedding(params), TIME - shape[1]
    reference = functools.partial(greedy_by_forward, model, length=length)
    got = fp.generate(model, params, head, prompt, length)
    assert got.tolist() == quickly(reference)(params, head, prompt).tolist()
    assert got.dtype == jnp.int32 and len({*got.ravel().tolist()}) > 2
