"""What XLA's compiling takes, and how it is spared the next time."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import jax

COMPILED = "/jax/core/compile/backend_compile_duration"


def cache_compilations() -> None:
    """Keep compiled programs in the user's cache folder, so that the next run starts faster.

    Where JAX was told a folder already (`JAX_COMPILATION_CACHE_DIR`), it is that one; an empty one
    means none.
    """
    if "JAX_COMPILATION_CACHE_DIR" in os.environ or getattr(
        jax.config, "jax_compilation_cache_dir", None
    ):
        return
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    settings = {
        "jax_compilation_cache_dir": str(home / "funprop" / "jax"),
        # Many small programs are what a run here compiles; JAX's own threshold, 1 s, keeps none.
        "jax_persistent_cache_min_compile_time_secs": 0.05,
    }
    for name, value in settings.items():
        jax.config.update(name, value)
        os.environ[name.upper()] = str(value)  # for processes that are started from here


@contextmanager
def compiling() -> Iterator[list[float]]:
    """Within, the list given gets the seconds of every compilation (of a program that is found in
    the cache: those of reading it).

    Example:
      >>> with compiling() as seconds:
      ...     _ = jax.jit(lambda x: x * 3)(1.0)
      >>> len(seconds) > 0
      True
    """
    seconds: list[float] = []
    listening = True

    def note(event: str, duration_secs: float, **_: object) -> None:
        if listening and event == COMPILED:
            seconds.append(duration_secs)

    jax.monitoring.register_event_duration_secs_listener(note)
    try:
        yield seconds
    finally:
        listening = False  # JAX has no public way to take a listener away
