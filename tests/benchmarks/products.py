"""Floating-point operations of a program's matrix products, loops counted in full.

XLA's own account (`cost_analysis`) counts the body of a loop once, however often it runs.
"""

import math
from typing import Any


def product_flops(jaxpr: Any) -> int:
    """Two for each multiplication and addition of every `dot_general`, as it runs on a CPU."""
    return sum(map(_of_one, jaxpr.eqns))


def _of_one(eqn: Any) -> int:
    name, params = eqn.primitive.name, eqn.params
    if name == "dot_general":
        (summed, _), _ = params["dimension_numbers"]
        left = eqn.invars[0].aval.shape
        return 2 * math.prod(eqn.outvars[0].aval.shape) * math.prod(left[i] for i in summed)
    if name == "scan":
        return params["length"] * product_flops(params["jaxpr"].jaxpr)
    if name == "cond":
        branches = [product_flops(branch.jaxpr) for branch in params["branches"]]
        platforms = params.get("branches_platforms")
        if platforms:
            return branches[next(i for i, p in enumerate(platforms) if p is None or "cpu" in p)]
        return max(branches)
    inner = [params[k] for k in ("jaxpr", "call_jaxpr", "body_jaxpr") if k in params]
    return sum(product_flops(getattr(each, "jaxpr", each)) for each in inner[:1])
