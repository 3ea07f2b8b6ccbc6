"""A gradient taken without `jit`, every call of every layer looked at, forward and backward.

Each leaf of the model is compiled by itself, as it stands in the model that trains: with its
dtypes, its loops and its own backward. What combinators do runs as Python, copy by copy.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections import Counter
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jax.core import Tracer

from funprop.gradients import Gradient, backprop
from funprop.inspect.visits import Trail, path_of, places_of
from funprop.layer import Layer
from funprop.maps import around
from funprop.names import title
from funprop.nonfinite.numbers import Numbers, numbers, numbers_by_leaf
from funprop.residuals import with_own, without_own
from funprop.transforms.transformed import Transformed

if TYPE_CHECKING:
    from funprop.gradients import GradFn
    from funprop.typing import PyTree


@dataclasses.dataclass
class Seen:
    """A call of one layer.

    Attributes:
      layer: which.
      trail: from the root, `(child, which call)`.
      during: `forward` or `backward`.
      part: of which part of the batch, counted from zero.
      given: of `x`, or of the cotangent `dy`.
      gives: of `y`, or of the cotangent `dx`.
      gradients: backward, of `dparams`, by the names of leaves; of combinators, that of the root.
      sick: whether params or `x`, those of the forward call, hold what is not finite.
      own: whether what it gives is not just what a child gave.
      kept: of the residuals of a leaf whose input and output are finite; of that call backward too.
      run: the function and its arguments, to run it again; only of a call that made what is not
        finite of what is.
      path: its name.
    """

    layer: Layer
    trail: Trail
    during: str
    part: int
    given: Numbers
    gives: Numbers
    gradients: dict[str, Numbers]
    sick: str
    own: bool
    kept: Numbers
    run: tuple[Callable[..., Any], tuple[Any, ...]] | None = None
    path: str = ""

    @property
    def bad(self) -> bool:
        """Whether something that it gives is not finite."""
        return not (self.gives.finite and all(g.finite for g in self.gradients.values()))


def watched_run(
    grad_fn: GradFn,
    objective: Layer,
    params: PyTree,
    batch: PyTree,
    key: Any,
    dloss: Any,
    noted: Callable[..., None] = lambda seen, params, given, gives, gradients: None,
) -> tuple[Gradient, list[Seen]]:
    """The gradient, and every call of every part of `objective` in the order in which they ended.

    Args:
      grad_fn: transforms around `backprop(objective)`; those that cannot call it with values
        (`Transformed.in_turn`) are left out.
      objective: the one within.
      params, batch, key, dloss: as grad_fn takes them.
      noted: called with each `Seen` and the arrays themselves, as they come: `(seen, params, x, y,
        None)` forward, `(seen, params, dy, dx, dparams)` backward.
    """
    watch = _Watch(noted)
    inner = _within(grad_fn, backprop(watch.node(objective, 0)))
    with jax.disable_jit():
        gradient = inner(params, batch, key, *(() if dloss is None else (dloss,)))
    copied = {places_of(trail[:-1]) for trail in watch.trails if trail[-1][1] > 0}
    for seen in watch.seen:
        path = path_of(seen.trail, copied, objective)
        seen.path = title(path, seen.layer)
    return gradient, watch.seen


def _within(grad_fn: GradFn, innermost: GradFn) -> GradFn:
    if not isinstance(grad_fn, Transformed):
        return innermost
    inner = _within(grad_fn.inner, innermost)
    return inner if grad_fn.in_turn is None else grad_fn.in_turn(inner)


class _Watch:
    def __init__(self, noted: Callable[..., None]) -> None:
        self.noted = noted
        self.seen: list[Seen] = []
        self.trails: list[Trail] = []  # of forward calls, by their number
        self.sick: list[str] = []
        # What forward was given that kept infinity, and what of that.
        self.keeping: dict[int, tuple[tuple[Any, ...], Numbers]] = {}
        self.calls: dict[int, Counter[int]] = {}  # of parts, that each forward call made
        # Of each running node: its trail, its calls, those that its forward made where it goes
        # back, and its copies where it goes back over them.
        self.running: list[tuple[Trail, Counter[int], Counter[int], int | None]]
        self.running = [((), Counter(), Counter(), None)]
        self.part = -1
        self.going_back = False

    def node(self, layer: Layer, place: int) -> Layer:
        if not layer.children:
            return self.watched(layer, _compiled(layer), place)
        children = [self.node(child, i) for i, child in enumerate(layer.children)]
        return self.watched(layer, layer.rebuild(*children), place)

    def watched(self, layer: Layer, inner: Layer, place: int) -> Layer:
        """`inner`, which is `layer` with its parts watched, watched itself.

        Backward learns from a number among the residuals which call of forward it belongs to.
        """

        def forward(params: PyTree, x: PyTree, key: Any = None) -> tuple[PyTree, PyTree]:
            if _traced((params, x)):  # for its shapes, say
                y, kept = inner.forward(params, x, key)
                return y, with_own(inner, kept, jnp.int32(-1))
            number, given = len(self.trails), numbers(x)
            self.trails.append(self.enter(place))
            healthy = numbers(params).finite
            self.sick.append("x" if not given.finite else "" if healthy else "params")
            with self.within(number):
                y, kept = inner.forward(params, x, key)
            gives = numbers(y)
            if not layer.children and given.finite and not (held := numbers(kept)).finite:
                self.keeping[number] = (params, x, key), held if gives.finite else Numbers()
            if not self.going_back:  # there, it is run again: nothing new
                seen = self.seen_of(layer, number, "forward", given, gives, {})
                self.noted(seen, params, x, y, None)
                if seen.bad and given.finite and not layer.children:
                    seen.run = layer.forward, (params, x, key)
            return y, with_own(inner, kept, jnp.int32(number))

        def backward(params: PyTree, residuals: Any, dy: PyTree) -> tuple[PyTree, PyTree]:
            residuals, number = without_own(inner, residuals)
            if _traced((params, residuals, dy, number)) or int(number) < 0:
                return inner.backward(params, residuals, dy)
            self.going_back = True
            given, number = numbers(dy), int(number)
            with self.within(number, layer.copies):
                dparams, dx = inner.backward(params, residuals, dy)
            whole = not layer.children or layer.shares or len(self.trails[number]) == 1
            gradients = numbers_by_leaf(dparams) if whole else {}
            seen = self.seen_of(layer, number, "backward", given, numbers(dx), gradients)
            self.noted(seen, params, dy, dx, dparams)
            if seen.bad and given.finite and not layer.children:
                seen.run = layer.backward, (params, residuals, dy)
                if number in self.keeping:  # as of a slope, which `jax.vjp` takes there
                    seen.run = functools.partial(_both, layer), (*self.keeping[number][0], dy)
            return dparams, dx

        def again(inner: Layer) -> Layer:
            return self.watched(layer, inner, place)

        return around(inner, again, forward=forward, backward=backward)

    def enter(self, place: int) -> Trail:
        """The trail of a call that begins; that of the root begins a part of the batch."""
        above, calls, before, copies = self.running[-1]
        if not above:
            self.part, self.going_back = self.part + 1, False
            return ((0, 0),)
        calls[place] += 1
        which = calls[place] - 1 if copies is None else copies - calls[place]
        # Under two `remat` a node runs its parts forward twice while it goes back.
        return (*above, (place, which % max(1, before[place])))

    @contextlib.contextmanager
    def within(self, number: int, copies: int | None = None) -> Iterator[None]:
        """Within, the calls that begin are those of parts of that call; of a node whose backward
        runs its copies forward again, those of the last copy first."""
        calls = Counter[int]()
        before = self.calls.setdefault(number, calls)
        self.running.append((self.trails[number], calls, before, copies))
        yield
        self.running.pop()

    def seen_of(
        self,
        layer: Layer,
        number: int,
        during: str,
        given: Numbers,
        gives: Numbers,
        gradients: dict[str, Numbers],
    ) -> Seen:
        """The call noted. What a node gives is its own where its last part gave other numbers."""
        trail = self.trails[number]
        last = self.seen[-1] if self.seen else None
        own = not layer.children or last is None or last.gives[:4] != gives[:4]
        kept = self.keeping.get(number, ((), Numbers()))[1]
        numbered = given, gives, gradients, self.sick[number], own, kept
        seen = Seen(layer, trail, during, self.part, *numbered)
        self.seen.append(seen)
        return seen


def _both(layer: Layer, params: PyTree, x: PyTree, key: Any, dy: PyTree) -> tuple[PyTree, PyTree]:
    return layer.backward(params, layer.forward(params, x, key)[1], dy)


def _compiled(leaf: Layer) -> Layer:
    forward, backward = jax.jit(leaf.forward), jax.jit(leaf.backward)

    def run_forward(params: PyTree, x: PyTree, key: Any = None) -> tuple[PyTree, PyTree]:
        with jax.disable_jit(False):
            return forward(params, x, key)

    def run_backward(params: PyTree, residuals: PyTree, dy: PyTree) -> tuple[PyTree, PyTree]:
        with jax.disable_jit(False):
            return backward(params, residuals, dy)

    return dataclasses.replace(leaf, forward=run_forward, backward=run_backward)


def _traced(tree: PyTree) -> bool:
    return any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(tree))
