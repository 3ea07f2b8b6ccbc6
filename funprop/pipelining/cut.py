"""An objective cut in three: what is before its `repeat`, the repeated blocks, and what is behind.

The tree stays one. The `repeat` in it is replaced by a leaf that hands on what it is told to, and
the parts on the side that is not wanted by leaves that compute nothing. So each cut is an ordinary
layer, and tied weights, frozen parts and metrics are what they are in the whole.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import Literal

from funprop import trees
from funprop.arguments import run
from funprop.layer import Layer, check_layer, leaf_of, recorded
from funprop.names import below, title
from funprop.params.frozen import trained
from funprop.trees import Sum

if TYPE_CHECKING:
    from funprop.typing import PyTree


class Head(NamedTuple):
    """What the part behind the blocks gives.

    Attributes:
      loss: a `Sum`.
      records: what was recorded there, as a flat list.
      grads: in the form of the gradient of all params, zero for those of other parts.
      dy: the cotangent of the blocks' output.
    """

    loss: Sum
    records: list[Any]
    grads: Any
    dy: Any


@dataclasses.dataclass(frozen=True)
class Cut:
    """An objective, cut at its one `repeat`.

    Attributes:
      objective: the whole.
      path: of the `repeat`: the number of a child at each level.
      blocks: the `repeat`.
    """

    objective: Layer
    path: tuple[int, ...]
    blocks: Layer

    def part(self, tree: PyTree) -> Any:
        """The blocks' part of a tree in the form of params."""
        node = self.objective
        for i in self.path:
            tree, node = node.split(tree)[i], node.children[i]
        return tree

    def replaced(self, tree: PyTree, new: Any) -> Any:
        """A tree in the form of params, with `new` as the blocks' part."""

        def at(node: Layer, path: tuple[int, ...], tree: PyTree) -> Any:
            if not path:
                return new
            parts = list(node.split(tree))
            parts[path[0]] = at(node.children[path[0]], path[1:], parts[path[0]])
            return node.join(tree, parts)

        return at(self.objective, self.path, tree)

    def share(self, stages: int) -> Layer:
        """As many of the blocks as one of the stages has.

        Raises:
          ValueError: the stages do not divide them, or the `repeat` was rewritten as a whole.
        """
        copies = self.blocks.copies or 0
        if copies % stages:
            raise ValueError(f"stages must divide the {copies} blocks, got {stages}")
        try:
            return self.blocks.rebuild(*self.blocks.children, copies=copies // stages)
        except TypeError:
            raise ValueError(
                f"objective must have its blocks rewritten one by one, {self.blocks.name}(remat("
                "block)), not the repeat as a whole"
            ) from None

    def stem(self, params: PyTree, batch: PyTree, key: Any) -> Any:
        """What is handed to the first block."""
        return self._reached(params, batch, key, stem=True)[0]

    def block_keys(self, params: PyTree, batch: PyTree, key: Any) -> Any:
        """A key for each block; `None` without a key."""
        own = self._reached(params, batch, key, stem=False)[1]
        return None if own is None else jax.random.split(own, self.blocks.copies or 1)

    def head(self, params: PyTree, batch: PyTree, key: Any, y: Any, dloss: Any = None) -> Head:
        """The loss and its backward pass as far as the blocks, from the last one's output."""
        seen: list[Any] = []

        def forward(params: PyTree, x: PyTree, key: Any = None) -> tuple[Any, Any]:
            return y, ()

        def backward(params: PyTree, residuals: Any, dy: Any) -> tuple[Any, Any]:
            seen.append(dy)
            return _zeros(trained(params)), _no_cotangent(y)

        layer = self._cut(leaf_of(self.blocks, forward=forward, backward=backward), stem=False)
        loss, residuals = run(layer, params, batch, key)
        one = jnp.ones_like(loss.total)
        dtotal = one if dloss is None else jnp.asarray(dloss, one.dtype)
        grads, _ = layer.backward(params, residuals, Sum(dtotal, jnp.zeros_like(loss.weight)))
        return Head(loss, jax.tree.leaves(recorded(residuals)), self.replaced(grads, ()), seen[0])

    def stem_backward(
        self, params: PyTree, batch: PyTree, key: Any, dx: Any, records: int
    ) -> tuple[list[Any], PyTree]:
        """The backward pass of the part before the blocks, from the cotangent of their input, and
        what was recorded there: so many arrays."""

        def forward(params: PyTree, x: PyTree, key: Any = None) -> tuple[Any, Any]:
            return x, ()

        def backward(params: PyTree, residuals: Any, dy: Any) -> tuple[Any, Any]:
            return _zeros(trained(params)), dx

        layer = self._cut(leaf_of(self.blocks, forward=forward, backward=backward), head=False)
        loss, residuals = run(layer, params, batch, key)
        grads, _ = layer.backward(params, residuals, jax.tree.map(jnp.zeros_like, loss))
        # Metrics are recorded behind everything, and here of nothing.
        return jax.tree.leaves(recorded(residuals))[:records], self.replaced(grads, ())

    def _reached(self, params: PyTree, batch: PyTree, key: Any, *, stem: bool) -> tuple[Any, Any]:
        """What reaches the blocks: their input and their key."""
        seen: list[Any] = []

        def forward(params: PyTree, x: PyTree, key: Any = None) -> tuple[Any, Any]:
            seen.append((x, key))
            return x, ()

        layer = self._cut(leaf_of(self.blocks, forward=forward), stem=stem, head=False)
        layer.forward(params, batch, key)
        return seen[0]

    def _cut(self, blocks: Layer, *, stem: bool = True, head: bool = True, fill: Any = 0) -> Layer:
        """The objective with other blocks, and with only the sides that are wanted."""

        def at(node: Layer, path: tuple[int, ...]) -> Layer:
            if not path:
                return blocks
            children = [
                at(child, path[1:])
                if i == path[0]
                else child
                if (stem if i < path[0] else head)
                else _mute(child, fill)
                for i, child in enumerate(node.children)
            ]
            return node.rebuild(*children)

        return at(self.objective, self.path)

    def check_in_line(self, params: PyTree, batch: PyTree, key: Any) -> None:
        """Raise a `ValueError` where something of the part before the blocks goes around them, as
        a residual connection does: the loss depends on it though the blocks are left out."""
        x = jax.eval_shape(self.stem, params, batch, key)

        def loss(fill: Any, y: Any, params: PyTree, batch: PyTree, key: Any) -> Any:
            blocks = leaf_of(self.blocks, forward=lambda params, x, key=None: (y, ()))
            total, _ = self._cut(blocks, stem=False, fill=fill).forward(params, batch, key)[0]
            return total

        if not all(trees.is_float(leaf) for leaf in jax.tree.leaves(x)):
            got = ", ".join(map(trees.spec_string, jax.tree.leaves(x)))
            raise TypeError(f"blocks must hand on floating numbers, got {got}")
        jaxpr = jax.make_jaxpr(loss)(jnp.zeros(()), x, params, batch, key).jaxpr
        reached = {jaxpr.invars[0]}

        def depends(atoms: Any) -> bool:
            return any(not isinstance(atom, Literal) and atom in reached for atom in atoms)

        for equation in jaxpr.eqns:
            if depends(equation.invars):
                reached |= set(equation.outvars)
        if depends(jaxpr.outvars):
            raise ValueError(
                f"objective must have nothing around its {self.blocks.name}, got an output of a "
                "part before it that a part behind it needs"
            )


def cut(objective: Layer) -> Cut:
    """`objective` cut at its one `repeat`.

    Raises:
      TypeError: `objective` is no layer.
      ValueError: it has none, or several side by side, or the params of the one are shared; or it
        has copies of another kind.
    """
    check_layer("objective", objective, "objective(model, loss)")
    found: list[tuple[str, tuple[int, ...], Layer]] = []

    def look(node: Layer, path: str, place: tuple[int, ...], shared: bool) -> None:
        if node.copies is not None:
            told = title(path, node)
            if len(node.children) != 1:  # its copies run in a way of their own
                raise ValueError(f"objective must have its blocks in a repeat, got {told}")
            if shared:
                raise ValueError(f"objective must not share the params of its blocks, got {told}")
            found.append((told, place, node))
            return
        shared = shared or (node.shares and not node.hands_on)
        for i, (child, name) in enumerate(zip(node.children, below(path, node), strict=True)):
            look(child, name, (*place, i), shared)

    look(objective, "", (), False)
    if len(found) != 1:
        got = ", ".join(path for path, _, _ in found[:4]) or "none"
        raise ValueError(f"objective must have one repeat, whose blocks are the stages, got {got}")
    ((_, place, blocks),) = found
    return Cut(objective, place, blocks)


def _mute(layer: Layer, fill: Any) -> Layer:
    """A leaf of the same shapes that computes nothing: it gives `fill` everywhere."""

    def forward(params: PyTree, x: PyTree, key: Any = None) -> tuple[Any, Any]:
        spec = jax.eval_shape(lambda *args: layer.forward(*args)[0], params, x, key)
        return jax.tree.map(lambda s: jnp.full(s.shape, fill, s.dtype), spec), x

    def backward(params: PyTree, x: PyTree, dy: PyTree) -> tuple[Any, Any]:
        return _zeros(trained(params)), _no_cotangent(x)

    return leaf_of(layer, forward=forward, backward=backward)


def _zeros(tree: PyTree) -> PyTree:
    return jax.tree.map(jnp.zeros_like, tree)


def _no_cotangent(x: PyTree) -> PyTree:
    return jax.tree.map(lambda leaf: jnp.zeros_like(leaf) if trees.is_float(leaf) else None, x)
