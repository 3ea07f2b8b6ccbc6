"""A step that fits into a budget: what to keep, to run again and to move, block by block."""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING, NamedTuple

import jax
import optax

from funprop import trees
from funprop.arguments import objective_meant
from funprop.checks import check_arrays, described
from funprop.inspect.table import aligned
from funprop.layer import Layer, check_layer
from funprop.memory.account import Account, Program
from funprop.memory.blocks import Block, Policy, blocks_of, under
from funprop.values import whole_number

if TYPE_CHECKING:
    from funprop.typing import PyTree

FEW = 64  # of fewer policies all may be tried
POINTS = 400  # policies of a large model between which is chosen
DOUBT = 3  # those that save a third of what is wanted, by the estimate, are looked at too

Policies = tuple[Policy, ...]


class Chosen(NamedTuple):
    """What was chosen for one block.

    Attributes:
      path: of the block.
      copies: of it.
      policy: of how many of them what is said.
      kept: bytes that one copy keeps for its backward pass, if it keeps.
      work: what its forward pass costs, as a share of the whole work without a budget.
    """

    path: str
    copies: int
    policy: Policy
    kept: int
    work: float


class Within(NamedTuple):
    """What `within` gives. `print` shows it as a table.

    Attributes:
      objective: as it was, its blocks under what was chosen; the same params, the same gradient.
      chosen: for each block.
      bytes: what the program takes, by XLA's account.
      work: of it, as a multiple of what it is if everything is kept.
      budget: what was asked for.
      tried: how many programs were compiled.
    """

    objective: Layer
    chosen: tuple[Chosen, ...]
    bytes: int
    work: float
    budget: int
    tried: int

    def __str__(self) -> str:
        head = ("block", "copies", "policy", "bytes a copy", "forward, of all work")
        rows = [
            (c.path, str(c.copies), str(c.policy), f"{c.kept:,}", f"{c.work * c.copies:.1%}")
            for c in self.chosen
        ]
        told = f"{self.bytes:,} bytes of {self.budget:,}, {self.work:.2f} times the work of keeping"
        return "\n".join([*aligned([head, *rows], left=(0, 2)), told])

    __repr__ = __str__


def within(
    objective: Layer,
    batch_spec: PyTree,
    bytes: int,  # noqa: A002  # the word for it
    *,
    optimizer: optax.GradientTransformation | None = None,
    transfer: float | None = None,
) -> Within:
    """The objective so rewritten that its gradient, or a whole update, fits into `bytes`.

    For each block of the model (a child that does not keep most of all; of a `repeat` each copy) it
    is chosen whether it keeps its residuals, is run again (`remat`) or moves them to the host
    (`offload`): what costs the least work and fits by XLA's own account, for the device that this
    process has. Of few policies the best is found; of many, the best along the curve of bytes
    against work that comes of what each block keeps, each corrected by compiling.

    Args:
      objective: of `objective(model, loss)`, or any layer that is trained, not rewritten yet.
      batch_spec: a batch, or a pytree of `jax.ShapeDtypeStruct` like it.
      bytes: the budget: params, gradients and all between; nothing is computed to find out.
      optimizer: with it the budget is for the whole update, its state included.
      transfer: what moving a byte to the host and back costs, in floating-point operations that the
        device could do meanwhile: a few thousand on a GPU. Without it nothing is moved.

    Raises:
      TypeError: `objective` is no layer, `batch_spec` no arrays, `bytes` no integer.
      ValueError: no policy fits; the least that one takes is told.

    Example:
      >>> import jax, jax.numpy as jnp, funprop as fp
      >>> block = fp.residual(fp.serial(fp.dense(64), fp.gelu(), fp.dense(32)))
      >>> model = fp.serial(fp.repeat(block, 8), fp.dense(1))
      >>> objective = fp.objective(model, fp.mean_squared())
      >>> x, y = jnp.zeros((512, 32)), jnp.zeros((512, 1))
      >>> found = within(objective, (x, y), 2_600_000)
      >>> found.bytes <= 2_600_000, 1 < found.work < 1.5
      (True, True)
    """
    check_layer("objective", objective, "objective(model, loss)")
    check_arrays("batch_spec", batch_spec)
    budget = whole_number(bytes, "bytes", 1)
    number = isinstance(transfer, int | float) and not isinstance(transfer, bool)
    if transfer is not None and not (number and 0 < transfer < math.inf):
        raise ValueError(f"transfer must be a positive number, got {described(transfer)}")
    batch = trees.canonical(trees.spec(batch_spec))
    if isinstance(batch, tuple) and batch:
        _check_loss(objective, batch)
    return _Search(objective, Program(batch, optimizer), budget, transfer).run()


def _check_loss(objective: Layer, batch: tuple[PyTree, ...]) -> None:
    """Raise a `TypeError` where it is a model without a loss."""
    key = jax.eval_shape(lambda: jax.random.key(0))
    try:
        params = jax.eval_shape(objective.init, key, batch[0])
    except Exception:  # then it takes the batch as it is
        return
    with objective_meant(objective, params, batch):
        jax.eval_shape(objective.init, key, batch)


class _Search:
    def __init__(
        self, objective: Layer, program: Program, budget: int, transfer: float | None
    ) -> None:
        self.objective, self.program, self.budget = objective, program, budget
        self.transfer = transfer or 0.0
        self.blocks: list[Block] = blocks_of(objective, program.batch)
        self.options = [block.policies(transfer is not None) for block in self.blocks]
        self.found: dict[Policies, Account] = {}

    def run(self) -> Within:
        plain = tuple(options[0] for options in self.options)
        if self.fits(plain):
            return self.told(plain, plain)
        if math.prod(map(len, self.options)) <= FEW:
            best = self.first(list(itertools.product(*self.options)), plain)
        else:
            self.without_those_that_save_nothing()
            best = self.bisected(self.curve())
        if best is None:
            least = min(account.bytes for account in self.found.values())
            raise ValueError(
                f"bytes must be at least {least:,}, the least that a policy takes, got "
                f"{self.budget:,}"
            )
        return self.told(best, plain)

    def first(self, policies: list[Policies], plain: Policies) -> Policies | None:
        """The first to fit in the order of work; those that seem hopeless are tried last of all,
        and only where none else fits."""
        lean = max(policies, key=self.saves)
        self.fits(lean)  # which says how far the estimate is to be believed
        most, saved = self.found[plain].bytes, max(1, self.saves(lean))
        share = (most - self.found[lean].bytes) / saved
        wanted = most - self.budget
        ordered = sorted(policies, key=self.costs)
        likely = [p for p in ordered if DOUBT * max(share, 0.1) * self.saves(p) >= wanted]
        if share <= 0:  # others may save something all the same; which, the estimate cannot tell
            likely = ordered
        return next(filter(self.fits, likely), None) or next(filter(self.fits, ordered), None)

    def without_those_that_save_nothing(self) -> None:
        """Leaves blocks at the end of the forward pass as they are that, run again, save nothing:
        when they are, the residuals of all others are still there."""
        lean = max(self.curve(), key=self.saves)
        self.fits(lean)
        for i in reversed(range(len(self.blocks))):
            if self.blocks[i].copies > 1:
                return
            kept = (*lean[:i], self.options[i][0], *lean[i + 1 :])
            self.fits(kept)
            if self.found[kept].bytes > self.found[lean].bytes:
                return
            self.options[i], lean = self.options[i][:1], kept

    def bisected(self, policies: list[Policies]) -> Policies | None:
        """Along the curve, which goes from little work and many bytes to the other end, as the
        estimate has it; of all that were looked at, what costs the least work and fits."""
        low, high = 0, len(policies) - 1
        self.fits(policies[high])
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if self.fits(policies[middle]) else (middle + 1, high)
        return min(filter(self.fits, list(self.found)), key=self.costs, default=None)

    def curve(self) -> list[Policies]:
        """Those than which none saves more at no more work, in the order of work."""
        best: list[tuple[float, int, Policies]] = [(0.0, 0, ())]
        for block, options in zip(self.blocks, self.options, strict=True):
            more = [
                (work + block.costs(o, self.transfer), saved + block.saves(o), (*policies, o))
                for work, saved, policies in best
                for o in options
            ]
            # Of equal ones that which saves early: what is kept first is kept longest.
            more.sort(key=lambda point: point[2], reverse=True)
            more.sort(key=lambda point: (point[0], -point[1]))
            best, most = [], -1
            for point in more:
                if point[1] > most:
                    best.append(point)
                    most = point[1]
            if len(best) > POINTS:  # evenly, both ends among them
                at = [round(i * (len(best) - 1) / (POINTS - 1)) for i in range(POINTS)]
                best = [best[i] for i in at]
        return [policies for _, _, policies in best]

    def saves(self, policies: Policies) -> int:
        return sum(b.saves(p) for b, p in zip(self.blocks, policies, strict=True))

    def costs(self, policies: Policies) -> float:
        return sum(b.costs(p, self.transfer) for b, p in zip(self.blocks, policies, strict=True))

    def fits(self, policies: Policies) -> bool:
        if policies not in self.found:
            self.found[policies] = self.program.account(
                under(self.objective, self.blocks, policies)
            )
        return self.found[policies].bytes <= self.budget

    def told(self, best: Policies, plain: Policies) -> Within:
        base, account = self.found[plain].work, self.found[best]
        each = zip(self.blocks, best, strict=True)
        chosen = [Chosen(b.path, b.copies, p, b.kept, b.work / base) for b, p in each]
        moved = sum(
            p.offload * b.kept * self.transfer for b, p in zip(self.blocks, best, strict=True)
        )
        return Within(
            under(self.objective, self.blocks, best),
            tuple(chosen),
            account.bytes,
            (account.work + moved) / base,
            self.budget,
            len(self.found),
        )
