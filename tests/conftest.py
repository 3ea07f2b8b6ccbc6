"""Every test runs with strict promotion: what mixes dtypes or ranks by accident fails."""

import importlib
import types

import jax
import pytest

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


@pytest.fixture
def any_ranks():
    """For functions as others write them, who leave it to JAX to promote ranks."""
    with jax.numpy_rank_promotion("allow"):
        yield


@pytest.fixture
def with_cudnn(monkeypatch):
    """As on a machine that has the library, so that programs for a GPU are made."""
    module = importlib.import_module("jax._src.cudnn.fused_attention_stablehlo")
    library = types.SimpleNamespace(cudnn_get_version=lambda: 91000)
    monkeypatch.setattr(module, "cuda_versions", library)
