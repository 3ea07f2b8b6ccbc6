"""Language models: against plain JAX, text by text, and what is refused."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import funprop as fp
from funprop.train import Fit
from funprop.train.runs import corpus, in_folder, text
from funprop.trees import lifted
from tests.cases import quickly

VOCABULARY = 11
MODELS = {
    "gpt": fp.gpt(VOCABULARY, features=16, depth=2, heads=2, longest=12),
    "llama": fp.llama(VOCABULARY, features=16, depth=2, heads=4, kv_heads=2),
    "window": fp.llama(VOCABULARY, features=16, depth=2, heads=2, window=3, rewrite=fp.remat),
}


def drawn(model, seed=0):
    """Params far from their first values, so that what the model says depends on the text."""
    params = quickly(model.init)(jax.random.key(seed), jnp.zeros((1, 4), int))
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(seed + 1), len(leaves))
    return tree.unflatten(
        leaf + 0.3 * jax.random.normal(k, leaf.shape) for leaf, k in zip(leaves, keys, strict=True)
    )


@pytest.mark.parametrize(
    ("tied", "way"),
    [
        (True, {"chunk": 4}),
        (False, {"rows": 7}),
        pytest.param(False, {"chunk": 4}, marks=pytest.mark.slow),
        pytest.param(True, {"rows": 7}, marks=pytest.mark.slow),
    ],
)
def test_loss_and_gradient_are_those_of_plain_jax(tied, way, x64):
    """The model as an expert writes it, with naive attention and optax's loss."""
    model = MODELS["gpt"]
    tokens = jax.random.randint(jax.random.key(3), (2, 13), 0, VOCABULARY)
    batch = tokens[:, :-1], tokens[:, 1:]
    whole = fp.language_model(model, VOCABULARY, tied=tied, **way)
    params = quickly(whole.init)(jax.random.key(0), batch)
    params = jax.tree.map(lambda p: p.astype(jnp.float64), params)

    def affine(p, x):
        y = x @ p.w
        return y + lifted(p.b, y)

    def norm(p, x):
        c = x - x.mean(-1, keepdims=True)
        return c / jnp.sqrt((c * c).mean(-1, keepdims=True) + 1e-5) * lifted(p.scale, x) + lifted(
            p.bias, x
        )

    def block(x, p):
        (n1, qkv, _, out), (n2, up, _, down) = p
        q, k, v = jnp.split(affine(qkv, norm(n1, x)).reshape(2, 12, 6, 8), 3, 2)
        z = jnp.einsum("bqhf,bkhf->bhqk", q, k) / 8**0.5
        p = jax.nn.softmax(jnp.where(lifted(jnp.tri(12, dtype=bool), z), z, -jnp.inf))
        y = jnp.einsum("bhqk,bkhf->bqhf", p, v).reshape(x.shape)
        x = x + affine(out, y)
        h = jax.nn.gelu(affine(up, norm(n2, x)), approximate=True)
        return x + affine(down, h), None

    def loss(params):
        own = params if tied else params.gpt
        table, places = own.embedding.table, own.positions.table
        x, _ = jax.lax.scan(block, table[batch[0]] + places[None, :12], own.blocks)
        logits = norm(own.norm, x) @ (table if tied else params.head.w).T
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch[1]).sum()

    want, grads = quickly(jax.value_and_grad(loss))(params)
    got = quickly(fp.backprop(whole))(params, batch)
    assert np.allclose(got.loss, want, rtol=1e-10)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-9), got.grads, grads
    )


@pytest.mark.parametrize("chunk", [1, 4, 11, 50])
def test_predictions_and_loss_in_chunks_of_any_size(chunk):
    x = jax.random.normal(jax.random.key(0), (3, 5, 4))
    params = fp.LinearParams(jax.random.normal(jax.random.key(1), (11, 4)), jnp.arange(11.0) / 5)
    labels = jnp.arange(15).reshape(3, 5) % 11
    logits = x @ params.w.T + params.b[None, None]
    assert fp.linear_predictions(params, x, chunk=chunk).tolist() == logits.argmax(-1).tolist()
    head = fp.linear_cross_entropy(11, chunk=chunk, smoothing=0.1)
    want = fp.softmax_cross_entropy(0.1).forward((), (logits, labels))[0]
    assert np.allclose(head.forward(params, (x, labels))[0].total, want.total, rtol=1e-5)


HARD = {"smoothing": 0.1, "z_loss": 0.01, "bias": True}


@pytest.mark.parametrize("way", [{"rows": 1}, {"rows": 4}, {"rows": 15}, {"chunk": 4}, {}], ids=str)
def test_both_ways_of_the_head_are_the_plain_loss(way, x64):
    """With smoothing, z-loss, a bias, a weight for each place, and labels that are ignored; and as
    part of something larger, whose cotangent is not one."""
    keys = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(keys[0], (3, 5, 4), jnp.float64).at[0, 1].set(jnp.nan)
    params = fp.LinearParams(jax.random.normal(keys[1], (11, 4), jnp.float64), jnp.arange(11.0) / 5)
    labels = (jnp.arange(15).reshape(3, 5) % 11).at[0, 1].set(-100)
    weights = jax.random.uniform(keys[2], (3, 5), jnp.float64).at[0, 1].set(0)
    head = fp.linear_cross_entropy(11, **way, **HARD)

    def plain(params, x, weights):
        z = jnp.where(weights[..., None] == 0, 0, x) @ params.w.T + params.b[None, None]
        norm = jax.nn.logsumexp(z, -1)
        q = 0.9 * jax.nn.one_hot(labels, 11, dtype=z.dtype) + 0.1 / 11
        return (weights * (norm - (q * z).sum(-1) + 0.01 * norm**2)).sum()

    @jax.jit
    def ours(params, x, weights):
        loss, kept = head.forward(params, (x, labels, weights))
        dparams, (dx, _, dw) = head.backward(params, kept, fp.Sum(jnp.full((), 3.0), jnp.zeros(())))
        return loss.total, (dparams, dx, dw)

    want, grads = jax.value_and_grad(plain, (0, 1, 2))(params, x, weights)
    total, got = ours(params, x, weights)
    np.testing.assert_allclose(total, want, rtol=1e-12)
    want_dw = jnp.where(weights == 0, 0, grads[2])
    got = (*got[:2], jnp.where(weights == 0, 0, got[2]))
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves((*grads[:2], want_dw)), strict=True):
        np.testing.assert_allclose(a, 3 * b, rtol=1e-9, atol=1e-12)


def test_the_way_of_the_head_is_what_the_budget_allows():
    """Lean where rows are too few at a time, and where XLA would add up `dw` over devices."""

    def fast(count, **how):
        head = fp.linear_cross_entropy(8, **how)
        params = fp.LinearParams(jnp.ones((8, 2)), None)
        batch = jnp.ones((count, 2)), jnp.zeros(count, int)
        return jax.eval_shape(head.forward, params, batch)[1][5] is not None

    assert fast(100) and fast(100, budget=64 * 8 * 4) and fast(3, budget=3 * 8 * 4)
    assert not fast(100, budget=63 * 8 * 4) and not fast(3, budget=2 * 8 * 4)
    assert not fast(100, chunk=4) and fast(100, rows=1, budget=0) and not fast(0)
    with jax.set_mesh(jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))):
        assert not fast(100) and fast(100, rows=9)


def test_rows_take_no_gradient_where_none_is_asked_for():
    """XLA leaves it out: a forward pass is one product."""
    head, x = fp.linear_cross_entropy(512, rows=64), jnp.ones((128, 32))
    params = fp.LinearParams(jnp.ones((512, 32)), None)
    loss = jax.jit(lambda params, x: head.forward(params, (x, jnp.zeros(128, int)))[0].total)
    flops = loss.lower(params, x).compile().cost_analysis()["flops"]
    assert flops < 1.5 * 2 * 64 * 512 * 32 * 2  # a loop's body counts once, so twice is plenty


@pytest.mark.parametrize("way", [{"chunk": 2}, {"rows": 1}], ids=str)
def test_ignored_labels_may_be_anything(way):
    head = fp.linear_cross_entropy(3, **way)
    params = fp.LinearParams(jnp.eye(3), None)
    x, weights = jnp.ones((2, 3)), jnp.array([1.0, 0.0])
    loss, kept = head.forward(params, (x, jnp.array([0, -100]), weights))
    dparams, (dx, *_) = head.backward(params, kept, fp.Sum(jnp.ones(()), jnp.zeros(())))
    assert np.isfinite(loss.total) and not dx[1].any() and np.isfinite(dparams.w).all()


REFUSED = {
    "heads must divide features": lambda: fp.gpt(5, features=10, heads=4),
    "kv_heads must divide heads": lambda: fp.attention(4, kv_heads=3),
    "window must be at least 1": lambda: fp.attention(4, window=0),
    "method must be": lambda: fp.attention(4, method="fast"),
    "must have time, and": lambda: fp.attention(1).forward((), jnp.ones((2, 0, 3))),
    "divides into 3 heads": lambda: fp.attention(1).forward((), jnp.ones((2, 5, 4))),
    "mask must have shape (2, 5)": lambda: fp.attention(1).forward(
        (), (jnp.ones((2, 5, 3)), jnp.ones((2, 4), bool))
    ),
    "mask must be an array, got list": lambda: fp.attention(1).forward(
        (), (jnp.ones((2, 5, 3)), [[True] * 5] * 2)
    ),
    "even number of features": lambda: fp.gated(fp.silu()).forward((), jnp.ones((2, 3))),
    "x must be from 0 to 4, got 7": lambda: fp.embedding(5, 2).forward(
        fp.EmbeddingParams(jnp.ones((5, 2))), jnp.array([1, 7])
    ),
    "x must be at most 4 long": lambda: fp.learned_positions(4).init(
        jax.random.key(0), jnp.ones((1, 5, 2))
    ),
    "labels must be from 0 to 2, got 3": lambda: fp.linear_cross_entropy(3).forward(
        fp.LinearParams(jnp.eye(3), None), (jnp.ones((1, 3)), jnp.array([3]))
    ),
    "chunk must be at least 1": lambda: fp.linear_cross_entropy(3, chunk=0),
    "rows must be at least 1": lambda: fp.linear_cross_entropy(3, rows=0),
    "chunk or rows must be given, not both": lambda: fp.linear_cross_entropy(3, rows=1, chunk=1),
    "the model has 12 positions": lambda: fp.generate(
        MODELS["gpt"], p := drawn(MODELS["gpt"]), fp.unembedding(p), jnp.ones((1, 9), int), 9
    ),
    "top_p must be": lambda: fp.generate(
        fp.serial(), (), fp.LinearParams(None, None), jnp.ones((1, 9), int), 9, top_p=0
    ),
}


@pytest.mark.parametrize("words", REFUSED)
def test_refused_in_one_sentence(words):
    with pytest.raises((ValueError, TypeError)) as error:
        REFUSED[words]()
    assert words in str(error.value) and "\n" not in str(error.value)


def test_a_token_out_of_range_shows_inside_jit():
    params = fp.EmbeddingParams(jnp.ones((5, 2)))
    y = jax.jit(lambda x: fp.embedding(5, 2).forward(params, x)[0])(jnp.array([1, -1, 7]))
    assert np.isnan(y).any(-1).tolist() == [False, True, True]


@pytest.mark.slow
def test_the_text_job_learns_and_writes_a_run(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(text, "UPDATES", 30)
    monkeypatch.setattr(text, "SIZES", {"features": 32, "depth": 2, "heads": 2})
    with jax.numpy_dtype_promotion("standard"):  # optax promotes by itself
        out = text.train(epochs=2, batch_size=8, learning_rate=1e-2, out=tmp_path / "run")
    history = [json.loads(line) for line in (out / "history.jsonl").read_text().splitlines()]
    assert history[-1]["held_out/loss"] / np.log(2) < 4.5 < 8  # a uniform guess takes 8
    assert "tokens/s" in capsys.readouterr().out
    files = {"history.jsonl", "params.safetensors", "report.png", "run.json", "samples.txt"}
    assert {file.name for file in out.iterdir()} == files | {"checkpoints", ".lock"}
    assert (out / "samples.txt").read_text().count("--- after round ") == 2


def test_windows_depend_on_seed_and_turn_alone():
    data = np.arange(5000, dtype=np.uint8)
    first, again, other = (corpus.windows(data, 4, 0, turn) for turn in (1, 1, 2))
    assert np.array_equal(first[0], again[0]) and not np.array_equal(first[0], other[0])
    assert np.array_equal(first[0][:, 1:], first[1][:, :-1])


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"model": "bert"}, "unknown model 'bert'"),
        ({"learning_rate": -1.0}, "learning_rate must be positive"),
        ({"batch_size": -1}, "must be at least 1"),
        ({"epochs": 0}, "must be at least 1"),
    ],
)
def test_the_text_job_refuses(given, words, tmp_path):
    with pytest.raises(ValueError, match=words):
        text.train(**given, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_text_job_interrupted_at_once_writes_what_there_is(tmp_path, monkeypatch):
    monkeypatch.setattr(text, "SIZES", {"features": 32, "depth": 2, "heads": 2})
    monkeypatch.setattr(
        in_folder, "fit", lambda step, state, *_, **__: Fit(state, [], "interrupted")
    )
    with jax.numpy_dtype_promotion("standard"), pytest.raises(SystemExit) as ended:
        text.train(epochs=2, out=tmp_path / "run")
    assert ended.value.code == 130
    assert json.loads((tmp_path / "run" / "run.json").read_text())["final"] is None
