"""`verify_step` finds what is wrong with a training step, by the check that it belongs to, and finds
nothing in right ones."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import funprop as fp
from funprop.verify.training.running import Steps, is_real
from tests.corpus_steps import further, libraries
from tests.corpus_steps.plain import RIGHT, WRONG, case


@pytest.fixture(autouse=True)
def as_others_do():
    """Optax's own adam mixes dtypes."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


QUICK = ("sign turned", "old params returned", "average started at zero", "key reused each step",
         "sum for a mean, sgd", "frozen param decays", "metrics summed", "momentum reset",
         "donated params used again", "a global key", "noise from NumPy")  # fmt: skip


def some(names, quick):
    return [n if n in quick else pytest.param(n, marks=pytest.mark.slow) for n in names]


@pytest.mark.parametrize("name", some(WRONG | further.WRONG, QUICK))
def test_wrong_steps_are_found(name):
    check, make = (WRONG | further.WRONG)[name]
    update, state, batch, said = make()
    update = jax.jit(update) if name in WRONG else update
    report = fp.verify_step(update, state, batch, **said)
    assert check in {finding.name for finding in report.findings}, str(report)


@pytest.mark.parametrize("name", some(RIGHT | further.RIGHT, ("dropout", "masked")))
def test_right_steps_are_left_in_peace(name):
    update, state, batch, said = (RIGHT | further.RIGHT)[name]()
    report = fp.verify_step(jax.jit(update), state, batch, **said)
    assert report.ok, str(report)


@pytest.mark.parametrize("name", some(libraries.RIGHT, ("funprop, averaged",)))
def test_right_steps_of_libraries_are_left_in_peace(name, monkeypatch):
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    module, make = libraries.RIGHT[name]
    pytest.importorskip(module)
    update, state, batch, said = make()
    report = fp.verify_step(update, state, batch, **said)
    assert report.ok and len(report.unasked) < 9, str(report)


def test_what_cannot_be_asked_is_said():
    update, state, batch, _ = case()
    report = fp.verify_step(update, state, batch, skip=("order", "twice", "short"))
    assert report.ok and {"gradient", "padding"} <= {check.name for check in report.unasked}
    assert "order" not in {check.name for check in report.checks}
    for wrong in ({"skip": ("ordre",)}, {"reduction": "max"}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            fp.verify_step(update, state, batch, **wrong)


def regression(scale=1.0, dtype=jnp.float32):
    """A step by hand, its gradient scaled and its new params cast."""
    loss_fn = lambda w, batch: jnp.mean((batch["x"] @ w - batch["y"]) ** 2)
    x = jax.random.normal(jax.random.key(0), (8, 3))

    def update(state, batch):
        loss, grads = jax.value_and_grad(loss_fn)(state["params"], batch)
        params = state["params"] - 0.1 * scale * grads
        average = 0.9 * state["average"] + 0.1 * params
        return {"params": params.astype(dtype), "average": average}, {"loss": loss}

    w = jnp.ones(3)
    said = {"loss_fn": loss_fn, "average": lambda state: state["average"]}
    return update, {"params": w, "average": w}, {"x": x, "y": x.sum(1) * 2}, said


def test_one_array_may_stand_at_two_places_of_a_state():
    update, state, batch, said = regression()
    report = fp.verify_step(update, state, batch, **said)
    assert report.ok, str(report)


def test_a_step_that_diverges_is_told_why():
    update, state, batch, said = regression(scale=1e12)
    said["optimizer"] = optax.sgd(0.1)
    state["opt_state"] = said["optimizer"].init(state["params"])
    kept = lambda s, b: ({**s, **update(s, b)[0]}, update(s, b)[1])
    report = fp.verify_step(kept, state, batch, **said)
    assert {finding.name for finding in report.findings} == {"gradient"}, str(report)
    del said["loss_fn"]
    with pytest.raises(ValueError, match="finite"):
        fp.verify_step(kept, state, batch, **said)


def test_a_state_that_comes_back_in_another_dtype_is_judged_to_the_end():
    update, state, batch, said = regression(dtype=jnp.bfloat16)
    report = fp.verify_step(update, state, batch, **said)
    (finding,) = (f for f in report.findings if f.name == "state")
    assert finding.leaf == "params" and len(report.checks) > 10


def test_of_a_step_that_counts_outside_of_its_state_only_that_is_told():
    update, state, batch, said = regression()
    calls = iter(range(10**6))
    counting = lambda s, b: update(s, {**b, "y": b["y"] * next(calls)})
    report = fp.verify_step(counting, state, batch, **said)
    assert {finding.name for finding in report.findings} <= {"replay", "restore"}, str(report)
    assert report.findings


def test_an_empty_batch_is_refused():
    update, state, batch, said = regression()
    with pytest.raises(ValueError, match=r"^batch must hold examples along axis 0, got none$"):
        fp.verify_step(update, state, jax.tree.map(lambda v: v[:0], batch), **said)


@pytest.mark.parametrize(
    ("kept", "told"),
    [(lambda v: v[:-1] if len(v) > 1 else v, "example 8 of 8 has no say: what does not divide"),
     (lambda v: v[:1], "examples 2, 3, 4 and 4 more of 8 have no say")],
)  # fmt: skip
def test_examples_without_a_say_are_named(kept, told):
    update, state, batch, _ = regression()
    report = fp.verify_step(lambda s, b: update(s, jax.tree.map(kept, b)), state, batch)
    (finding,) = (f for f in report.findings if f.name == "order")
    assert finding.problem.startswith(told)
    assert finding.problem.endswith("left out") == ("divide" in told)


def test_sums_that_a_device_takes_in_any_order_are_no_mistake(monkeypatch):
    """As a GPU's scatter does: the last bits of the new params differ each time."""
    given, rng = Steps.given, np.random.default_rng(0)

    def noisy(self, *args, **kwargs):
        found = given(self, *args, **kwargs)
        off = [1e-7 * rng.integers(-1, 2, np.shape(a)) for a in found.arrays]
        pairs = zip(found.arrays, off, strict=True)
        arrays = [a * (1 + o).astype(a.dtype) if is_real(a) else a for a, o in pairs]
        return found._replace(arrays=arrays)

    monkeypatch.setattr(Steps, "given", noisy)
    update, state, batch, said = case()
    report = fp.verify_step(jax.jit(update), state, batch, **said)
    assert report.ok, str(report)
    notes = {check.name for check in report.checks if "another order" in check.note}
    assert notes == {"replay", "restore"}
