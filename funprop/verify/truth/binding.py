"""One equation of a jaxpr, run."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any


def bind(eqn: Any, inputs: Sequence[Any], params: dict[str, Any]) -> list[Any]:
    """The outputs of the equation's primitive for these inputs and parameters."""
    bound = eqn.primitive.get_bind_params(params)
    functions, bound = bound if isinstance(bound, tuple) else ((), bound)
    with eqn.ctx.manager if hasattr(eqn.ctx, "manager") else contextlib.nullcontext():
        outputs = eqn.primitive.bind(*functions, *inputs, **bound)
    return list(outputs) if eqn.primitive.multiple_results else [outputs]
