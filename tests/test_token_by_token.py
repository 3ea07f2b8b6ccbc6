"""Token by token as at once: every layer, every model, under every rewrite; and generated text."""

import dataclasses
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
from tests.cases import LAYERS, quickly

KEY = jax.random.key(0)
WORDS, TIME = 11, 5


def drawn(model, x, dtype=jnp.float64):
    """Params far from their first values, so that every place depends on all before."""
    rng = np.random.default_rng(0)

    def one(path, leaf):
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            return jnp.zeros(leaf.shape, leaf.dtype)
        value = 0.6 * rng.standard_normal(leaf.shape)
        return jnp.asarray(abs(value) if "variance" in str(path[-1:]) else value, dtype)

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
    whole = fp.serial(fp.serial(), layer)  # a path that there is only among siblings
    if name in CANNOT:
        x = x if make is None else make(rng)
        with pytest.raises(ValueError, match=f"^{layer.name}: ") as error:
            whole.decoding.prefill(((), ()), x, 5)
        assert "token by token" in str(error.value) and "\n" not in str(error.value)
        return
    assert_as_at_once(layer, drawn(layer, x), x)


def test_a_pointwise_layer_that_is_not_is_refused():
    mean = fp.from_function(lambda key, x: (), lambda p, x: x.mean(1), pointwise=True)
    with pytest.raises(ValueError, match=r"function: y of a pointwise layer must have batch and t"):
        fp.serial(fp.serial(), mean).decoding.prefill(((), ()), jnp.ones((2, 3, 4)), 5)
    with pytest.raises(ValueError, match=r"relu: x must be \[batch, time, features\]"):
        fp.serial(fp.serial(), fp.relu()).decoding.prefill(((), ()), jnp.ones((2, 3)), 5)
    doubled = dataclasses.replace(
        fp.relu(), forward=lambda params, x, key=None: (2 * jax.nn.relu(x), ())
    )
    with pytest.raises(ValueError, match="relu with another forward needs a new decoding"):
        fp.serial(fp.serial(), doubled).decoding.prefill(((), ()), jnp.ones((2, 3, 4)), 5)
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
    "remat-keep": lambda model: fp.remat(model, keep="*/lstm"),
    "offload": fp.offload,
    "tap": lambda model: fp.tap(fp.tap(model, "*/hidden", forward=jnp.sum), backward=jnp.sum),
    "cast": lambda model: fp.cast(model, jnp.float64),
    "freeze": lambda model: fp.freeze(model, "*/self_attention"),
    "freeze-copy": lambda model: fp.freeze(model, "repeat[0]"),
    "freeze-places": lambda model: fp.freeze(model, "*/places"),
    "low_rank": lambda model: fp.low_rank(model, "*/qkv", 2),
    "fused_update": lambda model: fp.fused_update(model, optax.sgd(0.1)),
    "gathered": lambda model: fp.gathered(model, fp.make_mesh(data=1)),
    "reparam": lambda model: fp.reparam(model, lambda p: jax.tree.map(lambda leaf: 2 * leaf, p)),
    "all": lambda model: fp.remat(
        fp.low_rank(fp.cast(fp.freeze(model, "*/net"), float), "*/qkv", 2)
    ),
}


FAST = ("none", "all")


@pytest.mark.parametrize("rewrite", with_slow(FAST, *(r for r in REWRITES if r not in FAST)))
def test_every_rewrite_token_by_token(rewrite, x64):
    model, x = REWRITES[rewrite](MODELS["everything"]), jnp.arange(2 * TIME).reshape(2, -1) % WORDS
    assert_as_at_once(model, drawn(model, x), x)


def greedy_by_forward(model, params, head, prompt, *, length):
    """The likeliest tokens, by the whole model on the growing sequence."""
    text = prompt
    for _ in range(length):
        logits = model.forward(params, text)[0][:, -1] @ head.w.T + head.b[None]
        text = jnp.concatenate([text, logits.argmax(-1)[:, None].astype(text.dtype)], 1)
    return text


@pytest.mark.parametrize("name", with_slow(("gpt", "conv"), "llama", "lstm", "gru", "everything"))
@pytest.mark.parametrize("shape", [(1, 1), pytest.param((3, 2), marks=SLOW)])
def test_text_is_that_of_the_whole_model(name, shape, x64):
    """Up to as many places as the model has."""
    model = MODELS[name]
    prompt = jax.random.randint(jax.random.key(5), shape, 0, WORDS, jnp.int32)
    params = drawn(model, prompt)
    head = jax.random.normal(jax.random.key(5), (WORDS, 8))
    head = fp.LinearParams(head, jnp.linspace(0, 1, WORDS))
    length = TIME - shape[1]
    reference = functools.partial(greedy_by_forward, model, length=length)
    got = fp.generate(model, params, head, prompt, length)
    assert got.tolist() == quickly(reference)(params, head, prompt).tolist()
    assert got.dtype == jnp.int32 and len({*got.ravel().tolist()}) > 1


def test_the_tied_head_of_params_that_a_rewrite_made():
    model = MODELS["gpt"]
    for rewritten in (
        fp.freeze(model, "*/embedding"),
        fp.fused_update(model, optax.adam(0.1)),
        fp.low_rank(model, "*/qkv", 1),
    ):
        params = drawn(rewritten, jnp.zeros((1, 2), jnp.int32), jnp.float32)
        assert fp.unembedding(params).w.shape == (WORDS, 8)


# ------------------------------------------------------------------------------------- the call

SMALL = fp.serial(fp.embedding(WORDS, 4), fp.lstm(4))


@pytest.fixture(scope="module")
def small():
    params = drawn(SMALL, jnp.zeros((2, 3), jnp.int32), jnp.float32)
    return params, fp.LinearParams(jax.random.normal(KEY, (WORDS, 4)), None)


def test_one_compilation_for_a_model_and_shapes_and_nothing_kept(small):
    head, traced = small[1], []
    told = fp.layer(
        forward=lambda params, x: (traced.append(0) or x, ()),
        backward=lambda params, kept, dy: ((), dy),
        pointwise=True,
    )
    model = fp.serial(*SMALL.children, told)
    prompt = np.zeros((2, 3), np.uint8)
    params = drawn(model, prompt, jnp.float32)
    run = functools.partial(fp.generate, model, params, head, length=4, key=KEY)
    run(prompt)
    first, before = len(traced), len(jax.live_arrays())
    for i, how in enumerate(({"temperature": 0.3}, {"top_p": 0.9}, {"top_k": 2}, {"top_p": 0.2})):
        run(jnp.asarray(prompt + i, jnp.int32), **how)
    assert len(traced) == first and len(jax.live_arrays()) == before
    alive = weakref.ref(model)
    del run, model
    gc.collect()
    assert alive() is None


def test_any_integers_are_a_prompt(small):
    params, head = small
    want = fp.generate(SMALL, params, head, jnp.array([[1, 2, 9]]), 4)
    assert want.dtype == jnp.int32
    for dtype in (np.uint8, np.int8, np.int64, np.uint32):
        assert (
            fp.generate(SMALL, params, head, np.array([[1, 2, 9]], dtype), 4).tolist()
            == want.tolist()
        )


def test_the_same_text_however_much_of_it_is_drawn(small):
    params, head = small
    run = functools.partial(fp.generate, SMALL, params, head, [[1, 2, 9]], temperature=2.0)
    long, short, other = run(9, key=KEY), run(4, key=KEY), run(9, key=jax.random.key(1))
    assert long[:, :7].tolist() == short.tolist() and long.tolist() != other.tolist()


NAN = float("nan")
REFUSED = {
    "prompt must be [batch, time] and not empty, got shape (2, 0)": {
        "prompt": np.zeros((2, 0), int)
    },
    "prompt must be [batch, time] and not empty, got shape (0, 2)": {
        "prompt": np.zeros((0, 2), int)
    },
    "prompt must be [batch, time] and not empty, got shape (3,)": {"prompt": [1, 2, 3]},
    "prompt must be of integers, got float32": {"prompt": jnp.ones((1, 2))},
    "prompt must be of integers, got bool": {"prompt": jnp.ones((1, 2), bool)},
    "prompt must have tokens from 0 to 10, got 11 at place 2 of row 1": {
        "prompt": jnp.array([[1, 2, 3], [4, 5, 11]])
    },
    "prompt must have tokens from 0 to 10, got -1 at place 0 of row 0": {"prompt": [[-1]]},
    "prompt must have tokens from 0 to 10, got 4294967297": {"prompt": np.array([[2**32 + 1]])},
    "length must be at least 1, got 0": {"length": 0},
    "length must be an integer, got 2.0": {"length": 2.0},
    "length must be an integer, got True": {"length": True},
    "temperature must be at least 0 and finite, got -1": {"temperature": -1},
    "temperature must be at least 0 and finite, got nan": {"temperature": NAN},
    "temperature must be one number, got 'hot'": {"temperature": "hot"},
    "top_p must be above 0 and at most 1, got 0": {"top_p": 0},
    "top_p must be above 0 and at most 1, got 1.5": {"top_p": 1.5},
    "top_p must be above 0 and at most 1, got nan": {"top_p": jnp.asarray(NAN)},
    "top_p must be one number, got an array of shape (2,)": {"top_p": jnp.ones(2)},
    "top_k must be at least 1, got 0": {"top_k": 0},
    "top_k must be an integer or None, got 2.5": {"top_k": 2.5},
    "key must be one random key, as jax.random.key(0) makes it, got 0": {"key": 0},
    "head must be LinearParams(w, b), got tuple": {"head": ()},
    "head must have w [vocabulary, features]": {"head": fp.LinearParams(jnp.ones(3), None)},
    "model must give [batch, time, 3] to go with the head, got float32[1,2,4]": {
        "head": fp.LinearParams(jnp.ones((11, 3)), None)
    },
    "params do not belong to this model": {"params": ((), ())},
    "last_step: to run token by token, last_step must say that it treats all places alike": {
        "model": fp.serial(fp.embedding(WORDS, 4), fp.last_step())
    },
    "mine/core: attention must be causal to run token by token": {
        "model": fp.serial(
            fp.embedding(WORDS, 4), fp.named("mine", fp.self_attention(4, 1, causal=False))
        )
    },
    "logits must be finite, got others for token 0 after the prompt of row 0": {
        "head": fp.LinearParams(jnp.full((11, 4), jnp.nan), None)
    },
    "logits must be finite, got others for token 1 after the prompt of row 0": {
        "model": fp.serial(fp.embedding(5, 4)),  # and the head knows more
        "head": fp.LinearParams(jnp.ones((11, 4)), jnp.arange(11.0)),
    },
}


@pytest.mark.parametrize("words", REFUSED)
def test_refused_in_one_sentence(words, small):
    given = {"model": SMALL, "params": small[0], "head": small[1], "prompt": [[1, 2]], "length": 3}
    given |= REFUSED[words]
    if "model" in REFUSED[words]:
        given["params"] = drawn(given["model"], jnp.zeros((1, 2), jnp.int32), jnp.float32)
    with pytest.raises((ValueError, TypeError)) as error:
        fp.generate(**given)
    assert str(error.value).startswith(words) and "\n" not in str(error.value)


def test_inside_jit_a_token_from_logits_that_are_not_finite_is_minus_one(small):
    params, head = small
    run = jax.jit(lambda params: fp.generate(SMALL, params, head, jnp.array([[1], [2]]), 2))
    assert (run(params)[:, 1:] >= 0).all()
    assert run(jax.tree.map(lambda leaf: leaf * jnp.nan, params))[:, 1:].tolist() == [[-1, -1]] * 2


# ------------------------------------------------------------------------------------- drawing


OPEN = {"temperature": 1.0, "top_k": None, "top_p": 1.0}


def kept(p, **how):
    """Which tokens may be drawn, where their probabilities are `p`."""
    inside = jax.jit(likeliest)(jnp.log(jnp.asarray([p])), sampling(**{**OPEN, **how}))
    return np.flatnonzero(inside[0]).tolist()


@pytest.mark.parametrize("wide", [False, True])
def test_the_nucleus_is_the_smallest_set_that_reaches_the_share(wide):
    with jax.enable_x64(wide):
        p = [0.1, 0.4, 0.05, 0.25, 0.2]
        for share, want in (
            (1e-9, [1]),
            *((0.39, [1]), (0.4, [1]), (0.41, [1, 3]), (0.65, [1, 3]), (0.66, [1, 3, 4])),
            *(
                (0.85, [1, 3, 4]),
                (0.9, [0, 1, 3, 4]),
                (0.95, [0, 1, 3, 4]),
                (0.96, [0, 1, 2, 3, 4]),
            ),
            *((0.99999999, [0, 1, 2, 3, 4]), (1.0, [0, 1, 2, 3, 4])),
        ):
            assert kept(p, top_p=share) == want, share
        assert kept([0.25] * 4, top_p=0.5) == [0, 1]
        assert kept(p, top_k=2) == [1, 3] and kept([0.25] * 4, top_k=3) == [0, 1, 2]
        assert kept(p, top_k=99) == [0, 1, 2, 3, 4]
        assert kept(p, top_k=2, top_p=0.62) == [1, 3]  # 0.4 is 0.615 of what two have
        assert kept(p, top_k=2, top_p=0.61) == [1]


@pytest.mark.parametrize(
    ("how", "want"),
    [
        ({}, [0.1, 0.4, 0.05, 0.25, 0.2]),
        ({"top_k": 3}, [0, 0.4 / 0.85, 0, 0.25 / 0.85, 0.2 / 0.85]),
        ({"top_p": 0.5}, [0, 0.4 / 0.65, 0, 0.25 / 0.65, 0]),
        ({"top_p": 0.99999999}, [0.1, 0.4, 0.05, 0.25, 0.2]),
        ({"temperature": 0.5}, [1, 16, 0.25, 6.25, 4]),
    ],
    ids=str,
)
def test_tokens_are_drawn_as_often_as_they_are_likely(how, want):
    """Chi-square, against its 0.999 quantile for four degrees of freedom, from a fixed seed."""
    n, logits = 20_000, jnp.log(jnp.array([0.1, 0.4, 0.05, 0.25, 0.2])) + 7
    rows = jnp.broadcast_to(logits, (n, 5))
    drawn = quickly(lambda how: draw(rows, how, KEY))(sampling(**{**OPEN, **how}))
    counts, want = np.bincount(drawn, minlength=5), n * np.asarray(want) / sum(want)
    assert (counts[want == 0] == 0).all()
    assert ((counts - want)[want > 0] ** 2 / want[want > 0]).sum() < 18.5


@pytest.mark.parametrize("wide", [False, True])
def test_the_coldest_is_the_likeliest(wide):
    with jax.enable_x64(wide):
        run = quickly(draw)
        logits = jnp.array([[1.0, 3.0, 2.9], [-2e5, -1e5, -jnp.inf], [5.0, 5.0, 1.0]])
        for temperature in (0, 0.0, np.float32(1e-45), 1e-300, 1e-38, 1e-30):
            for how in ({}, {"top_p": 0.9}, {"top_k": 2}):
                how = sampling(**{**OPEN, **how, "temperature": temperature})
                tokens = [run(logits, how, jax.random.key(i)).tolist() for i in range(9)]
                assert {(a, b) for a, b, _ in tokens} == {(1, 1)}
                ties = {c for *_, c in tokens}
                assert ties == {0} if temperature == 0 else ties <= {0, 1}
