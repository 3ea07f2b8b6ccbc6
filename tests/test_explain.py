"""`explain` tells what backprop does: its cotangents and gradients, and what is off in them; its
page holds them, and works in a browser."""

import functools
import json
import re
import shutil
import subprocess

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import funprop as fp
from funprop.explaining.page import data

KEY = jax.random.key(0)
TOKENS = jax.random.randint(KEY, (2, 6), 0, 11)
SQUARE = fp.layer(
    forward=lambda params, x: (x * x, x),
    backward=lambda params, x, dy: ((), 2 * x * dy),
    name="square",
)


def small():
    """2-3-1, as one follows it by hand."""
    batch = jnp.array([[1.0, 2.0], [0.5, -1.0]]), jnp.array([[1.0], [0.0]])
    return fp.objective(fp.mlp(3, 1), fp.mean_squared()), batch


def blocks():
    block = fp.residual(fp.serial(fp.dense(4), fp.tanh()))
    model = fp.serial(fp.repeat(block, 3), fp.parallel(fp.dense(2), SQUARE), fp.concatenate())
    batch = jax.random.normal(KEY, (5, 4)), jnp.zeros((5, 6))
    return fp.objective(model, fp.mean_squared()), batch


def tied(rewrite=lambda block: block):
    model = fp.gpt(11, features=8, depth=2, heads=2, longest=8, rewrite=rewrite)
    return fp.language_model(model, 11), (TOKENS, TOKENS)


@functools.cache
def told(make, **options):
    objective, batch = make()
    params = objective.init(jax.random.key(1), batch)
    return fp.explain(objective, params, batch, **options), objective, params, batch


def twice(block):
    return fp.remat(fp.keep_products(block))


SLOW = [
    pytest.param(lambda: tied(fp.remat), marks=pytest.mark.slow, id="recomputed"),
    pytest.param(lambda: tied(twice), marks=pytest.mark.slow, id="recomputed-twice"),
]


@pytest.mark.parametrize("make", [small, blocks, tied, *SLOW])
def test_gradients_are_backprop_s_copy_by_copy(make):
    found, objective, params, batch = told(make)
    expected = fp.by_name(fp.backprop(objective)(params, batch).grads)
    for name, leaf in fp.by_name(found.gradient.grads).items():
        np.testing.assert_allclose(leaf, expected[name], rtol=1e-4, atol=1e-6)
    seen = set()
    for call in found.layers:  # of a tied table, each layer has its own part
        path, copy = re.subn(r"\[(\d+)\]", "", call.path)
        for leaf, norm in ((leaf, s.norm) for leaf, s in call.gradients.items()):
            name = f"{path}/{leaf}"
            if name in expected and not name.startswith("embedding"):
                index = int(re.search(r"\[(\d+)\]", call.path)[1]) if copy else slice(None)
                want = np.linalg.norm(np.ravel(expected[name][index]))
                assert norm == pytest.approx(want, rel=1e-4), call.path
                seen.add(name)
    assert len(seen) >= len(expected) - 1 - ("embedding/table" in expected)


def test_cotangents_are_the_true_ones():
    found, objective, params, batch = told(blocks)
    model = objective.children[0]
    by_path = {call.path: call for call in found.layers}

    def after(shift, copy):  # the loss, where something is added to what one copy's tanh gives
        x = batch[0]
        for i in range(3):
            w = jax.tree.map(lambda leaf, i=i: leaf[i], params[0])
            x = x + jnp.tanh(x @ w[0].w + w[0].b[None]) + (shift if i == copy else 0)
        rest = fp.as_function(fp.serial(*model.children[1:]))
        return (rest(params[1:], x) ** 2).sum()

    for copy in range(3):
        want = jax.grad(after)(jnp.zeros((5, 4)), copy)
        # The cotangent of a branch is that of the sum behind it.
        (call,) = (c for p, c in by_path.items() if "tanh" in p and f"[{copy}]" in p)
        assert call.dy.norm == pytest.approx(float(jnp.linalg.norm(want)), rel=1e-5)
        np.testing.assert_allclose(call.dy.values, want, rtol=1e-4, atol=1e-6)


def test_updates_are_the_step_s_own():
    optimizer = optax.adam(1e-3)
    with jax.numpy_dtype_promotion("standard"):  # optax's Adam mixes dtypes
        found, objective, params, batch = told(tied, optimizer=optimizer)
        step = fp.step(fp.backprop(objective), optimizer)
        new = fp.by_name(step.update(step.init(params, None), batch)[0].params)
    for row in found.updates:
        np.testing.assert_allclose(row.after.norm, np.linalg.norm(np.ravel(new[row.name])), 1e-5)
    assert {row.name for row in found.updates} == set(new)


def noted(model, x, scale=1.0, **options):
    objective = fp.objective(model, fp.mean_squared())
    batch = x, jnp.zeros((len(x), 1))
    params = jax.tree.map(lambda p: p * scale, objective.init(KEY, batch))
    return {(n.where, n.kind) for n in fp.explain(objective, params, batch, **options).notes}


def test_what_is_off_is_noted_and_nothing_else():
    x = jax.random.normal(KEY, (32, 6))
    mlp = fp.serial(fp.dense(16), fp.relu(), fp.dense(1))
    assert noted(mlp, x) == set()
    dead = fp.serial(fp.dense(8, b_init=lambda *_: jnp.full(8, -99.0)), fp.relu(), fp.dense(1))
    assert ("relu", "dead units") in noted(dead, x)
    assert ("dense_0/w", "zero gradient") in noted(dead, x)
    deep = fp.serial(*(part for _ in range(8) for part in (fp.dense(6), fp.tanh())), fp.dense(1))
    assert {kind for _, kind in noted(deep, x, 100.0)} >= {"saturated"}
    assert {kind for _, kind in noted(deep, x, 0.1)} == {"vanishing cotangent"}
    wide = fp.serial(*(fp.dense(6) for _ in range(8)), fp.dense(1))
    assert "exploding cotangent" in {kind for _, kind in noted(wide, x, 20.0)}
    assert {kind for _, kind in noted(mlp, x, optimizer=optax.sgd(9.0))} == {"large update"}


def test_shown_as_tables_and_a_layer_without_a_formula_as_such():
    found, *_ = told(blocks)
    text = found.plain()
    assert [f"{i}. {name}" in text for i, name in enumerate(("Forward", "Loss", "Backward"), 1)]
    assert re.search(r"dense \(x 3\) +y = x w \+ b +float32\[5,4\]", text), text
    assert re.search(r"square +- +float32\[5,4\]", text), text
    assert "<table>" in found._repr_html_()
    mine = fp.layer(
        forward=SQUARE.forward,
        backward=SQUARE.backward,
        formula=fp.Formula("y = x^2", "dx = 2 x dy"),
    )
    assert fp.named("mine", mine).formula.forward == "y = x^2"


def test_bad_input_in_one_sentence():
    objective, batch = small()
    params = objective.init(KEY, batch)
    with pytest.raises(TypeError, match=r"objective must give a Sum.* got the model mlp alone"):
        fp.explain(fp.mlp(3, 1), params, batch)
    other = fp.mlp(4, 1).init(KEY, batch[0])
    with pytest.raises(ValueError, match=r"params do not belong to this model: at dense_0/w"):
        fp.explain(objective, other, batch)


def test_the_page_holds_all_and_needs_no_network(tmp_path):
    for make, most in ((small, 1e5), (tied, 2e6)):
        found, *_ = told(make)
        found.to_html(tmp_path / "page.html")
        page = (tmp_path / "page.html").read_text()
        inside = json.loads(re.search(r'id="data">(.*?)</script>', page, re.DOTALL)[1])
        assert len(inside["forward"]) == len(found.layers) - 1
        assert len(page) < most
        urls = set(re.findall(r"(?:https?:)?//[\w.]+\.\w+[^\"' ]*", page))
        assert urls <= {"http://www.w3.org/2000/svg"}  # a name, which nobody fetches
        assert not re.search(r"<link|<script src|@import|url\((?!#)", page)
    assert data(told(small)[0])["units"] is not None and data(told(blocks)[0])["units"] is None


def test_numbers_that_are_not_finite_stay_json():
    objective, batch = small()
    params = objective.init(KEY, batch)
    found = fp.explain(objective, params, (batch[0] * jnp.inf, batch[1]))
    json.dumps(data(found), allow_nan=False)
    assert "not finite" in {note.kind for note in found.notes}


def test_a_gradient_of_nan_is_not_told_as_zero_and_a_batch_of_no_weight_as_that():
    objective = fp.objective(fp.repeat(fp.dense(2), 3), fp.mean_squared())
    batch = jnp.ones((2, 2)), jnp.ones((2, 2))
    params = objective.init(KEY, batch)
    found = fp.explain(objective, params, (batch[0] * jnp.nan, batch[1]))
    assert {note.kind for note in found.notes} == {"not finite"}
    assert all(np.isnan(row.gradient.norm) for row in found.updates) and "w nan" in found.plain()
    of_one = params._replace(w=params.w.at[1].set(jnp.nan))
    assert "nan to" not in fp.explain(objective, of_one, batch).plain()
    for nothing in ((*batch, jnp.zeros(2)), tuple(part[:0] for part in batch)):
        (note,) = fp.explain(objective, params, nothing).notes
        assert (note.where, note.what) == (
            "batch",
            "no term of it has weight, so nothing is trained by it",
        )


NAMES = "chromium", "chromium-browser", "google-chrome"
BROWSER = next(filter(None, map(shutil.which, NAMES)), None)
DRIVE = """<script>
const said = [], opened = performance.now();
try {
  const key = name => document.dispatchEvent(new KeyboardEvent("keydown", { key: name }));
  const slider = document.getElementById("slider"), stages = new Set();
  for (let i = 0; i <= +slider.max; i++) {
    slider.value = i;
    slider.dispatchEvent(new Event("input"));
    stages.add(document.body.dataset.stage);
  }
  said.push("stages " + [...stages].join(""));
  key("ArrowLeft"); said.push("left " + document.body.dataset.stage);
  for (const view of document.querySelectorAll("[data-view]")) view.click();
  const nodes = [...document.querySelectorAll("[data-node]")].map(n => n.dataset.node);
  const click = found => found && found.dispatchEvent(new Event("click"));
  for (const n of nodes) click(document.querySelector(`[data-node="${n}"]`));
  said.push("nodes " + nodes.length, "panel " + document.querySelector("#panel h2").textContent);
  for (const what of ["copy", "fold", "unit"]) click(document.querySelector(`[data-${what}]`));
  document.getElementById("theme").click();
} catch (error) { errors.push(String(error)); }
const wide = document.documentElement.scrollWidth - innerWidth;
document.body.dataset.said = JSON.stringify({ said, errors, opened, wide });
</script></body>"""


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="no Chromium")
@pytest.mark.parametrize("size", ["1280,800", "500,900"])
def test_the_page_works_in_a_browser(tmp_path, size):
    model = fp.gpt(256, features=128, depth=4, heads=4, longest=64)
    lm, tokens = fp.language_model(model, 256), jnp.zeros((1, 16), int)
    gpt = fp.explain(lm, lm.init(KEY, (tokens, tokens)), (tokens, tokens))
    for found, nodes in ((told(small)[0], 4), (gpt, 12)):
        page = tmp_path / "page.html"
        found.to_html(page)
        watched = page.read_text().replace(
            "<head>", "<head><script>const errors = []; onerror = m => errors.push(m);</script>"
        )
        page.write_text(watched.replace("</body>", DRIVE))
        flags = [
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            f"--window-size={size}",
            "--dump-dom",
        ]
        run = [BROWSER, *flags, f"--user-data-dir={tmp_path / 'profile'}", page.as_uri()]
        dom = subprocess.run(run, capture_output=True, text=True, timeout=60, check=True).stdout
        said = json.loads(re.search(r'data-said="([^"]*)"', dom)[1].replace("&quot;", '"'))
        assert said["errors"] == [] and said["wide"] <= 0
        assert said["said"][:3] == ["stages 0123", "left 2", f"nodes {nodes}"], said
        assert said["opened"] < 2000, said


def test_a_leaf_rebuilds_to_itself_with_its_formula():
    for leaf in (fp.dense(3), fp.relu(), fp.mean_squared()):
        assert leaf.rebuild() is leaf and leaf.formula is not None
