"""`verify_step` over eight devices; run by tests/test_sharding.py too."""

import jax
import pytest

import funprop as fp
from tests.corpus_steps.further import ON_DEVICES, RIGHT_ON_DEVICES
from tests.test_verify_step import as_others_do

__all__ = ["as_others_do"]  # a fixture that is used by itself
pytestmark = [
    pytest.mark.skipif(jax.device_count() < 8, reason="wants eight devices"),
    pytest.mark.slow,
]
LAWS = ("order", "twice", "short", "restore", "carried", "replay", "nan")  # asked elsewhere


@pytest.mark.parametrize("name", ON_DEVICES)
def test_what_differs_on_several_devices_is_found(name):
    check, make = ON_DEVICES[name]
    update, state, batch, said = make()
    report = fp.verify_step(jax.jit(update), state, batch, skip=LAWS, **said)
    assert [finding.name for finding in report.findings] == [check], str(report)


@pytest.mark.parametrize("name", RIGHT_ON_DEVICES)
def test_what_does_not_is_left_in_peace(name):
    update, state, batch, said = RIGHT_ON_DEVICES[name]()
    report = fp.verify_step(jax.jit(update), state, batch, skip=LAWS, **said)
    assert report.ok and "devices" not in {row.name for row in report.unasked}, str(report)
