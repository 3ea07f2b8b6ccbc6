"""Every test runs with strict promotion: what mixes dtypes or ranks by accident fails.

Most of a test's time is XLA's, compiling what runs once. So programs are compiled without much
optimisation, and what was compiled is kept under `.cache/jax`, for the next run and for the worker
beside this one. `XLA_FLAGS` and `JAX_COMPILATION_CACHE_DIR` of your own take precedence, and a test
of what the optimiser does (memory, flops) asks for it: `cases.OPTIMISED`.
"""

import gc
import importlib
import os
import signal
import types
from pathlib import Path

import jaxlib.version

QUICK = {
    "--xla_backend_optimization_level": "0",
    "--xla_llvm_disable_expensive_passes": "true",
    "--xla_cpu_parallel_codegen_split_count": "1",
}
if jaxlib.version.__version_info__ < (0, 11):  # later ones end the process: "unknown flag"
    QUICK["--xla_cpu_use_fusion_emitters"] = "false"
flags = os.environ.get("XLA_FLAGS", "")
quick = [f"{flag}={value}" for flag, value in QUICK.items() if flag not in flags]
# In the environment, and before JAX reads it: processes that tests start compile likewise.
os.environ["XLA_FLAGS"] = " ".join([*quick, flags]).strip()
cache = Path(__file__).parent.parent / ".cache" / "jax"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
os.environ.setdefault("JAX_TRACEBACK_IN_LOCATIONS_LIMIT", "0")  # of programs that nobody reads

import jax  # noqa: E402
import pytest  # noqa: E402

from tests import slow  # noqa: E402

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")


# Tracing makes many objects that live on: Python need not look through them again and again.
gc.set_threshold(50_000, 20, 20)
compiled = []


def pytest_addoption(parser):
    told = "run what is listed in tests/slow.txt too, and write that list anew"
    parser.addoption("--record-slow", action="store_true", help=told)


@pytest.hookimpl(tryfirst=True)  # before tests are chosen by their marks
def pytest_collection_modifyitems(config, items):
    if not config.getoption("record_slow"):
        slow.mark(items)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    slow.begin(item)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_call(item):
    yield
    slow.end(item)


def pytest_runtest_logreport(report):
    slow.note(report)


def pytest_sessionfinish(session):
    if session.config.getoption("record_slow") and not hasattr(session.config, "workerinput"):
        slow.record()


def pytest_configure():
    @jax.monitoring.register_event_duration_secs_listener
    def note(event, duration, **_):
        if event == "/jax/core/compile/backend_compile_duration":  # read from the cache, too
            compiled.append(duration)


def pytest_collection_finish():
    gc.freeze()


def pytest_runtest_teardown(item, nextitem):
    """A worker holds the programs of one module, and few hundreds: each takes about a megabyte."""
    if nextitem is None or nextitem.path != item.path or len(compiled) > 300:
        compiled.clear()
        jax.clear_caches()
        gc.collect()


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


# A shell's job in the background ignores Ctrl-C, and so would all that tests start and interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
