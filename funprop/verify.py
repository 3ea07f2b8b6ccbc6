"""Is this backward right? Every part of a model on its own, against `jax.vjp` of its forward in
float64 and against central differences. Knows the contract, and nothing that trains."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from funprop import trees
from funprop.layer import Layer, by_vjp, leaf_path, map_nodes
from funprop.visits import Visit, visits

if TYPE_CHECKING:
    from jaxtyping import Array, PyTree

# A hand-written gradient may be this many times as far from the truth as autodiff is, and this
# many units in the last place of the leaf's largest element beside.
FACTOR = 4.0


class Check(NamedTuple):
    """What was found for one leaf of one layer's gradient.

    Attributes:
      layer: where the layer is in the model: `serial/dense[0]`.
      path: layer and leaf: `serial/dense[0]/w`; `dx` for the input's gradient. Of a combinator,
        whose leaves are its children's, `serial: dense[0]/w`.
      error: largest distance from the truth, relative to the largest element of the truth.
      allowed: what autodiff commits in the same precision, times `FACTOR`, plus rounding.
      slope_error: distance from the central difference along a random direction, relative.
      slope_allowed: the central difference's own estimate of its error, relative.
      problem: what is wrong, in one sentence; empty where nothing is.
    """

    layer: str
    path: str
    error: float
    allowed: float
    slope_error: float
    slope_allowed: float
    problem: str


class Report(NamedTuple):
    """Every leaf of every layer's gradient. `print` shows it as a table."""

    checks: tuple[Check, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing was found wrong."""
        return not self.findings

    @property
    def findings(self) -> tuple[Check, ...]:
        """The leaves that are wrong."""
        return tuple(check for check in self.checks if check.problem)

    def raise_if_wrong(self) -> None:
        """Raise an `AssertionError` that names every wrong leaf."""
        if not self.ok:
            raise AssertionError("\n".join(f"{c.path}: {c.problem}" for c in self.findings))

    def __str__(self) -> str:
        width = max([len(check.path) for check in self.checks] + [len("gradient of")])
        lines = [f"{'gradient of':{width}}  from jax.vjp  (allowed)   from differences  (allowed)"]
        lines += [
            f"{c.path:{width}}  {c.error:13.1e}  {c.allowed:9.1e}"
            f"   {c.slope_error:16.1e}  {c.slope_allowed:9.1e}  {c.problem or 'ok'}"
            for c in self.checks
        ]
        return "\n".join(lines)


def verify(layer: Layer, params: PyTree, x: PyTree, key: Any = None, seed: int = 0) -> Report:
    """Check the hand-written backward of a layer and of every layer inside it.

    Each part is judged alone, on the input that it gets in the model and on the *true* cotangent
    of its output, so that one wrong backward accuses only itself; a combinator is judged with its
    children's backward taken by autodiff. The hand-written code runs in the dtype of the
    arguments; the truth is `jax.vjp` of the bare forward in float64, on the same numbers.

    Args:
      layer: what to check.
      params, x, key: the point to check it at.
      seed: for the cotangent of the output and the directions of the differences.

    Example:
      >>> import funprop as fp
      >>> def wrong(params, x, dy):
      ...     return (), x * dy  # should be 2 * x * dy
      >>> square = fp.layer(forward=lambda params, x: (x * x, x), backward=wrong, name="square")
      >>> model = fp.serial(fp.tanh(), square)
      >>> report = verify(model, ((), ()), jnp.linspace(0.1, 1, 5))
      >>> [finding.path for finding in report.findings]
      ['square/dx']
    """
    with jax.enable_x64(True):
        rng = np.random.default_rng(seed)
        dtype = _dtype((params, x))
        seen = _visited(layer, _cast(params, jnp.float64), _cast(x, jnp.float64), key)
        dys = _true_cotangents(layer, seen, rng)
        return Report(
            tuple(
                check
                for visit, dy in zip(seen, dys, strict=True)
                for check in _check(visit, dy, dtype, rng)
            )
        )


def _visited(layer: Layer, params: PyTree, x: PyTree, key: Any) -> list[Visit]:
    """The visits of `layer`, compiled as one."""
    seen: list[Visit] = []

    def run(params: PyTree, x: PyTree) -> list[tuple[Any, ...]]:
        seen.extend(visits(layer, params, x, key))
        return [(visit.params, visit.x, visit.key, visit.y) for visit in seen]

    values = jax.jit(run)(params, x)
    return [
        visit._replace(params=p, x=x, key=k, y=y)
        for visit, (p, x, k, y) in zip(seen, values, strict=True)
    ]


# ---------------------------------------------------------------------------------- the true dy


def _true_cotangents(layer: Layer, seen: list[Visit], rng: np.random.Generator) -> list[PyTree]:
    """The cotangent of the output of every visit, by differentiating with respect to a zero added
    there; no backward of ours takes part."""
    zeros = [jax.tree.map(jnp.zeros_like, _float_part(visit.y)) for visit in seen]

    def output(nudges: list[PyTree]) -> PyTree:
        order: list[int] = []

        def nudge(_: str, node: Layer) -> Layer:
            def forward(params: PyTree, x: PyTree, key: Any = None) -> tuple[PyTree, PyTree]:
                mine = len(order)
                order.append(mine)
                y, _ = node.forward(params, x, key)
                leaves, tree = jax.tree.flatten(y)
                nudged = zip(leaves, tree.flatten_up_to(nudges[mine]), strict=True)
                return tree.unflatten(y if n is None else y + n for y, n in nudged), ()

            return dataclasses.replace(node, forward=forward)

        y, _ = map_nodes(nudge, layer).forward(seen[0].params, seen[0].x, seen[0].key)
        return _floats(y)

    def cotangents(zeros: list[PyTree], draws: list[Array]) -> list[PyTree]:
        with jax.disable_jit():  # as in `visits`: every copy under a scan is a call of its own
            _, pullback = jax.vjp(output, zeros)
            return pullback(draws)[0]

    draws = [jnp.asarray(rng.standard_normal(leaf.shape)) for leaf in _floats(seen[0].y)]
    return jax.jit(cotangents)(zeros, draws)


# ------------------------------------------------------------------------------------- the check


def _check(visit: Visit, dy: PyTree, dtype: Any, rng: np.random.Generator) -> list[Check]:
    layer = _alone(visit.layer)
    # What the working precision makes of the point; from here on everybody sees these numbers.
    params, x = _cast((visit.params, visit.x), dtype)
    y, _ = jax.eval_shape(layer.forward, params, x, visit.key)
    dy = jax.tree.map(lambda d, y: jnp.asarray(d, y.dtype), dy, _float_part(y))
    exact = _cast((params, x, dy), jnp.float64)
    low = _cast((params, x, dy), jnp.float32) if dtype == jnp.float64 else (params, x, dy)
    finer = _eps(dtype) / _eps(_dtype(low))  # float64's rounding is float32's, scaled down

    @jax.jit
    def gradients(here: tuple, exact: tuple, low: tuple) -> tuple:
        forward, backward = by_vjp(layer.forward)
        return (
            _gradient(layer.forward, layer.backward, here, visit.key),
            _gradient(forward, backward, exact, visit.key),
            _gradient(forward, backward, low, visit.key),
        )

    @jax.jit
    def value(point: tuple, dy: PyTree) -> Array:
        y, _ = layer.forward(*point, visit.key)
        terms = [(a * b).ravel() for a, b in zip(_floats(y), jax.tree.leaves(dy), strict=True)]
        return jnp.concatenate(terms)

    hand, truth, auto = gradients((params, x, dy), exact, low)
    checks = []
    leaves = jax.tree_util.tree_flatten_with_path(truth)[0]
    if problem := _mismatch(hand, truth, (params, x)):
        path = visit.path or layer.name
        return [Check(path, path, math.inf, 0.0, math.inf, 0.0, problem)]
    hands, autos = (dict(jax.tree_util.tree_flatten_with_path(tree)[0]) for tree in (hand, auto))
    for path, true in leaves:
        got = hands[path]
        scale = float(np.max(np.abs(true), initial=0)) or 1.0
        error = _distance(got, true) / scale
        allowed = FACTOR * (finer * _distance(autos[path], true) / scale + _eps(dtype))
        slope_error, slope_allowed = _slope(value, exact, path, true, got, rng)
        slope_allowed += allowed
        wrong = not error <= allowed or not slope_error <= slope_allowed
        checks.append(
            Check(
                visit.path or layer.name,
                _leaf_path(visit, path),
                error,
                allowed,
                slope_error,
                slope_allowed,
                _sentence(got, true) if wrong else "",
            )
        )
    return checks


def _alone(layer: Layer) -> Layer:
    """`layer` with its children's backward taken by autodiff: what is left to judge is its own."""
    if not layer.children:
        return layer

    def by_autodiff(child: Layer) -> Layer:
        forward, backward = by_vjp(child.forward)
        return dataclasses.replace(child, forward=forward, backward=backward)

    return layer.rebuild(*map(by_autodiff, layer.children))


def _gradient(forward: Any, backward: Any, point: tuple, key: Any) -> tuple[PyTree, PyTree]:
    params, x, dy = point
    _, residuals = forward(params, x, key)
    return backward(params, residuals, dy)


def _mismatch(hand: PyTree, truth: PyTree, primals: PyTree) -> str:
    """One sentence where the cotangents do not look like params and input; else nothing."""
    if jax.tree.structure(hand) != jax.tree.structure(truth):
        got = jax.tree.map(trees.spec_string, hand)
        want = jax.tree.map(trees.spec_string, truth)
        return f"backward must give (dparams, dx) like {want}, got {got}"
    floats = [leaf for leaf in jax.tree.leaves(primals) if trees.is_float(leaf)]
    for got, want in zip(jax.tree.leaves(hand), floats, strict=True):
        if (got.shape, got.dtype) != (want.shape, want.dtype):
            got, want = trees.spec_string(got), trees.spec_string(want)
            return f"backward must give {want}, got {got}"
    return ""


def _slope(
    value: Any, exact: tuple, path: tuple, true: Array, got: Any, rng: np.random.Generator
) -> tuple[float, float]:
    """Error and allowed error of `got` along a random direction in one leaf, against central
    differences in float64, both relative to the size of the terms that are summed in it.

    Allowed are the difference's own errors, estimated: of truncation, by a step twice as long; of
    rounding, by the size of what is subtracted; and at a kink, where the one-sided differences of
    an output disagree, any value between them.

    Args:
      value: `((params, x), dy) -> y * dy`, one number an output.
    """
    params, x, dy = exact
    point, tree = jax.tree_util.tree_flatten_with_path((params, x))
    place = [p for p, _ in point].index(path)
    leaf = point[place][1]
    direction = rng.standard_normal(leaf.shape)
    h = 1e-6 * (float(np.max(np.abs(leaf), initial=0)) or 1.0)

    def at(t: float) -> Any:
        moved = [leaf + t * direction if i == place else p for i, (_, p) in enumerate(point)]
        return np.asarray(value(jax.tree.unflatten(tree, moved), dy))

    left, middle, right = at(-h), at(0.0), at(h)
    central = float((right - left).sum()) / (2 * h)
    wide = float((at(2 * h) - at(-2 * h)).sum()) / (4 * h)
    kink = float(np.abs(right - 2 * middle + left).sum()) / (2 * h)
    rounding = 8 * float(jnp.finfo(jnp.float64).eps) * float(np.abs(middle).sum()) / h
    claimed = float(np.sum(np.asarray(got, np.float64) * direction))
    scale = float(np.sum(np.abs(np.asarray(true) * direction))) or 1.0
    return abs(claimed - central) / scale, (abs(wide - central) + kink + rounding) / scale


def _sentence(got: Any, true: Any) -> str:
    got, true = np.asarray(got, np.float64), np.asarray(true)
    far = np.nan_to_num(np.abs(got - true), nan=np.inf)
    worst = np.unravel_index(np.argmax(far), true.shape)
    at = [int(i) for i in worst]
    return f"wrong: at {at} it is {float(got[worst]):.4g} and should be {float(true[worst]):.4g}"


# -------------------------------------------------------------------------------------- helpers


def _distance(a: Any, b: Any) -> float:
    far = np.max(np.abs(np.asarray(a, np.float64) - np.asarray(b, np.float64)), initial=0)
    return float(np.nan_to_num(far, nan=np.inf))


def _leaf_path(visit: Visit, path: tuple) -> str:
    which, *rest = path  # the path is one of (dparams, dx)
    if which.idx == 0:
        leaf = leaf_path(visit.layer, tuple(rest)) or "params"
    else:
        leaf = "/".join(["dx", *([trees.path_string(tuple(rest))] if rest else [])])
    if visit.layer.children:
        return f"{visit.path or visit.layer.name}: {leaf}"
    return f"{visit.path}/{leaf}" if visit.path else leaf


def _floats(tree: PyTree) -> list[Array]:
    return [leaf for leaf in jax.tree.leaves(tree) if trees.is_float(leaf)]


def _float_part(tree: PyTree) -> PyTree:
    return jax.tree.map(lambda leaf: leaf if trees.is_float(leaf) else None, tree)


def _cast(tree: PyTree, dtype: Any) -> PyTree:
    return jax.tree.map(
        lambda leaf: jnp.asarray(leaf, dtype) if trees.is_float(leaf) else jnp.asarray(leaf), tree
    )


def _dtype(tree: PyTree) -> Any:
    """The dtype of the floats in `tree`: the narrowest, if they differ."""
    return min((leaf.dtype for leaf in _floats(tree)), key=lambda d: d.itemsize, default=np.float64)


def _eps(dtype: Any) -> float:
    return float(jnp.finfo(dtype).eps)
