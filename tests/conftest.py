"""Every test runs with strict promotion: a layer that mixes dtypes by accident fails."""

import jax
import pytest

jax.config.update("jax_numpy_dtype_promotion", "strict")


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield
