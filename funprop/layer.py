"""The contract: what a layer is, how one is made, and mapped.

A layer is three pure functions. `forward` keeps *residuals*, `backward` turns the cotangent of the
output into the cotangents of params and input. Everything else in funprop makes layers out of
layers, or a gradient out of a layer.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax

if TYPE_CHECKING:
    from jaxtyping import Array, Key, PyTree


@dataclasses.dataclass(frozen=True, eq=False)
class Layer:
    """A forward pass and its backward pass, side by side.

    Attributes:
      init: `(key, x_spec) -> params`. `x_spec` is the input, or a pytree of
        `jax.ShapeDtypeStruct` that looks like it, its batch axes included.
      forward: `(params, x, key=None) -> (y, residuals)`. A key means training, no key inference.
        Residuals are what `backward` needs *beside* params: never a copy of them.
      backward: `(params, residuals, dy) -> (dparams, dx)`. Pure, and linear in `dy`. `dparams` has
        the structure of `params`, `dx` that of `x` with `None` in the place of integer leaves.
      name: what paths, tables and error messages call it.
      children: the layers that a combinator is made of; empty for a leaf of the model.
      rebuild: `(*children) -> Layer`: the same node over other children.
      shares: whether a param may be used by more than one child, or more than once. Only this
        node knows its whole gradient then, as a sum, so no rewrite may change what its children
        return as `dparams`.
      copies: of each child, where their params are stacked along a leading axis of that length.
      mixes: whether an example's output in training depends on the other examples of the batch, as
        that of `batch_norm` does. What takes a batch apart refuses such a layer by it.
      draws: whether `forward` draws from its key in training, so that to train it wants one.

    Both are true of a combinator where they are of any child, and every rewrite keeps them. They
    tell of training, where there is a key: without one nothing mixes, and nothing is drawn.

    Two laws hold for every combinator, so that a model can be mapped like a tree. *Rebuild:*
    `layer.rebuild(*layer.children)` is the same layer. *Mirror:* child `i`, its params and its
    residuals stand at place `i` of `children`, `params` and `residuals`.

    Example:
      >>> import jax.numpy as jnp, funprop as fp
      >>> square = fp.layer(
      ...     forward=lambda params, x: (x * x, x),
      ...     backward=lambda params, x, dy: ((), 2 * x * dy),
      ...     name="square",
      ... )
      >>> y, residuals = square.forward((), jnp.array(3.0))
      >>> float(y), float(square.backward((), residuals, jnp.array(1.0))[1])
      (9.0, 6.0)
    """

    init: Callable[..., PyTree]
    forward: Callable[..., tuple[PyTree, PyTree]]
    backward: Callable[[PyTree, PyTree, PyTree], tuple[PyTree, PyTree]]
    name: str
    children: tuple[Layer, ...] = ()
    rebuild: Any = None  # a leaf rebuilds to itself
    shares: bool = False
    copies: int | None = None
    mixes: bool = False
    draws: bool = False

    def __post_init__(self) -> None:
        for told in ("mixes", "draws"):
            if any(getattr(child, told) for child in self.children):
                object.__setattr__(self, told, True)
        if self.rebuild is None:
            if self.children:
                raise TypeError(f"{self.name}: a layer with children needs rebuild")
            object.__setattr__(self, "rebuild", lambda: self)

    def __repr__(self) -> str:
        inside = ", ".join(map(repr, self.children))
        return f"{self.name}({inside})" if inside else self.name


def as_leaf(layer: Layer, **changes: Any) -> Layer:
    """A leaf in the place of `layer`, whose insides are out of sight: what it says of itself stays.

    Args:
      layer: any; a combinator too.
      **changes: the functions that are other ones, by the names of a `Layer`'s attributes.

    Example:
      >>> import funprop as fp
      >>> whole = as_leaf(fp.serial(fp.dense(4), fp.dropout(0.5)))
      >>> whole, whole.draws
      (serial, True)
    """
    alone = {"children": (), "rebuild": None, "shares": False, "copies": None}
    return dataclasses.replace(layer, **(alone | changes))


@functools.partial(jax.tree_util.register_dataclass, data_fields=["value"], meta_fields=["metric"])
@dataclasses.dataclass(frozen=True)
class Recorded:
    """What a layer reports beside its output: sums over the batch, put among its residuals.

    There is no hidden state: batch statistics and metrics are outputs. `recorded` finds them, and
    they surface in `Gradient.recorded`, at the place of the layer that recorded them.

    Attributes:
      value: a pytree of sums over the batch's examples.
      metric: a name, where `value` is a `Sum` that shall also appear among the metrics.

    Example:
      >>> residuals = ("kept", (Recorded(1.5), "kept too"))
      >>> recorded(residuals)
      (None, (Recorded(value=1.5, metric=None), None))
    """

    value: Any
    metric: str | None = None


def recorded(residuals: PyTree) -> PyTree:
    """`residuals` with only the `Recorded` left in it, each in its place, and `None` elsewhere.

    What holds no record at all is one `None`. So nothing of its structure is left, which may differ
    from trace to trace: residuals may have functions and shapes in it, and records are added up.
    """
    if isinstance(residuals, Recorded):
        return residuals
    parts, tree = jax.tree.flatten(residuals, is_leaf=lambda node: node is not residuals)
    if jax.tree_util.treedef_is_leaf(tree):
        return None
    found = [recorded(part) for part in parts]
    return tree.unflatten(found) if any(part is not None for part in found) else None


# --------------------------------------------------------------------------------------- making


def layer(
    *,
    forward: Callable[..., tuple[PyTree, PyTree]],
    backward: Callable[[PyTree, PyTree, PyTree], tuple[PyTree, PyTree]],
    init: Callable[..., PyTree] | None = None,
    name: str = "layer",
    mixes: bool = False,
    draws: bool | None = None,
) -> Layer:
    """A layer of your own, from its forward and its hand-written backward.

    Args:
      forward: `(params, x) -> (y, residuals)`, or with a third argument `key` where it needs one.
      backward: `(params, residuals, dy) -> (dparams, dx)`.
      init: `(key, x_spec) -> params`; without it the layer has no params, `()`.
      name: what paths and messages call it.
      mixes: whether an example's output in training depends on the other examples of the batch.
      draws: whether `forward` draws from its key; by default, whether it takes one.

    Raises:
      TypeError: `forward` or `backward` takes another number of arguments.

    Example:
      >>> import jax.numpy as jnp, funprop as fp
      >>> scale = fp.layer(
      ...     init=lambda key, x: jnp.ones((), x.dtype),
      ...     forward=lambda s, x: (s * x, x),
      ...     backward=lambda s, x, dy: ((x * dy).sum(), s * dy),
      ...     name="scale",
      ... )
      >>> fp.serial(scale, fp.relu())
      serial(scale, relu)
    """
    return Layer(
        init=init or (lambda key, x: ()),
        forward=with_key(forward, "forward"),
        backward=backward,
        name=name,
        mixes=mixes,
        draws=takes_key(forward, "forward") if draws is None else draws,
    )


def with_key(function: Callable[..., Any], what: str) -> Callable[..., Any]:
    """`function(params, x)` lifted to `(params, x, key=None)`; one that takes a key stays."""
    if takes_key(function, what):
        return lambda params, x, key=None: function(params, x, key)
    return lambda params, x, key=None: function(params, x)


def takes_key(function: Callable[..., Any], what: str) -> bool:
    """Whether `function` has a third argument, beside params and input, that must be given or is
    called `key`."""
    arguments = inspect.signature(function).parameters.values()
    places = [p for p in arguments if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    needed = [p for p in places if p.default is p.empty or p.name == "key"]
    open_ended = any(p.kind is p.VAR_POSITIONAL for p in arguments)
    if len(needed) != 3 and not (len(needed) <= 2 and (len(places) >= 2 or open_ended)):
        raise TypeError(
            f"{what} must take (params, x) or (params, x, key), got {len(places)} arguments"
        )
    return len(needed) == 3


def named(name: str, layer: Layer) -> Layer:
    """The same layer under another name.

    Example:
      >>> import funprop as fp
      >>> fp.serial(fp.dense(8), fp.relu(), named("head", fp.dense(2)))
      serial(dense, relu, head)
    """
    if not layer.children:
        return dataclasses.replace(layer, name=name, rebuild=None)
    return dataclasses.replace(
        layer, name=name, rebuild=lambda *children: named(name, layer.rebuild(*children))
    )


# -------------------------------------------------------------------------------------- mapping


def child_names(layer: Layer) -> tuple[str, ...]:
    """What paths call each child: its name, with its place where siblings share the name.

    Example:
      >>> import funprop as fp
      >>> child_names(fp.serial(fp.dense(8), fp.relu(), fp.dense(2)))
      ('dense[0]', 'relu', 'dense[2]')
    """
    return distinct_names(layer.children)


def distinct_names(layers: tuple[Layer, ...]) -> tuple[str, ...]:
    """The names of siblings, each with its place where others have the same."""
    names = [layer.name for layer in layers]
    return tuple(f"{name}[{i}]" if names.count(name) > 1 else name for i, name in enumerate(names))


def map_layers(function: Callable[[Layer], Layer], model: Layer) -> Layer:
    """Apply `function` to every leaf of the model and rebuild the combinators above.

    As `jax.tree.map` is to arrays, so is this to layers; `map_layers(autodiff, model)` is the
    reference for a model whose backward is written by hand.

    Example:
      >>> import funprop as fp
      >>> map_layers(lambda l: named(l.name.upper(), l), fp.serial(fp.dense(4), fp.relu()))
      serial(DENSE, RELU)
    """
    return map_nodes(lambda _, node: node if node.children else function(node), model)


def map_nodes(function: Callable[[str, Layer], Layer], model: Layer, path: str = "") -> Layer:
    """Apply `function(path, layer)` to every node, children before the node above them."""
    children = [
        map_nodes(function, child, f"{path}/{name}" if path else name)
        for child, name in zip(model.children, child_names(model), strict=True)
    ]
    return function(path, model.rebuild(*children) if children else model)


# ------------------------------------------------------------------------ what combinators share


def split_key(key: Key[Array, ""] | None, n: int) -> tuple[Any, ...]:
    """One key for each of `n` children; for no key, none for each."""
    return (None,) * n if key is None else tuple(jax.random.split(key, n))


def output_spec(layer: Layer, params: PyTree, x_spec: PyTree) -> PyTree:
    """The shape and dtype of what `layer` gives for an input like `x_spec`, without computing."""
    return jax.eval_shape(lambda params, x: layer.forward(params, x)[0], params, x_spec)
