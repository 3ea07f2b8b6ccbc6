"""A backward pass in two halves: the cotangents of inputs first, those of params whenever."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from funprop.checks import check_numbers, described
from funprop.layer import Layer, check_layer, leaf_of
from funprop.names import below
from funprop.params.frozen import trained
from funprop.params.tapped import untap
from funprop.trees import Static

if TYPE_CHECKING:
    from funprop.typing import PyTree

MISFITS = (AttributeError, IndexError, KeyError, TypeError, ValueError)  # of what is no such array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Kept:
    """In the place of a part's `dparams`: the cotangent of its output, from which they are made."""

    dy: Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Paired:
    """In the place of a part's params: these, and what the first half kept of it."""

    params: Any
    kept: Kept


def backward_inputs(layer: Layer) -> Callable[[PyTree, PyTree, PyTree], tuple[PyTree, PyTree]]:
    """The first half of a backward pass: the cotangent of the input alone.

    Compiled, it makes no product that only a gradient of params needs. The part before this one can
    go on at once, and `backward_params` fills the time when there is nothing else to do: the split
    that zero-bubble schedules of pipelines are made of (Qi et al., 2023, arXiv:2401.10241).

    Returns:
      `(params, residuals, dy) -> (dx, kept)`; `kept` is, for each part with params, the cotangent
      that reached it.

    Raises:
      TypeError: `layer` is none; or, when called, `dy` is no cotangent.
      ValueError: when called, `params`, `residuals` and `dy` are not of one forward pass of it.

    Example:
      >>> import jax.numpy as jnp, funprop as fp
      >>> model = fp.serial(fp.dense(3), fp.tanh(), fp.dense(2))
      >>> params = model.init(jax.random.key(0), jnp.ones((4, 5)))
      >>> y, residuals = model.forward(params, jnp.ones((4, 5)))
      >>> dx, kept = backward_inputs(model)(params, residuals, y)
      >>> dparams = backward_params(model)(params, residuals, kept)
      >>> dx.shape, dparams.dense_0.w.shape
      ((4, 5), (5, 3))
    """
    check_layer("layer", layer)
    first = _first(layer)

    def inputs(params: PyTree, residuals: PyTree, dy: PyTree) -> tuple[PyTree, PyTree]:
        with _of_one_forward(layer, params, residuals, dy):
            found, dx = first.backward(params, residuals, dy)
        kept, _ = untap(found)
        leaves, tree = jax.tree.flatten(dy)
        return dx, (kept, Static((tree, tuple((leaf.shape, leaf.dtype) for leaf in leaves))))

    return inputs


def backward_params(layer: Layer) -> Callable[[PyTree, PyTree, PyTree], PyTree]:
    """The second half of a backward pass: the gradient of params, from what the first half kept.

    Where a part's two cotangents need the same product (a recurrence, `remat`, which runs forward
    again), both halves make it; else none is made twice. A node that shares params is split too.
    What `tap` sees of cotangents is left out.

    Returns:
      `(params, residuals, kept) -> dparams`, with `kept` of `backward_inputs`.

    Raises:
      TypeError: `layer` is none; or, when called, `kept` is not of `backward_inputs`.
      ValueError: when called, `params`, `residuals` and `kept` are not of one forward pass.

    Example: see `backward_inputs`.
      >>> import jax.numpy as jnp, funprop as fp
      >>> square = fp.dense(1, bias=False)
      >>> params, x = fp.DenseParams(jnp.ones((2, 1)), None), jnp.ones((3, 2))
      >>> _, kept = backward_inputs(square)(params, x, jnp.ones((3, 1)))
      >>> backward_params(square)(params, square.forward(params, x)[1], kept).w.tolist()
      [[3.0], [3.0]]
    """
    check_layer("layer", layer)
    second = _second(layer)

    def of_params(params: PyTree, residuals: PyTree, kept: PyTree) -> PyTree:
        if not (isinstance(kept, tuple) and len(kept) == 2 and isinstance(kept[1], Static)):
            raise TypeError(
                f"kept must be what backward_inputs of {layer.name} gave, got {described(kept)}"
            )
        found, spec = kept
        tree, specs = spec.value
        nothing = tree.unflatten(jnp.zeros(shape, dtype) for shape, dtype in specs)
        pairs = _paired(layer, params, found)
        with _of_one_forward(layer, params, residuals, nothing):
            dparams, _ = second.backward(pairs, residuals, nothing)
        return untap(dparams)[0]

    return of_params


@contextmanager
def _of_one_forward(layer: Layer, params: PyTree, residuals: PyTree, dy: PyTree) -> Iterator[None]:
    """Within, what fails because these do not go together fails with a sentence that says so."""
    try:
        yield
    except Exception as error:
        if type(error) not in MISFITS:  # JAX's own, with more to tell
            raise
        check_numbers("dy", dy)
        leaves = jax.tree.leaves(dy)
        if not leaves:
            raise TypeError(
                f"dy must be the cotangent of what {layer.name} gave, got {described(dy)}"
            ) from None
        _check_mirror(layer, params, residuals, "")
        got = ", ".join(map(described, leaves[:2]))
        why = str(error).partition("\n")[0][:90]
        raise ValueError(
            f"params, residuals and dy must be of one pass of {layer.name}, got dy {got}: {why}"
        ) from error


def _check_mirror(node: Layer, params: PyTree, residuals: PyTree, path: str) -> None:
    """Raise a `ValueError` where params or residuals have not the form that the mirror law asks."""
    if not node.children:
        return
    n = len(node.children)
    if not isinstance(residuals, tuple) or len(residuals) < n:
        at = f" at {path}" if path else ""
        got = f"{len(residuals)}" if isinstance(residuals, tuple) else described(residuals)
        raise ValueError(f"residuals must be those of {node.name}{at}, a tuple of {n}, got {got}")
    each = zip(node.children, node.split(params), residuals, below(path, node), strict=False)
    for child, own, kept, name in each:
        _check_mirror(child, own, kept, name)


def _is_whole(node: Layer) -> bool:
    """Whether a node is split by itself: a leaf, or one of many children that share params."""
    return not node.children or (node.shares and len(node.children) > 1)


def _first(node: Layer) -> Layer:
    """`node`, with `Kept` in the place of each part's `dparams`."""
    if not _is_whole(node) and not node.shares:
        return node.rebuild(*map(_first, node.children))

    def backward(params: PyTree, residuals: PyTree, dy: PyTree) -> tuple[PyTree, PyTree]:
        dparams, dx = node.backward(params, residuals, dy)
        return (Kept(dy) if jax.tree.leaves(trained(params)) else dparams), dx

    def backward_shared(params: PyTree, residuals: PyTree, dy: PyTree) -> tuple[PyTree, PyTree]:
        (child,) = node.children
        inside = _first(child)

        # The node hands `dx` on as it is: what was kept inside travels with it.
        def through(params: PyTree, residuals: PyTree, dy: PyTree) -> tuple[PyTree, PyTree]:
            kept, dx = inside.backward(params, residuals, dy)
            return jax.tree.map(jnp.zeros_like, trained(params)), (dx, kept)

        whole = node.rebuild(dataclasses.replace(child, backward=through))
        _, (dx, kept) = whole.backward(params, residuals, dy)
        return Kept(kept), dx

    return leaf_of(node, backward=backward if _is_whole(node) else backward_shared)


def _second(node: Layer) -> Layer:
    """`node`, with `dparams` from what was kept; the cotangents that it hands on are zeros."""
    if not _is_whole(node) and not node.shares:
        return node.rebuild(*map(_second, node.children))

    def forward(params: PyTree, x: PyTree, key: Any = None) -> tuple[PyTree, PyTree]:
        return node.forward(params.params if isinstance(params, _Paired) else params, x, key)

    def backward(params: Any, residuals: PyTree, dy: PyTree) -> tuple[PyTree, PyTree]:
        if not isinstance(params, _Paired):
            dx = jax.eval_shape(lambda: node.backward(params, residuals, dy)[1])
            return trained(params), jax.tree.map(lambda d: jnp.zeros(d.shape, d.dtype), dx)
        kept = params.kept.dy
        if _is_whole(node):
            dparams, dx = node.backward(params.params, residuals, kept)
            return dparams, jax.tree.map(jnp.zeros_like, dx)
        (child,) = node.children
        inside = _second(child)

        def through(params: PyTree, residuals: PyTree, dy: PyTree) -> tuple[PyTree, PyTree]:
            return inside.backward(_paired(child, params, kept), residuals, dy)

        whole = node.rebuild(dataclasses.replace(child, backward=through))
        return whole.backward(params.params, residuals, dy)

    return leaf_of(node, forward=forward, backward=backward)


def _paired(node: Layer, params: Any, kept: Any) -> Any:
    """`params` with what was kept beside those of each part."""
    split = not (_is_whole(node) or node.shares)
    if not split and isinstance(kept, Kept):
        return _Paired(params, kept)
    if not split and not jax.tree.leaves(trained(params)):
        return params
    fits = node.flat or (isinstance(kept, tuple) and len(kept) == len(node.children))
    if not (split and fits):
        raise TypeError(f"kept must be what backward_inputs of {node.name} gave, got another's")
    each = zip(node.children, node.split(params), node.split(kept), strict=True)
    return node.join(params, [_paired(*one) for one in each])
