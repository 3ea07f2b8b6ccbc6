"""What `derive` writes: Python that needs JAX alone and gives the gradient of `backprop`."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import funprop as fp
from funprop.params.selection import by_name

KEY = jax.random.key(0)
IDS = (jnp.arange(16).reshape(2, 8) % 7, jnp.arange(1, 17).reshape(2, 8) % 7)
IMAGES = jnp.linspace(-1.0, 1.0, 4 * 8 * 8).reshape(4, 8, 8, 1)
SERIES = jnp.sin(jnp.arange(30.0)).reshape(2, 5, 3)
CLASSES = jnp.array([0, 2, 1, 1])


def text_model(make, tied=True):
    return fp.language_model(make(7, features=16, depth=2, heads=2), 7, tied=tied)


def small_gpt(vocabulary, **sizes):
    return fp.gpt(vocabulary, longest=8, rate=0.1, **sizes)


def narrow_llama(vocabulary, **sizes):
    return fp.llama(vocabulary, kv_heads=1, window=4, **sizes)


def classes(model):
    return fp.objective(model, fp.softmax_cross_entropy())


slow = pytest.mark.slow
CASES = {
    "mlp": (classes(fp.mlp(5, 3)), (IMAGES[..., 0, 0], CLASSES), None),
    "rnn": (classes(fp.rnn(3, fp.gru(4))), (SERIES, CLASSES[:2]), None),
    "lstm": (classes(fp.rnn(3, fp.lstm(4), fp.lstm(4))), (SERIES, CLASSES[:2]), None),
    "autoencoder": (
        fp.objective(fp.autoencoder((8, 8, 1), code=3, widths=(4,)), fp.mean_squared()),
        (IMAGES, IMAGES),
        None,
    ),
    "cnn": (classes(fp.cnn(3, widths=(8, 16))), (IMAGES, CLASSES), None),
    "gpt": (text_model(small_gpt), IDS, None),
    "dropout": (text_model(small_gpt), IDS, KEY),
    "llama": (text_model(narrow_llama, tied=False), IDS, None),
}
QUICK = ("mlp", "rnn")
ALONE = """
import sys
sys.modules["funprop"] = None  # so that it cannot be imported
import jax, numpy as np
space = {}
exec(compile(open("derived.py").read(), "derived.py", "exec"), space)
given = np.load("given.npz")
params = {name[2:]: given[name] for name in given if name.startswith("p:")}
batch = given["inputs"], given["targets"]
key = (jax.random.wrap_key_data(given["key"]),) if "key" in given else ()
loss, weight, gradients = jax.jit(space["gradient"])(params, batch, *key)
np.savez("found.npz", loss=loss, weight=weight, **{"p:" + name: g for name, g in gradients.items()})
"""


@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n in QUICK else slow) for n in CASES])
def test_python_without_funprop_gives_the_gradient_of_backprop(name, tmp_path):
    objective, batch, key = CASES[name]
    params = objective.init(jax.random.key(1), batch)
    derived = fp.derive(objective, params, batch, key=key)
    assert "funprop" not in derived.python.partition('"""\n')[2].replace("funprop_", "")
    (tmp_path / "derived.py").write_text(derived.python)
    given = {f"p:{path}": leaf for path, leaf in by_name(params).items()}
    if key is not None:
        given["key"] = jax.random.key_data(key)
    np.savez(tmp_path / "given.npz", inputs=batch[0], targets=batch[1], **given)
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    subprocess.run([sys.executable, "-c", ALONE], cwd=tmp_path, env=env, check=True)
    found = np.load(tmp_path / "found.npz")
    want = jax.jit(fp.backprop(objective))(params, batch, key)
    np.testing.assert_allclose(found["loss"], want.loss, rtol=1e-6)
    assert found["weight"] == want.weight
    grads = by_name(want.grads)
    assert {n[2:] for n in found if n.startswith("p:")} == set(grads)
    for path, wanted in grads.items():
        atol = 2e-6 * float(jnp.abs(wanted).max())
        np.testing.assert_allclose(found[f"p:{path}"], wanted, rtol=1e-5, atol=atol, err_msg=path)


def run(derived, *arguments):
    space = {}
    exec(compile(derived.python, "derived.py", "exec"), space)
    (function,) = (v for k, v in space.items() if k in ("gradient", "backward"))
    return function(*arguments)


def test_of_a_model_without_a_loss_the_python_takes_a_cotangent(any_ranks):
    model = fp.serial(fp.dense(3), fp.tanh(), fp.residual(fp.dense(3)))
    x = jnp.ones((2, 4))
    params = model.init(KEY, x)
    derived = fp.derive(model, jax.eval_shape(lambda: params), jax.eval_shape(lambda: x))
    dy = jnp.arange(6.0).reshape(2, 3)
    y, gradients, dx = run(derived, by_name(params), x, dy)
    want_y, residuals = model.forward(params, x)
    dparams, want_dx = model.backward(params, residuals, dy)
    np.testing.assert_allclose(y, want_y, rtol=1e-6)
    np.testing.assert_allclose(dx, want_dx, rtol=1e-6)
    for name, wanted in by_name(dparams).items():
        np.testing.assert_allclose(gradients[name], wanted, rtol=1e-6, err_msg=name)


# What people write in layers of their own, beyond what ours are made of.
OWN = {
    "ordered": lambda x: jnp.sort(x, 0) + x[jnp.argsort(x[:, 0])] + jax.lax.top_k(x, 4)[0],
    "row beside": lambda x: (
        jnp.fmod(x, 1 + jnp.abs(x[0])) * jnp.digitize(x, jnp.arange(3.0)).astype("f")
    ),
    "matrix": lambda x: jnp.linalg.solve(x, jnp.eye(4)) + jnp.linalg.cholesky(x @ x.T),
    "decomposed": lambda x: (
        jnp.linalg.qr(x)[1] + jnp.linalg.eigh(x @ x.T)[1] + jnp.linalg.svd(x)[1]
    ),
    "expm": lambda x: jax.scipy.linalg.expm(x),  # which chooses among five
    "tridiagonal": lambda x: jax.lax.linalg.tridiagonal_solve(x[0], 5 + x[1], x[2], x),
    "complex": lambda x: jnp.abs(jnp.fft.rfft(x) * (1 + 2j)),
    "pool": lambda x: jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (2, 2), (1, 1), "SAME"),
    "elementwise": lambda x: jnp.arctan(x) + jax.scipy.special.gammainc(2.0, jnp.abs(x)),
    "groups": lambda x: jax.ops.segment_max(x, jnp.array([0, 1, 1, 0]), 2),
    "keys": lambda x: jax.vmap(jax.random.uniform)(jax.random.split(KEY, 4)) * x,
    "moved": lambda x: jax.device_put(x, jax.devices()[0]) * x,
}


@pytest.mark.parametrize("name", OWN)
def test_a_layer_of_anybody_is_written_like_ours(name, any_ranks):
    own = fp.from_function(lambda key, x: (), lambda params, x: OWN[name](x), name="own")
    x = jnp.asarray(np.random.default_rng(0).normal(size=(4, 4)), jnp.float32)
    derived = fp.derive(own, (), x)
    y, residuals = own.forward((), x)
    dy = jnp.cos(jnp.arange(y.size)).reshape(y.shape)
    found = run(derived, {}, x, dy)
    np.testing.assert_allclose(found[0], y, rtol=1e-5, atol=1e-5)
    want = own.backward((), residuals, dy)[1]
    np.testing.assert_allclose(found[2], want, rtol=1e-4, atol=1e-5)


def test_outputs_and_cotangents_have_their_own_structure(any_ranks):
    def apply(params, x):
        return {"y": (x["a"][0] * params, [x["a"][1]])}

    own = fp.from_function(lambda key, x: jnp.ones(3), apply)
    x = {"a": (jnp.ones((2, 3)), jnp.ones(2))}
    y = own.forward(jnp.ones(3), x)[0]
    found = run(fp.derive(own, jnp.ones(3), x), {"": jnp.ones(3)}, x, y)
    assert jax.tree.structure((found[0], found[2])) == jax.tree.structure((y, x))
    ids = jnp.arange(2)
    table = fp.embedding(4, 3)
    params = table.init(KEY, ids)
    found = run(fp.derive(table, params, ids), by_name(params), ids, jnp.ones((2, 3)))
    assert found[2] is None


def test_a_model_that_does_nothing_is_written_too():
    derived = fp.derive(fp.serial(), (), jnp.ones(2))
    assert derived.text == "forward pass\n\nbackward pass"
    assert run(derived, {}, 1.0, 2.0) == (1.0, {}, 2.0)


def test_the_mathematics_follows_the_arrays_through_the_model():
    skip = fp.residual(fp.serial(fp.dense(4, bias=False), fp.tanh()))
    objective = fp.objective(fp.serial(fp.repeat(skip, 3), fp.dense(1)), fp.mean_squared())
    batch = jnp.ones((2, 4)), jnp.ones((2, 1))
    derived = fp.derive(objective, objective.init(KEY, batch), batch)
    forward, backward = derived.text.split("\n\n")
    lines = [" ".join(line.split()) for line in forward.splitlines()[1:]]
    assert lines == [
        "repeat for each copy 1, ..., 3, which reads x0 first, then what the one before gave:",
        "repeat/dense x1 = x0 w1 + b1",
        "repeat/tanh x2 = tanh(x1)",
        "repeat x3 = x0 + x2",
        "repeat x4 = x3 of the last copy",
        "dense x5 = x4 w5 + b5",
        "mean_squared L = (x5 - t)^2",
    ]
    lines = [" ".join(line.split()) for line in backward.splitlines()[1:]]
    assert lines == [
        "mean_squared dx5 = 2 (x5 - t)",
        "dense dx4 = dx5 w5^T",
        "dw5 = x4^T dx5",
        "db5 = sum of dx5",
        "repeat for each copy 3, ..., 1, with dx3 = dx4 first, then what the one behind gave back:",
        "repeat dx0 = dx3",
        "dx2 = dx3",
        "repeat/tanh dx1 = (1 - x2^2) dx2",
        "repeat/dense dx0 += dx1 w1^T",
        "dw1 = x0^T dx1",
        "db1 = sum of dx1",
    ]
    assert derived.latex.count(r"\begin{align*}") == 2
    assert r"{dx_{0}} \mathrel{+}= {dx_{1}}\, {w_{1}}^\top" in derived.latex


twice = fp.reparam(
    fp.serial(fp.dense(3), fp.tanh(), fp.dense(3)),
    expand=lambda params: (params, (), params),
    initial=lambda params: params[0],
)
LENGTHS = SERIES, jnp.array([5, 2])
TOLD = {  # a model and its input, lines that are there, words that are not
    "lengths have no cotangent": (
        fp.serial(fp.with_lengths(fp.dense(3)), fp.lstm(3), fp.last_step()),
        LENGTHS,
        ["lstm z = x1_t w3_x + h w3_h + b3", "dx1 = dz w3_x^T", "dense dx0 = dx1 w1^T"],
        ["+= dx1", "with_lengths", "(x"],
    ),
    "params of others": (
        fp.serial(fp.dense(3), twice),
        SERIES,
        ["reparam p = e(q), p the params of what is below, made of its own, q",
         "reparam dq = e'(q)^T dp"],
        [],
    ),
    "frozen": (
        fp.freeze(fp.serial(fp.dense(3), fp.layer_norm()), "*"),
        SERIES,
        ["dense dx0 = dx1 w1^T", "dx1 = r (du - mean(du) - u mean(u du))"],
        ["dw", "db", "dscale"],
    ),
    "the error to each": (
        fp.direct_feedback(fp.dense(4), fp.dense(3)),
        SERIES,
        ["direct_feedback h_0 = x0", "dh_i = dx1 B_i for all others"],
        ["direct_feedback'"],
    ),
    "a matrix a layer": (
        fp.feedback_alignment(fp.serial(fp.dense(4), fp.dense(3))),
        SERIES,
        ["dense_1 dx1 = dx2 B2^T", "dense_0 dx0 = dx1 B1^T"],
        [],
    ),
    "stride is no param": (
        fp.conv(4, 3, stride=2),
        IMAGES,
        ["conv x1[p] = sum over k of x0[stride p + k] w1[k] + b1"],
        ["s1"],
    ),
    "what keeps logits small": (
        fp.linear_cross_entropy(3, z_loss=0.1),
        (SERIES[:, 0], CLASSES[:2]),
        ["linear_cross_entropy dz = p - q + 2 zeta r p"],
        [],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", TOLD)
def test_the_mathematics_is_that_of_this_model(name):
    model, x, there, absent = TOLD[name]
    derived = fp.derive(model, jax.eval_shape(model.init, KEY, x), x)
    lines = [" ".join(line.split()) for line in derived.text.splitlines()]
    assert [line for line in there if line not in lines] == []
    assert [words for words in absent if words in derived.text] == []


def test_what_has_no_python_is_said_in_one_sentence():
    def forward(params, x):
        return jax.pure_callback(np.sin, x, x), x

    odd = fp.layer(
        forward=forward, backward=lambda params, x, dy: ((), dy * jnp.cos(x)), name="odd"
    )
    model = fp.serial(fp.tanh(), odd)
    with pytest.raises(
        ValueError, match="forward: odd: derive knows no Python for JAX's pure_callb"
    ):
        fp.derive(model, model.init(KEY, jnp.ones(2)), jnp.ones(2))
    with pytest.raises(TypeError, match=r"^x must hold numbers, got 'a'"):
        fp.derive(fp.tanh(), (), "a")
    with pytest.raises(TypeError, match=r"^dense: x must be an array, got tuple"):
        line = fp.serial(fp.dense(2), fp.relu())
        fp.derive(line, line.init(KEY, jnp.ones((1, 2))), (jnp.ones((1, 2)), jnp.ones((1, 2))))
    with pytest.raises(TypeError, match="layer must be"):
        fp.derive(jnp.tanh, (), jnp.ones(2))


def test_short_in_a_terminal():
    derived = fp.derive(fp.dense(2), fp.dense(2).init(KEY, jnp.ones((1, 2))), jnp.ones((1, 2)))
    assert repr(derived).startswith("Derivation(dense, ")
    assert str(derived) == derived.text
