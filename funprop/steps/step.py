"""Step: `init(params, key) -> state`, `update(state, batch) -> (state, metrics)`: the fourth stage,
and all four of them as one function."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from funprop.arguments import check_grad_fn, check_optimizer, check_trainable
from funprop.checks import check_key, described
from funprop.gradients import GradFn, losses
from funprop.params.frozen import trained, with_trained
from funprop.params.statistics import fold
from funprop.params.tapped import untap
from funprop.properties import first_that
from funprop.reprs import of_fields
from funprop.steps.donating import Donating
from funprop.steps.retraced import Retraced
from funprop.transforms.transformed import call, objective_of, what_draws
from funprop.trees import Sum, all_finite, copied, is_float, wide_dtype, widen

if TYPE_CHECKING:
    from funprop.typing import PyTree


class Step(NamedTuple):
    """A training step: two pure functions.

    Attributes:
      init: `(params, key) -> state`. The state has an attribute `params`; it holds copies, so the
        params given stay usable. `key` may be `None` where nothing in the model draws from it; it
        is refused where something does, as that would be training without it.
      update: `(state, batch) -> (state, metrics)`, metrics a `Sum` by name. Jitted, and *donates*
        its state: the old one's memory becomes the new one's, so the old one is gone. A last
        argument `dloss` is the cotangent of the loss in the backward pass (see `loss_scale`); the
        gradient is divided by it again.
      check: raises where a state tells of something that an update, being compiled, could not;
        `fit` asks it between its device calls.
      parts: what it is made of, from the outermost wrapper in.
      propose: `(state, batch, dloss=None) -> (state, metrics, finite)`: `update`, not jitted, and
        whether the gradient of each leaf of params was finite, and last the loss. For wrappers;
        `None` where there is no gradient to look at.
      grad_fn: what gives the gradient; `None` where that is not known.
    """

    init: Callable[[Any, Any], Any]
    update: Callable[..., tuple[Any, dict[str, Sum]]]
    check: Callable[[Any], None] = lambda state: None
    parts: tuple[str, ...] = ("step",)
    propose: Callable[..., tuple[Any, dict[str, Sum], Any]] | None = None
    grad_fn: GradFn | None = None

    def __repr__(self) -> str:
        of = getattr(self.grad_fn, "__qualname__", self.grad_fn)
        return f"{'('.join(self.parts)}({of or ''}{')' * len(self.parts)}"


class TrainState(NamedTuple):
    """The state of `step`.

    Attributes:
      params: as the grad_fn takes them.
      opt_state: optax's.
      key: a random key, or `None`; update `i` draws from `fold_in(key, i)`.
      count: how many updates were made, `int32`.
    """

    params: Any
    opt_state: Any
    key: Any
    count: Any

    def __repr__(self) -> str:
        return of_fields(self)


def step(grad_fn: GradFn, optimizer: optax.GradientTransformation) -> Step:
    """Gradient, then update by any optax transform; the sums are divided by their weight here.

    Transforms that want the value, the gradient or the loss as a function (line searches,
    `reduce_on_plateau`), the batch, the key or all params (`kfac`) get them. A batch whose weights
    are all zero has a gradient of zero.
    Statistics among the params are carried: what the pass recorded is folded in. Where all leaves
    are small and there are hundreds, `optax.flatten(optimizer)` updates them as one vector, faster.

    Raises:
      TypeError: `grad_fn` or `optimizer` is none; or, at init, a leaf of params that is trained is
        not floating, or the key no random key; or, at an update's trace, what was given is no
        state.
      ValueError: at init or an update's trace, there is no key and the model draws from one; or, at
        an update, the state was given to one before, or an integer of the batch does not fit in the
        32 bits that JAX has.

    Example:
      >>> import funprop as fp
      >>> line = fp.objective(fp.dense(1, bias=False), fp.mean_squared())
      >>> train = step(fp.backprop(line), optax.sgd(0.1))
      >>> batch = jnp.array([[1.0], [2.0]]), jnp.array([[2.0], [4.0]])
      >>> state = train.init(line.init(jax.random.key(0), batch), jax.random.key(1))
      >>> for _ in range(50):
      ...     state, metrics = train.update(state, batch)
      >>> round(float(state.params.w[0, 0]), 4), float(metrics["loss"].mean) < 1e-6
      (2.0, True)
    """
    check_grad_fn(grad_fn)
    check_optimizer(optimizer)
    transform = optax.with_extra_args_support(optimizer)
    takes = inspect.signature(transform.update).parameters.values()
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in takes)

    def init(params: PyTree, key: Any) -> TrainState:
        check_trainable(params)
        check_key_of(key, grad_fn)
        opt_state = transform.init(trained(params))
        state = TrainState(params, opt_state, key, jnp.zeros((), jnp.int32))
        # Copies: the first update donates the state, and some transforms keep the params in it.
        return copied(state)

    def propose(
        state: TrainState, batch: PyTree, dloss: Any = None
    ) -> tuple[TrainState, dict[str, Sum], Any]:
        check_state(state, TrainState)
        check_key_of(state.key, grad_fn)
        key = None if state.key is None else jax.random.fold_in(state.key, state.count)

        def mean_loss(params: PyTree) -> Any:
            other = grad_fn(with_trained(state.params, params), batch, key)
            return other.loss / other.weight

        gradient = call(grad_fn, state.params, batch, key, dloss)
        gradient = gradient._replace(grads=untap(gradient.grads)[0])
        scale = 1 / jnp.where(gradient.weight == 0, 1, gradient.weight)
        unit = None if dloss is None else jnp.asarray(dloss)

        def mean(g: Any) -> Any:
            # Divided by a power of two first: with the weight in one factor it might underflow.
            wide = widen(g) if unit is None else widen(g) / unit.astype(wide_dtype(g.dtype))
            return (wide * scale.astype(wide.dtype)).astype(g.dtype)

        grads = jax.tree.map(mean, gradient.grads)
        params = trained(state.params)
        wanted = {"value": gradient.loss * scale, "grad": grads, "value_fn": mean_loss}
        whole = {"batch": batch, "key": key, "all_params": state.params}
        if not takes_any or reads_batch(state.opt_state):  # `optax.lbfgs` refuses what it knows not
            wanted |= whole
        if not takes_any:  # as of `optax.contrib.sam`
            wanted = {p.name: wanted[p.name] for p in takes if p.name in wanted}
        updates, opt_state = transform.update(grads, state.opt_state, params, **wanted)
        carried = fold(state.params, gradient.recorded)
        params = with_trained(carried, optax.apply_updates(params, updates))
        new = TrainState(params, opt_state, state.key, state.count + 1)
        # A loss that overflows may have a gradient that is finite.
        finite = [all_finite(g) for g in (*jax.tree.leaves(gradient.grads), gradient.loss)]
        return new, losses(gradient), jnp.stack(finite)

    return Step(init, updating(propose), propose=propose, grad_fn=grad_fn)


def reads_batch(opt_state: PyTree) -> bool:
    """Whether a transform among those of a chain wants the batch: its state says so."""
    told = jax.tree.leaves(opt_state, is_leaf=lambda node: hasattr(node, "reads_batch"))
    return any(hasattr(node, "reads_batch") for node in told)


def updating(propose: Callable[..., tuple[Any, dict[str, Sum], Any]]) -> Callable[..., Any]:
    """The `update` of a step from its `propose`: what nobody asks for is left out."""
    retraced = Retraced()

    def update(state: Any, batch: PyTree, dloss: Any = None) -> tuple[Any, dict[str, Sum]]:
        retraced(batch)
        state, metrics, _ = propose(state, batch, dloss)
        return state, metrics

    return Donating(update)


def check_step(step: Any) -> None:
    """Raise a `TypeError` where what was given is no step."""
    if not isinstance(step, Step):
        raise TypeError(
            "step must be a Step, as step(grad_fn, optimizer) makes it, got " + described(step)
        )


def parts_of(step: Step) -> tuple[str, ...]:
    """What a step is made of; a `TypeError` where it is none."""
    check_step(step)
    return step.parts


def check_state(state: Any, kind: type) -> None:
    """Raise a `TypeError` where `state` is not what this step's `init` gives, a `kind`."""
    if not isinstance(state, kind):
        raise TypeError(
            f"state must be of type {kind.__name__}, as init of the same step gives it, got "
            f"{described(state)}"
        )


def check_key_of(key: Any, grad_fn: GradFn) -> None:
    """Raise where `key` is no key, or there is none and the model is another one in training."""
    check_key(key)
    if key is not None:
        return
    if (drawing := what_draws(grad_fn)) is not None:
        raise ValueError(
            f"key must be given, as {drawing} draws from it in training, got None: to train "
            "without noise, leave it out of the model"
        )
    objective = objective_of(grad_fn)
    if objective is not None and objective.mixes:
        raise ValueError(
            f"key must be given, as {first_that('mixes', objective)} takes statistics from the "
            "batch in training, got None: to train with those that it has, freeze it"
        )


def wrapper(
    name: str,
    kind: type,
    step: Step,
    init: Callable[[Any, Any], Any],
    propose: Callable[..., tuple[Any, dict[str, Sum], Any]],
    check: Callable[[Any], None] = lambda state: None,
) -> Step:
    """A Step around another, whose state is in `inner` of its own.

    Args:
      name: of the wrapper.
      kind: of its state.
      step: the one within.
      init: as a Step has it.
      propose: as a Step has it; `update` is made of it.
      check: of what is the wrapper's own; that of the step within comes first.
    """

    def check_both(state: Any) -> None:
        step.check(state.inner)
        check(state)

    def checked(state: Any, batch: PyTree, dloss: Any = None) -> tuple[Any, dict[str, Sum], Any]:
        check_state(state, kind)
        return propose(state, batch, dloss)

    parts = (name, *step.parts)
    return Step(init, updating(checked), check_both, parts, checked, step.grad_fn)


def proposed(step: Step, state: Any, batch: PyTree, dloss: Any) -> tuple[Any, dict[str, Sum], Any]:
    """`step.propose`; of a step that has none, its update, and whether what came of it is finite:
    each leaf of params, the loss, and what was finite in the rest of its state."""
    extra = () if dloss is None else (dloss,)
    if step.propose is not None:
        return step.propose(state, batch, *extra)
    new, metrics = step.update(state, batch, *extra)
    told = [metrics["loss"].total] if "loss" in metrics else []
    finite = [all_finite(leaf) for leaf in (*jax.tree.leaves(trained(new.params)), *told)]
    # Some optimizers hide it from params: lion takes a sign, and keeps an infinite moment.
    pairs = zip(jax.tree.leaves(state), jax.tree.leaves(new), strict=True)
    spoilt = [jnp.isfinite(o) & ~jnp.isfinite(n) for o, n in pairs if is_float(o)]
    return new, metrics, jnp.stack([*finite, *(~each.any() for each in spoilt)])
