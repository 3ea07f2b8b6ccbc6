"""Anybody's step, run: as it was given, and with its random numbers held still."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.extend.core
import jax.numpy as jnp
import numpy as np

from funprop.trees import is_float, path_string
from funprop.verify.training import draws
from funprop.verify.training.layout import Layout, is_array, is_key, of_tree
from funprop.verify.truth.programs import jit_of
from funprop.verify.truth.same import surely_same


class Result(NamedTuple):
    """What an update gave.

    Attributes:
      arrays: of the new state, in the order of the layout.
      metrics: by path; a `(total, weight)` is its mean.
    """

    arrays: list[Any]
    metrics: dict[str, Any]


class Refused(Exception):  # noqa: N818  # what is met here, not a mistake of ours
    """The step cannot be run on this."""


@dataclasses.dataclass
class Traced:
    """A step traced for batches of one shape."""

    jaxpr: Any
    tree: Any
    programs: dict[str, Callable[..., Any]] = dataclasses.field(default_factory=dict)


class Steps:
    """A step, its state's layout, its key, and the axis of its batches' examples."""

    def __init__(self, update: Callable[..., Any], layout: Layout, key: Any, axis: int = 0) -> None:
        self.update, self.layout, self.key, self.axis = update, layout, key, axis
        self._traced: dict[Any, Traced | str] = {}
        self._jitted = hasattr(update, "lower")  # `jax.jit`, `eqx.filter_jit`, ours
        self.pure = True

    def fresh(self) -> Steps:
        """The same step, nothing traced: for states of other dtypes."""
        return self.of(self.update)

    def of(self, update: Callable[..., Any]) -> Steps:
        """Another form of the step, nothing traced."""
        return Steps(update, self.layout, self.key, self.axis)

    def key_of(self, i: int) -> Any:
        """The key of update `i`, where keys are given from outside."""
        return None if self.key is None else jax.random.fold_in(self.key, i)

    def given(self, arrays: Sequence[Any], batch: Any, key: Any = None) -> Result:
        """The update as it was given, on copies; what is not compiled is compiled, where it can."""
        copies = [copied(leaf) for leaf in arrays]
        key = self.key if key is None else key
        if not self._jitted and isinstance(self.traced(arrays, batch), Traced) and self.pure:
            return self._run(copies, batch, key, lambda jaxpr: jaxpr, "given")
        return self.split(self._call(self.layout.state(copies), on_device(batch), key))

    def quiet(self, arrays: Sequence[Any], batch: Any) -> Result:
        """The same with its random numbers held still.

        Raises:
          Refused: it draws, and that cannot be held still; or it does not take this batch.
        """
        traced = self.traced(arrays, batch)
        if isinstance(traced, str) or not self.pure:
            if self.key is not None:
                raise Refused(f"it may draw random numbers, and cannot be traced: {traced}")
            return self.given(arrays, batch)
        if not draws.can_be_quiet(traced.jaxpr):
            raise Refused("it draws random numbers in a way that cannot be held still")
        return self._run(list(arrays), batch, self.key, self._still, "quiet")

    def traced(self, arrays: Sequence[Any], batch: Any) -> Traced | str:
        """The step traced for such a batch and state, or why it cannot be."""
        place = _shapes(batch), _shapes(list(arrays))
        if place not in self._traced:
            first = not self._traced
            self._traced[place] = found = self._trace(arrays, batch)
            if first and isinstance(found, Traced):
                again = self._trace(arrays, batch)
                self.pure = isinstance(again, Traced) and surely_same(found.jaxpr, again.jaxpr)
        return self._traced[place]

    def split(self, out: Any) -> Result:
        """The new state and the metrics of what an update gave.

        Raises:
          TypeError: there is no state like the old one in it.
        """
        treedef = self.layout.treedef
        if jax.tree.structure(out) == treedef:
            return Result(self.layout.arrays(out), {})
        if isinstance(out, tuple) and len(out) > 1:
            if jax.tree.structure(out[0]) == treedef:
                return Result(self.layout.arrays(out[0]), metrics_of(out[1:]))
            for n in range(1, len(out)):  # (params, opt_state), batch -> params, opt_state, loss
                if jax.tree.structure(out[:n]) == treedef:
                    return Result(self.layout.arrays(out[:n]), metrics_of(out[n:]))
        raise TypeError(
            "update must give a state of the structure that it takes, or (state, metrics), got "
            f"{_short(jax.tree.structure(out))} for {_short(treedef)}"
        )

    def _call(self, state: Any, batch: Any, key: Any) -> Any:
        return self.update(state, batch) if key is None else self.update(state, batch, key)

    def _trace(self, arrays: Sequence[Any], batch: Any) -> Traced | str:
        layout = of_tree(batch)

        def flat(arrays: Any, leaves: Any, key: Any) -> Any:
            out = self._call(self.layout.state(arrays), layout.state(leaves), key)
            result = self.split(out)
            return result.arrays, {k: jnp.asarray(v) for k, v in result.metrics.items()}

        try:
            inputs = list(map(jnp.asarray, arrays)), on_device(layout.arrays(batch)), self.key
            jaxpr, spec = jax.make_jaxpr(flat, return_shape=True)(*inputs)
        except Exception as error:  # whatever a step of somebody raises
            return str(error).strip().split("\n")[0]
        return Traced(jaxpr, jax.tree.structure(spec))

    def _run(
        self, arrays: list[Any], batch: Any, key: Any, change: Callable[..., Any], kind: str
    ) -> Result:
        traced = self.traced(arrays, batch)
        assert isinstance(traced, Traced)
        loud = kind == "given" and draws.draws(traced.jaxpr)
        run = self._program(traced, "loud" if loud else "still", change)
        leaves = [*arrays, *of_tree(batch).arrays(batch), *jax.tree.leaves(key)]
        new, metrics = jax.tree.unflatten(traced.tree, run(*map(jnp.asarray, leaves)))
        return Result(list(new), metrics)

    def _still(self, jaxpr: Any) -> Any:
        return draws.quiet(jaxpr, self.axis)

    def _program(self, traced: Traced, kind: str, change: Callable[..., Any]) -> Any:
        if kind not in traced.programs:
            numbers = sum(int(np.prod(v.aval.shape)) for v in traced.jaxpr.jaxpr.invars)
            program = jax.extend.core.jaxpr_as_fun(change(traced.jaxpr))
            traced.programs[kind] = jit_of(numbers)(program)
        return traced.programs[kind]


def metrics_of(out: Any) -> dict[str, Any]:
    """Metrics by path, the mean of what is a total and a weight."""
    out = out[0] if isinstance(out, tuple) and len(out) == 1 else out

    def is_sum(node: Any) -> bool:
        return hasattr(node, "total") and hasattr(node, "weight")

    found, _ = jax.tree_util.tree_flatten_with_path(out, is_leaf=is_sum)
    named = {path_string(path) or "the metric": leaf for path, leaf in found}
    means = {k: v.total / v.weight if is_sum(v) else v for k, v in named.items()}
    return {k: v for k, v in means.items() if is_array(v) or isinstance(v, (int, float))}


def copied(leaf: Any) -> Any:
    """A copy in memory of its own: what a step donates is gone."""
    return np.copy(leaf) if isinstance(leaf, np.ndarray) else jnp.copy(leaf)


def on_device(tree: Any) -> Any:
    """The tree with JAX's arrays for NumPy's."""
    return jax.tree.map(lambda leaf: jnp.asarray(leaf) if is_array(leaf) else leaf, tree)


def is_real(leaf: Any) -> bool:
    """Whether a leaf is an array of floats, and no key."""
    return is_array(leaf) and not is_key(leaf) and is_float(leaf)


def _shapes(batch: Any) -> Any:
    leaves, treedef = jax.tree.flatten(batch)
    return treedef, tuple((np.shape(leaf), str(getattr(leaf, "dtype", leaf))) for leaf in leaves)


def _short(treedef: Any) -> str:
    text = str(treedef).removeprefix("PyTreeDef(").removesuffix(")")
    return text if len(text) <= 80 else f"{text[:77]}..."
