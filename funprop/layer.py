"""The contract: what a layer is, and how one is made.

A layer is three pure functions. `forward` keeps *residuals*, `backward` turns the cotangent of the
output into the cotangents of params and input. Everything else in funprop makes layers out of
layers, or a gradient out of a layer.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax

from funprop.checks import check_function, check_string, described
from funprop.decoding import Decoding, one_decoding
from funprop.formula import Formula, checked
from funprop.keys import takes_key, with_key
from funprop.names import empty, identifier, is_kind, label, params_of
from funprop.residuals import only
from funprop.trees import RESERVED, canonical

if TYPE_CHECKING:
    from funprop.typing import PyTree


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
      name: what kind of layer it is, or what `named` calls it.
      children: the layers that a combinator is made of; empty for a leaf of the model.
      rebuild: `(*children) -> Layer`: the same node over other children.
      shares: whether a param may be used by more than one child, or more than once. Only this
        node knows its whole gradient then, as a sum, so no rewrite may change what its children
        return as `dparams`.
      hands_on: of a node that shares, whether its params are those of its child's first child, from
        which those of the others are made (a tied table); so parts of that one may be changed.
      copies: of each child, where their params are stacked along a leading axis of that length.
      decoding: how it runs token by token; `None` where it does not say, and so cannot.
      named: whether somebody gave it its name.
      of_node: of a leaf that was a node of several children, whose name is but its kind.
      paramless: whether it has no params.
      flat: whether its first child's params and paths are its own, and no other child has params:
        so of every node of one child.
      mixes: whether an example's output in training depends on the other examples of the batch.
      draws: whether `forward` draws from its key in training. Both are true where of any child.
      formula: what it computes, for people to read.
      frozen: of a leaf, whether its params are `Frozen` as a whole, with all that was below it.
      intended: `(params, x, key) -> y`: whose derivative backward is meant to be, if not forward's.

    Two laws hold for every combinator, so that a model can be mapped like a tree. *Rebuild:*
    `layer.rebuild(*layer.children)` is the same layer. *Mirror:* child `i`, its params and its
    residuals stand at place `i` of `children`, `layer.split(params)` and `residuals`. Params are a
    tuple of the children's that knows their names (`params_of`), or, of a flat node, the child's.

    Example:
      >>> import jax.numpy as jnp, funprop as fp
      >>> y, residuals = fp.tanh().forward((), jnp.array(0.0))
      >>> fp.tanh().backward((), residuals, jnp.array(2.0))[1].item()
      2.0
    """

    init: Callable[..., PyTree]
    forward: Callable[..., tuple[PyTree, PyTree]]
    backward: Callable[[PyTree, PyTree, PyTree], tuple[PyTree, PyTree]]
    name: str
    children: tuple[Layer, ...] = ()
    rebuild: Any = None  # a leaf rebuilds to itself
    shares: bool = False
    hands_on: bool = False
    copies: int | None = None
    decoding: Decoding | None = None
    named: bool = False
    of_node: bool = False
    paramless: bool = False
    flat: bool = False
    mixes: bool = False
    draws: bool = False
    frozen: bool = False
    formula: Formula | None = None
    intended: Callable[..., PyTree] | None = None

    def __post_init__(self) -> None:
        for told in ("mixes", "draws"):
            if any(getattr(child, told) for child in self.children):
                object.__setattr__(self, told, True)
        if self.rebuild is None:
            if self.children:
                raise TypeError(f"{self.name}: a layer with children needs rebuild")
            object.__setattr__(self, "rebuild", lambda: self)
        if self.decoding is not None and self.decoding.forward is None:
            object.__setattr__(self, "decoding", self.decoding._replace(forward=self.forward))
        if self.children:
            none = all(child.paramless for child in self.children)
            object.__setattr__(self, "paramless", none and not self.shares)
            object.__setattr__(self, "flat", self.flat or len(self.children) == 1)

    def split(self, params: Any) -> tuple[Any, ...]:
        """The params of each child, by the mirror law.

        Raises:
          ValueError: `params` are no tuple of as many as there are children.
        """
        if self.hands_on and self.children[0].children:
            first, *made = self.children[0].children
            return (params_of((first, *made), (params, *((),) * len(made))),)
        if self.flat:
            return (params, *map(empty, self.children[1:]))
        n = len(self.children)
        if not isinstance(params, tuple) or len(params) != n:
            got = f"{len(params)}" if isinstance(params, tuple) else type(params).__name__
            raise ValueError(f"params must be a tuple of {n}, one a layer, got {got}")
        return tuple(params)

    def join(self, params: Any, parts: Any) -> Any:
        """What stands in the place of each child's params as one tree, in the form of `params`.

        Raises:
          ValueError: there is something for a child that has no place in params.
        """
        if self.hands_on and self.children[0].children:
            return parts[0][0]
        if not self.flat:
            return getattr(params, "_make", tuple)(parts)
        for child, part in zip(self.children[1:], parts[1:], strict=True):
            if jax.tree.leaves(part):
                raise ValueError(f"{child.name} has no params, so nothing can be in their place")
        return parts[0]

    def __repr__(self) -> str:
        inside = ", ".join(map(repr, self.children))
        return f"{self.name}({inside})" if inside else self.name


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
    A loss function of `from_loss` returns them as its statistics, where it runs funprop's layers.

    Example:
      >>> recorded((("kept",), Recorded(1.5)))
      (None, Recorded(value=1.5, metric=None))
    """
    return only(residuals, Recorded)


def layer(
    *,
    forward: Callable[..., tuple[PyTree, PyTree]],
    backward: Callable[[PyTree, PyTree, PyTree], tuple[PyTree, PyTree]],
    init: Callable[..., PyTree] | None = None,
    name: str = "layer",
    mixes: bool = False,
    draws: bool | None = None,
    pointwise: bool = False,
    decoding: Decoding | None = None,
    formula: Formula | None = None,
    intended: Callable[..., PyTree] | None = None,
) -> Layer:
    """A layer of your own, from its forward and its hand-written backward.

    Args:
      forward: `(params, x) -> (y, residuals)`, or with a third argument `key` where it needs one.
      backward: `(params, residuals, dy) -> (dparams, dx)`.
      init: `(key, x_spec) -> params`; without it the layer has no params, `()`.
      name: what paths and messages call it.
      mixes, draws: as of `Layer`; it draws, by default, where `forward` takes a key.
      pointwise: whether, without a key, it treats all places of a sequence alike, those along the
        second axis; so that `generate` may run it on one token after the other.
      decoding: how it runs token by token, where it looks back.
      formula: what it computes, for people to read (see `Formula`); `explain` shows it.
      intended: as of `Layer`; `verify` judges backward by it.

    Raises:
      TypeError: `forward` takes another number of arguments; or an argument is no function, or
        `name` no string.
      ValueError: it is `pointwise` and has a `decoding` too.

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
    check_string("name", name)
    check_function("backward", backward, "(params, residuals, dy) -> (dparams, dx)")
    if init is not None:
        check_function("init", init, "(key, x_spec) -> params")
    draws = takes_key(forward, "forward") if draws is None else draws
    forward = with_key(forward, "forward")
    intended = None if intended is None else with_key(intended, "intended")
    return Layer(
        # Of NumPy's float64 params are in 32 bits, where JAX has no more, without a word.
        init=lambda key, x: () if init is None else init(key, canonical(x)),
        forward=forward,
        backward=backward,
        name=name,
        mixes=mixes,
        draws=draws,
        decoding=one_decoding(forward, pointwise, decoding),
        formula=checked(formula),
        intended=intended,
        paramless=init is None,
    )


def named(name: str, layer: Layer) -> Layer:
    """The same layer under a name of your own: its params have it in their paths.

    Raises:
      ValueError: the name is empty, or one that has a meaning in paths, `frozen` or `statistic`.
      TypeError: `name` is no string, or `layer` no layer.

    Example:
      >>> import jax, jax.numpy as jnp, funprop as fp
      >>> model = fp.serial(fp.dense(8), fp.relu(), named("head", fp.dense(2)))
      >>> model.init(jax.random.key(0), jnp.zeros((1, 3))).head.w.shape
      (8, 2)
    """
    check_string("name", name)
    check_layer("layer", layer)
    if not name or identifier(name) in RESERVED:
        raise ValueError(f"name must not be empty or one of {', '.join(RESERVED)}, got {name!r}")
    return renamed(name, layer)


def check_layer(name: str, given: Any, such: str = "dense(4)") -> None:
    """Raise a `TypeError` where no layer was given, as `such` is one."""
    if not isinstance(given, Layer):
        raise TypeError(f"{name} must be a layer, as {such} is, got {described(given)}")


def renamed(name: str, layer: Layer) -> Layer:
    """As `named`, without a look at the name: an empty one takes no place in paths."""
    if not layer.children:
        return dataclasses.replace(layer, name=name, named=True, rebuild=None)

    def rebuild(*children: Layer, **more: Any) -> Layer:
        return renamed(name, layer.rebuild(*children, **more))

    return dataclasses.replace(layer, name=name, named=True, rebuild=rebuild)


def leaf_of(layer: Layer, **functions: Any) -> Layer:
    """`layer` with other functions and without its children, under the name that its params have:
    what a rewrite makes of a part that it treats as a whole. What it says of itself, it still says.
    """
    whole = {"name": label(layer), "of_node": is_kind(layer), "children": ()}
    whole |= dict.fromkeys(("rebuild", "copies", "intended"))
    whole |= dict.fromkeys(("shares", "hands_on", "flat"), False)
    return dataclasses.replace(layer, **(whole | functions))


def output_spec(layer: Layer, params: PyTree, x_spec: PyTree) -> PyTree:
    """The shape and dtype of what `layer` gives for an input like `x_spec`, without computing."""
    return jax.eval_shape(lambda params, x: layer.forward(params, x)[0], params, x_spec)
