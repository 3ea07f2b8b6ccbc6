"""What a terminal and a notebook show of our values: short, and no page of numbers."""

import jax
import jax.numpy as jnp
import optax
import pytest

import funprop as fp

MODEL = fp.serial(fp.dense(128), fp.relu(), fp.dense(3))
OBJECTIVE = fp.objective(MODEL, fp.softmax_cross_entropy(), accuracy=fp.accuracy)
BATCH = jnp.ones((8, 5)), jnp.zeros(8, jnp.int32)


def made():
    params = OBJECTIVE.init(jax.random.key(0), BATCH)
    grad_fn = fp.backprop(OBJECTIVE)
    train = fp.skip_nonfinite(fp.ema(fp.step(grad_fn, optax.adam(1e-3)), 0.9))
    state = train.init(params, jax.random.key(1))
    return {
        "layer": MODEL,
        "objective": OBJECTIVE,
        "grad_fn": grad_fn,
        "transformed": fp.microbatch(grad_fn, 2),
        "step": train,
        "state": state,
        "fused": fp.fused_step(OBJECTIVE, optax.adam(1e-3)).init(params, None),
        "scaled": fp.loss_scale(fp.step(grad_fn, optax.adam(1e-3))).init(params, None),
        "gradient": grad_fn(params, BATCH),
        "summary": fp.summary(MODEL, BATCH[0]),
        "params table": fp.param_table(params),
        "report": fp.verify(MODEL, params, BATCH[0]),
    }


@pytest.fixture(scope="module")
def values():
    return made()


def test_short_in_a_terminal(values):
    for name, value in values.items():
        text = repr(value)
        assert len(text) < 700, (name, text)
        assert "Array(" not in text and "functools" not in text, (name, text)


def test_says_what_it_is(values):
    of = "backprop(objective(serial(dense, relu, dense), softmax_cross_entropy))"
    assert repr(values["step"]) == f"skip_nonfinite(ema(step({of})))"
    assert of in repr(values["grad_fn"])
    assert "params=<4 arrays, 1,155 numbers, float32>" in repr(values["state"])
    assert "count=0" in repr(values["state"]) and "key=key" in repr(values["state"])
    assert "accuracy: Sum(total=" in repr(values["gradient"])


def test_traced_and_donated_values_have_a_repr():
    train = fp.step(fp.backprop(OBJECTIVE), optax.adam(1e-3))
    state = train.init(OBJECTIVE.init(jax.random.key(0), BATCH), None)
    seen = []
    jax.eval_shape(lambda state: seen.append(repr(state)), state)
    assert "count=int32[]" in seen[0]
    with jax.numpy_dtype_promotion("standard"):  # as optax's own adam is written
        train.update(state, BATCH)
    assert "count=int32[], given away" in repr(state)


def test_tables_in_a_notebook(values):
    for name in ("summary", "params table", "report"):
        page = values[name]._repr_html_()
        assert page.startswith("<table>") and page.count("<tr>") > 3, name
    wrong = fp.layer(
        forward=lambda params, x: (x * x, x),
        backward=lambda params, x, dy: ((), x * dy),
        name="<b>",
    )
    page = fp.verify(wrong, (), jnp.ones(3))._repr_html_()
    assert "1/2 times" in page and "<b>" not in page


def test_a_history_in_a_notebook():
    train = fp.step(fp.backprop(OBJECTIVE), optax.sgd(0.1))
    state = train.init(OBJECTIVE.init(jax.random.key(0), BATCH), None)
    found = fp.fit(train, state, BATCH, epochs=3, batch_size=4, held_out=BATCH, progress=None)
    assert len(repr(found)) < 500
    page = found._repr_html_()
    assert page.count("<svg") == 1 and page.count("<tr>") == 4 and "all 3 epochs done" in page
