"""Programs that run a few times: where numbers are few, what takes time is compiling them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax

MANY = 200_000  # with more numbers than this in inputs and outputs, a part is large

# LLVM takes most of the time. Without loops that are fused by MLIR's passes, without its own
# optimisation and its split into modules it takes a fifth of it.
LEVEL = {"xla_backend_optimization_level": 0}
OPTIONS: dict[str, Any] = LEVEL | {
    "xla_llvm_disable_expensive_passes": True,
    "xla_cpu_use_fusion_emitters": False,
    "xla_cpu_parallel_codegen_split_count": 1,
}


def jit_of(numbers: int, *, judged: bool = False) -> Callable[..., Any]:
    """`jax.jit` for functions of so many numbers: of few, to what is compiled soonest.

    Args:
      numbers: how many.
      judged: whether it is how the program rounds that counts. Then it is optimised as a user's is:
        at LLVM's lowest level the same product is not rounded alike in two passes, and what a rule
        makes again is not what it was.
    """
    if numbers > MANY:
        return jax.jit
    options = quick_options()
    if judged:
        options = {name: value for name, value in options.items() if name not in LEVEL}
    return functools.partial(jax.jit, compiler_options=options)


@functools.cache
def quick_options() -> dict[str, Any]:
    """Those of the options that this version of XLA has."""
    if _takes(OPTIONS):
        return OPTIONS
    return {name: value for name, value in OPTIONS.items() if _takes({name: value})}


def _takes(options: dict[str, Any]) -> bool:
    try:
        jax.jit(lambda: 0, compiler_options=options).lower().compile()
    except Exception:  # XLA says so of an option that it does not have
        return False
    return True
