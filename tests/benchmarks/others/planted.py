"""Mistakes planted in rules of other packages: each must be found, at the leaf that it is in.

The derivative with respect to one input of a rule is multiplied by 1.05, turned, or left out, and
the package's public function handed to `verify_rules`.

    python -m tests.benchmarks.others.planted     # in the environment of packages.py
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp

from funprop.verify import verify_rules
from tests.benchmarks.others import tfp_on_new_jax
from tests.benchmarks.others.call import array, normal, positive, unit

FACTORS = (1.05, -1.0, 0.0)


@contextlib.contextmanager
def planted(rule: Any, place: int, factor: float) -> Iterator[None]:
    """A rule whose derivative with respect to its input at `place` is multiplied by `factor`."""
    by_jvp = isinstance(rule, jax.custom_jvp)
    name = "jvp" if by_jvp else "bwd"
    right = getattr(rule, name)

    def scaled(values: Any) -> Any:
        return tuple(
            v if i != place or v is None else jax.tree.map(lambda leaf: factor * leaf, v)
            for i, v in enumerate(values)
        )

    def jvp(*args: Any) -> Any:
        return right(*args[:-1], scaled(args[-1]))

    def bwd(*args: Any) -> Any:
        return scaled(right(*args))

    setattr(rule, name, jvp if by_jvp else bwd)
    try:
        yield
    finally:
        setattr(rule, name, right)


def cases() -> Iterator[tuple[str, Any, str, int, Any, tuple[Any, ...]]]:
    """Package, rule, name and place of its input, a function that reaches it, and arguments."""

    def of(module: str, name: str) -> Any:
        return getattr(importlib.import_module(module), name)

    x = array(0.9, -0.3, 0.2, 0.8)
    distrax = of("distrax._src.utils.math", "multiply_no_nan")
    yield "distrax", distrax, "y", 1, distrax, (normal(3), positive(3))
    log1mexp = of("numpyro.distributions.util", "log1mexp")
    yield "numpyro", log1mexp, "x", 0, log1mexp, (-positive(3),)
    lambertw = of("ott.math.utils", "lambertw")
    yield "ott", lambertw, "z", 0, lambda z: lambertw(z), (unit(3),)
    simplex = of("jaxopt._src.projection", "_projection_unit_simplex")
    yield "jaxopt", simplex, "x", 0, of("jaxopt.projection", "projection_simplex"), (x,)
    norm = of("lineax._norm", "_two_norm")
    yield "lineax", norm, "x", 0, of("lineax.internal", "two_norm"), (normal(3),)
    matrix = of("jax_md._nn.uma.kernels", "_segment_mm_2d")
    sizes = jnp.array([2, 1, 2])
    given = normal(5, 3), normal(3, 2, 3)
    yield "jax_md", matrix, "weights", 1, lambda x, w: matrix(x, w, sizes), given
    soft = of("softjax.projections_simplex", "_proj_unit_simplex_pnorm_q2")
    sort = of("softjax", "argmax")
    yield "softjax", soft, "values", 0, lambda x: sort(x, mode="c0"), (x,)
    softmax = of("tokamax._src.ops.attention.base", "_softmax")
    yield "tokamax", softmax, "x", 0, lambda x: softmax(x, True)[0], (normal(3, 4),)
    rms = of("jax.experimental.pallas.ops.gpu.rms_norm", "rms_norm")
    given = normal(2, 2, 16), 1 + normal(16), normal(16)
    yield "pallas", rms, "weight", 1, lambda *a: rms(*a, interpret=True), given


def main() -> None:
    """Print what was found of each."""
    tfp_on_new_jax.restore()
    found, total = 0, 0
    for package, rule, name, place, function, args in cases():
        for factor in FACTORS:
            jax.clear_caches()
            with planted(rule, place, factor):
                report = verify_rules(function, *args)
            wrong = {check.path for check in report.findings}
            right = {path.rpartition("/")[2] for path in wrong} == {name}
            found, total = found + right, total + 1
            what = [check.problem[:90] for check in report.findings]
            print(f"{'found' if right else 'MISSED'}  {package} x {factor}: {sorted(wrong)} {what}")
    print(f"{found} of {total}, at the right leaf")


if __name__ == "__main__":
    main()
