"""The documentation: its code runs, its numbers and links hold, its reference is complete.

The Python blocks of a page run one after the other in one namespace, in an empty folder. An HTML
comment right above a block, which no reader sees, says what is special about it:

- `<!-- not run -->`: a fragment;
- `<!-- needs: torch -->`: only where that package is installed;
- `<!-- first: ... -->`: code that is run before it, such as data and a model.
"""

import ast
import importlib
import importlib.util
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import funprop as fp

DOCS = Path(__file__).parent.parent / "docs"
BLOCK = re.compile(
    r"^(?:<!-- (?P<note>not run|needs: [^\n]*?|first:\n.*?) ?-->\n)?"
    r"```(?:python|\{code-cell\}[^\n]*)\n(?P<code>.*?)^```",
    re.MULTILINE | re.DOTALL,
)
SLOW = {
    "loop",
    "index",
    "get-started",
    "moving-from",
    "pipeline",
    "verify",
    "verify-step",
    "how-to/private-training",
    "how-to/verify-a-kernel",
    "how-to/swap-the-backward",
}
RUN_ELSEWHERE = {"pretrained"}  # tests/test_pretrained.py, which makes the weights
PAGES = [str(page.relative_to(DOCS))[:-3] for page in sorted(DOCS.rglob("*.md"))]


def blocks(page):
    return list(BLOCK.finditer((DOCS / f"{page}.md").read_text()))


RUN = [
    pytest.param(page, marks=pytest.mark.slow) if page in SLOW or "gallery" in page else page
    for page in PAGES
    if page not in RUN_ELSEWHERE and any(block["note"] != "not run" for block in blocks(page))
]


@pytest.mark.parametrize("page", RUN)
def test_the_code_of_a_page_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "agg")
    names = {"__name__": "page"}
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        for block in blocks(page):
            note, code = block["note"] or "", block["code"]
            if note == "not run":
                continue
            if note.startswith("needs: ") and not all(
                importlib.util.find_spec(name.strip()) for name in note[7:].split(",")
            ):
                continue
            if note.startswith("first:"):
                code = f"{note[6:]}\n{code}"
            exec(compile(code.replace("%matplotlib inline", ""), f"{page}.md", "exec"), names)


def test_few_blocks_are_fragments():
    all_of_them = [block["note"] for page in PAGES for block in blocks(page)]
    assert all_of_them.count("not run") <= len(all_of_them) / 10


@pytest.mark.parametrize("page", PAGES)
def test_relative_links_hold(page):
    text = re.sub(r"^```.*?^```", "", (DOCS / f"{page}.md").read_text(), flags=re.M | re.S)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if not re.match(r"https?:|#|mailto:", link):
            assert (DOCS / page).parent.joinpath(link.split("#")[0]).exists(), link


def test_the_reference_has_every_public_name():
    """Each once, among the entries of the pages of docs/reference."""
    found = [
        name.replace("funprop.train.callbacks::", "callbacks.").replace("funprop.testing::", "")
        for page in (DOCS / "reference").glob("*.md")
        for name in re.findall(r"^\.\. auto(?:function|class):: (\S+)$", page.read_text(), re.M)
    ]
    testing = importlib.import_module("funprop.testing")
    public = [name for name in fp.__all__ if name != "callbacks"]
    public += [f"callbacks.{name}" for name in fp.callbacks.__all__]
    public += [
        name
        for name, thing in vars(testing).items()
        if callable(thing) and thing.__module__ == testing.__name__ and name[0] != "_"
    ]
    if importlib.util.find_spec("funprop.estimators"):
        estimators = importlib.import_module("funprop.estimators")
        found = [name.replace("funprop.estimators::", "estimators.") for name in found]
        public += [f"estimators.{name}" for name in estimators.__all__]
    assert sorted(found) == sorted(public)


def test_the_step_by_pencil_has_the_librarys_numbers():
    """docs/backpropagation.md: every number of its tables, computed by a model of our layers."""
    page = (DOCS / "backpropagation.md").read_text()
    rows = re.findall(r"^\| `([^`|]+)` \|[^|]*\|[^|]*\| `([^`|]+)` \|$", page, re.M)
    told = {name: np.array(ast.literal_eval(value)) for name, value in rows}
    x, t = jnp.array([[1.0, 2.0]]), jnp.array([[2.0]])
    first, relu, second, loss = fp.dense(2), fp.relu(), fp.dense(1), fp.mean_squared()
    p = fp.DenseParams(jnp.array([[0.5, 1.0], [0.25, -1.0]]), jnp.array([0.0, 0.5]))
    q = fp.DenseParams(jnp.array([[2.0], [-1.0]]), jnp.array([0.5]))
    z, kept_1 = first.forward(p, x)
    h, kept_2 = relu.forward((), z)
    y, kept_3 = second.forward(q, h)
    (total, _), kept_4 = loss.forward((), (y, t))
    _, (dy, _) = loss.backward((), kept_4, (jnp.ones(()), jnp.zeros(())))
    dq, dh = second.backward(q, kept_3, dy)
    _, dz = relu.backward((), kept_2, dh)
    dp, dx = first.backward(p, kept_1, dz)
    objective = fp.objective(fp.serial(first, relu, second), loss)
    train = fp.step(fp.backprop(objective), optax.sgd(0.01))
    params = objective.init(jax.random.key(0), (x, t))._replace(dense_0=p, dense_1=q)
    state, _ = train.update(train.init(params, None), (x, t))
    new_p, _, new_q = state.params
    after = fp.measure(fp.backprop(objective))(state.params, (x, t))["loss"].mean
    computed = {
        **{
            "x": x,
            "t": t,
            "W": p.w,
            "b": p.b,
            "v": q.w,
            "c": q.b,
            "z": z,
            "h": h,
            "y": y,
            "L": total,
        },
        **{"dy": dy, "dv": dq.w, "dc": dq.b, "dh": dh, "dz": dz, "dW": dp.w, "db": dp.b, "dx": dx},
        **{"new W": new_p.w, "new b": new_p.b, "new v": new_q.w, "new c": new_q.b, "new L": after},
    }
    assert told.keys() == computed.keys()
    for name, value in told.items():
        np.testing.assert_allclose(value.ravel(), np.ravel(computed[name]), atol=5e-7, err_msg=name)
