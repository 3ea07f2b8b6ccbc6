"""`verify_step` finds what is wrong with a training step, by the check that it belongs to, and finds
nothing in right ones."""

import jax
import numpy as np
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
