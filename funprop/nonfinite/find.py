"""What was first to be infinite or NaN in one gradient."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax

from funprop.arguments import check_given, check_grad_fn, check_trainable
from funprop.checks import check_known
from funprop.gradients import Gradient, backprop
from funprop.jitted import Jitted
from funprop.layer import Layer, check_layer
from funprop.nonfinite.equations import Equation, first_equation
from funprop.nonfinite.first import PARTS, first_bad
from funprop.nonfinite.numbers import Numbers, numbers_by_leaf
from funprop.nonfinite.report import Call, FirstBad, NonfiniteReport
from funprop.nonfinite.watch import Seen, watched_run
from funprop.transforms.transformed import call, objective_of
from funprop.trees import path_string

if TYPE_CHECKING:
    from funprop.gradients import GradFn
    from funprop.typing import PyTree

NOT_AGAIN = "Run layer by layer it is finite: what is compiled as a whole rounds in another way"
NOT_TOLD = "What was first cannot be told"


def find_nonfinite(
    grad_fn: GradFn, params: PyTree, batch: PyTree, key: Any = None, dloss: Any = None
) -> NonfiniteReport:
    """What was first to be infinite or NaN: which layer, activation, cotangent or gradient, forward
    or backward.

    The gradient is taken once as it is trained, compiled, and once without `jit`, every call of
    every layer looked at: `backward` of each is given the true cotangent, which is looked at before
    it, and what it gives after. A bad leaf of the batch or of params is named where that is the
    cause. Of a loss function (`from_loss`) there are no layers: it is run equation by equation, and
    what is said is the first equation, with its numbers and its line.

    Slower than an update by far, and holds all that is kept for the backward pass, and of a loss
    function all that is computed. What `clip_per_example` does to gradients, and its second pass,
    is looked at only where the gradient itself is finite, equation by equation.

    Args:
      grad_fn: any, as a step was given it.
      params: those before the update.
      batch: that of the update.
      key: that of the update, `fold_in(state.key, state.count)`; `None` for none.
      dloss: the cotangent of the loss, the scale of `loss_scale`; one if not given.

    Returns:
      A report: `.first`, `.calls`, `.sentence()`, and a table by `print`.

    Raises:
      TypeError, ValueError: as `grad_fn` does, of what it is given.

    Example:
      >>> import jax.numpy as jnp, funprop as fp
      >>> log = fp.from_function(lambda key, x: (), lambda params, x: jnp.log(x), name="log")
      >>> objective = fp.objective(fp.serial(fp.relu(), log), fp.mean_squared())
      >>> x = jnp.array([[1.0], [-1.0]])
      >>> found = find_nonfinite(fp.backprop(objective), ((), ()), (x, x))
      >>> found.first.kind, found.first.path, found.first.during
      ('activation', 'log', 'forward')
      >>> found.sentence().split(", nonfinite")[0][:65]
      'the loss is infinite. First bad: activation of log, forward: 1 in'
    """
    check_grad_fn(grad_fn)
    check_given(batch, key, dloss)
    check_known("params", params)
    check_known("batch", batch)
    check_trainable(params)
    gradient = Jitted(lambda params, batch, key, dloss: call(grad_fn, params, batch, key, dloss))(
        params, batch, key, dloss
    )
    loss, gradients = _outcome(gradient)
    objective = objective_of(grad_fn)
    seen: list[Seen] = []
    if objective is not None and objective.children:
        _, seen = watched_run(grad_fn, objective, params, batch, key, dloss)
    calls = tuple(
        Call(s.path, s.during, s.part, s.given, s.gives, s.gradients, s.kept)
        for s in seen
        if s.own and len(s.trail) > 1
    )
    first = first_bad(seen, params, batch)
    report = NonfiniteReport(loss, gradients, first, calls, ())
    if report.finite or first is not None:
        return report
    return report._replace(**_by_equations(grad_fn, params, batch, key, dloss, bool(calls)))


def first_nonfinite(
    objective: Layer, params: PyTree, batch: PyTree, key: Any = None
) -> FirstBad | None:
    """The layer that was first to give infinity or NaN, and whether that was an activation, a
    residual, a cotangent or a gradient; `None` where loss and gradient are finite.

    `find_nonfinite(backprop(objective), ...).first`, for those who need no table. It wants no
    probes in the model; params and batch may be sharded over a mesh.

    Args:
      objective: of `objective(model, loss)`, a layer.
      params: those before the update.
      batch: `(inputs, targets)` or `(inputs, targets, weights)`.
      key: that of the update, `fold_in(state.key, state.count)`; `None` for none.

    Raises:
      TypeError: `objective` is no layer.
      TypeError, ValueError: as the objective does, of what it is given.

    Example:
      >>> import jax, jax.numpy as jnp, funprop as fp
      >>> root = fp.from_function(lambda key, x: (), lambda params, x: jnp.sqrt(x), name="root")
      >>> objective = fp.objective(fp.serial(fp.dense(1), root), fp.mean_squared())
      >>> batch = jnp.zeros((2, 1)), jnp.ones((2, 1))
      >>> params = objective.init(jax.random.key(0), batch)
      >>> found = first_nonfinite(objective, params, batch)
      >>> found.kind, found.path, found.numbers.counted()
      ('residual', 'root', '2 infinite of 2')
    """
    check_layer("objective", objective, "objective(model, loss)")
    return find_nonfinite(backprop(objective), params, batch, key).first


def _outcome(gradient: Gradient) -> tuple[float, dict[str, Numbers]]:
    weight = float(gradient.weight)
    found = numbers_by_leaf(gradient.grads)
    named = {name or "params": numbers for name, numbers in found.items()}
    return float(gradient.loss) / (weight or 1.0), named


def _by_equations(
    grad_fn: GradFn, params: PyTree, batch: PyTree, key: Any, dloss: Any, of_objective: bool
) -> dict[str, Any]:
    """What can be told without layers."""

    def outputs(params: PyTree, batch: PyTree, key: Any, dloss: Any) -> Any:
        found = call(grad_fn, params, batch, key, dloss)
        return found.loss, found.grads

    try:
        found = first_equation(outputs, params, batch, key, dloss)
    except Exception as error:  # JAX promises nothing of what it is made of
        return {"notes": (f"{NOT_TOLD}: it could not be run by equations, {error}"[:300],)}
    if found is None:
        return {"notes": (NOT_AGAIN,)}
    if found.given is not None:
        return {"first": _given(found, params, batch, of_objective)}
    during = "forward" if found.output == 0 else "backward"
    first = FirstBad("equation", during, found.scope, "", found.numbers, found.largest, str(found))
    return {"first": first}


def _given(found: Equation, params: PyTree, batch: PyTree, of_objective: bool) -> FirstBad:
    """The leaf of params or of the batch that an equation is."""
    kind, tree = "parameter", params
    number, n = found.given or 0, len(jax.tree.leaves(params))
    if number >= n:
        kind, number = "input", number - n
        tree = dict(zip(PARTS, batch, strict=False)) if of_objective else {"batch": batch}
    paths = jax.tree_util.tree_leaves_with_path(tree)
    path = path_string(paths[number][0]) if number < len(paths) else "dloss"
    return FirstBad(kind, "", path or kind, "", found.numbers, found.numbers.largest, "")
