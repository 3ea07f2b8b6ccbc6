"""What each device of a pipeline runs: any schedule, as a loop over time."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from funprop.layer import Layer, recorded
from funprop.params.tapped import untap
from funprop.pipelining.buffers import Room
from funprop.pipelining.cut import Cut
from funprop.pipelining.schedule import KINDS, Schedule, between
from funprop.rewrites.halves import backward_inputs, backward_params
from funprop.transforms.microbatch import cast_like, summed_in

IDLE, F, B, W = range(1 + len(KINDS))


class Sums(NamedTuple):
    """What is added up over microbatches on one device.

    Attributes:
      blocks: the gradient of this stage's blocks.
      others: the gradient of the other params, where this stage computes a part of it.
      loss: a `Sum`; zero but on the last stage.
      stem, inside, head: what was recorded before, in and behind the blocks.
    """

    blocks: Any
    others: Any
    loss: Any
    stem: Any
    inside: Any
    head: Any


class Rooms(NamedTuple):
    """Where a device keeps what it will need.

    Attributes:
      forward: inputs of the blocks that came and wait for `F`.
      backward: what waits for `B`: cotangents that came; on the last stage, outputs of its own.
      residuals: from `F` to `W`.
      kept: what `B` left for `W`.
    """

    forward: Room
    backward: Room
    residuals: Room
    kept: Room


class State(NamedTuple):
    """What a device carries from one unit of time to the next: the buffers of each of its `Rooms`,
    and the sums so far."""

    forward: Any
    backward: Any
    residuals: Any
    kept: Any
    sums: Sums


@dataclasses.dataclass(frozen=True)
class Device:
    """One device's part of a gradient. Made while it is traced: all arrays are its own.

    Attributes:
      cut: the objective.
      schedule: what is done when.
      axis: of the mesh, along which the stages are.
      own: the blocks of one stage, as a layer.
      params: all, but of the blocks only its own.
      batch: with the microbatches along the second axis.
      keys: one a microbatch, or `None`.
      dloss: the cotangent of the loss, or `None`.
    """

    cut: Cut
    schedule: Schedule
    axis: str
    own: Layer
    params: Any
    batch: Any
    keys: Any
    dloss: Any

    # ------------------------------------------------------------------------ parts of the model

    def part(self, i: Any) -> tuple[Any, Any]:
        """A microbatch and its key."""
        take = jax.lax.dynamic_index_in_dim
        rows = jax.tree.map(lambda leaf: take(leaf, i, axis=1, keepdims=False), self.batch)
        return rows, None if self.keys is None else self.keys[i]

    def stem(self, i: Any) -> Any:
        return self.cut.stem(self.params, *self.part(i))

    def blocks_forward(self, x: Any, i: Any) -> tuple[Any, Any]:
        """As `repeat` runs them; the keys are those of these blocks among all."""
        (block,) = self.own.children
        keys = self.cut.block_keys(self.params, *self.part(i))
        if keys is not None:
            n = self.own.copies or 1
            keys = jax.lax.dynamic_slice_in_dim(keys, jax.lax.axis_index(self.axis) * n, n)

        def one(x: Any, copy: Any) -> tuple[Any, Any]:
            return block.forward(copy[0], x, copy[1])

        y, kept = jax.lax.scan(one, x, (self.cut.part(self.params), keys), length=self.own.copies)
        return y, (kept,)

    def inputs(self, residuals: Any, dy: Any) -> tuple[Any, Any]:
        return backward_inputs(self.own)(self.cut.part(self.params), residuals, dy)

    def of_params(self, residuals: Any, kept: Any) -> Any:
        return backward_params(self.own)(self.cut.part(self.params), residuals, kept)

    # -------------------------------------------------------------------------------- the schedule

    def sums(self, records: int, data: tuple[str, ...]) -> Sums:
        """The gradient, of this device's blocks and of all else, summed over devices.

        Args:
          records: how many arrays the whole objective records.
          data: the axes of the mesh that split the batch.
        """
        first = jnp.zeros((), jnp.int32)
        x = jax.eval_shape(self.stem, first)
        residuals = jax.eval_shape(self.blocks_forward, x, first)[1]
        kept = jax.eval_shape(self.inputs, residuals, x)[1]
        blocks = jax.eval_shape(self.of_params, residuals, kept)
        head = jax.eval_shape(
            lambda y: self.cut.head(self.params, *self.part(first), y, self.dloss), x
        )
        # Records stand in the order of the tree: those before the blocks come first.
        inside = jax.tree.leaves(recorded(residuals))
        before = records - len(inside) - len(head.records)
        stem = jax.eval_shape(
            lambda dx: self.cut.stem_backward(self.params, *self.part(first), dx, before)[0], x
        )
        specs, _ = untap(Sums(blocks, head.grads, head.loss, stem, inside, head.records))
        sizes = _sizes(self.schedule)
        rooms = Rooms(
            Room(x, sizes["forward"]),
            Room(x, sizes["backward"]),
            Room(residuals, sizes["residuals"]),
            Room(kept, sizes["kept"]),
        )
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, summed_in(leaf.dtype)), specs)
        empty = {name: room.empty() for name, room in rooms._asdict().items()}
        state = State(**empty, sums=zeros)
        sums = self._loop(rooms, state, x).sums
        own = {"blocks": sums.blocks, "inside": sums.inside}
        rest = {name: part for name, part in sums._asdict().items() if name not in own}
        summed = jax.lax.psum(own, data) | jax.lax.psum(rest, (self.axis, *data))
        return cast_like(Sums(**summed), specs)

    def _loop(self, rooms: Rooms, state: State, x: Any) -> State:
        stages, stage = self.schedule.stages, jax.lax.axis_index(self.axis)
        nothing = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), x)
        last = stage == stages - 1

        def forward(carry: Any, i: Any) -> Any:
            state, _ = carry
            came = rooms.forward.read
            x = jax.lax.cond(stage == 0, lambda: self.stem(i), lambda: came(state.forward, i))
            y, residuals = self.blocks_forward(x, i)
            inside = _add(state.sums.inside, jax.tree.leaves(recorded(residuals)))
            waits = _when(last, lambda waits: rooms.backward.stored(waits, i, y), state.backward)
            state = state._replace(
                backward=waits,
                residuals=rooms.residuals.stored(state.residuals, i, residuals),
                sums=state.sums._replace(inside=inside),
            )
            return state, y

        def backward(carry: Any, i: Any) -> Any:
            state, _ = carry

            def with_loss(carry: Any) -> Any:
                sums, y = carry
                found = self.cut.head(self.params, *self.part(i), y, self.dloss)
                sums = sums._replace(
                    loss=_add(sums.loss, found.loss),
                    head=_add(sums.head, found.records),
                    others=_add(sums.others, found.grads),
                )
                return sums, found.dy

            came = rooms.backward.read(state.backward, i)
            sums, dy = _when(last, with_loss, (state.sums, came))
            dx, kept = self.inputs(rooms.residuals.read(state.residuals, i), dy)

            def with_stem(sums: Sums) -> Sums:
                of = self.params, *self.part(i), dx, len(sums.stem)
                records, grads = self.cut.stem_backward(*of)
                return sums._replace(stem=_add(sums.stem, records), others=_add(sums.others, grads))

            sums = _when(stage == 0, with_stem, sums)
            return state._replace(kept=rooms.kept.stored(state.kept, i, kept), sums=sums), dx

        def params(state: State, i: Any) -> State:
            residuals = rooms.residuals.read(state.residuals, i)
            dparams = self.of_params(residuals, rooms.kept.read(state.kept, i))
            return state._replace(sums=state.sums._replace(blocks=_add(state.sums.blocks, dparams)))

        def unit(state: State, slots: Any) -> tuple[State, None]:
            kinds, which = slots
            before, behind = jnp.maximum(stage - 1, 0), jnp.minimum(stage + 1, stages - 1)
            i = which[stage]
            state, y = _when(kinds[stage] == F, lambda c: forward(c, i), (state, nothing))
            state, dx = _when(kinds[stage] == B, lambda c: backward(c, i), (state, nothing))
            state = _when(kinds[stage] == W, lambda state: params(state, i), state)
            y = jax.lax.ppermute(y, self.axis, [(s, s + 1) for s in range(stages - 1)])
            dx = jax.lax.ppermute(dx, self.axis, [(s + 1, s) for s in range(stages - 1)])
            came = _when(
                (stage > 0) & (kinds[before] == F),
                lambda waits: rooms.forward.stored(waits, which[before], y),
                state.forward,
            )
            came_back = _when(
                ~last & (kinds[behind] == B),
                lambda waits: rooms.backward.stored(waits, which[behind], dx),
                state.backward,
            )
            return state._replace(forward=came, backward=came_back), None

        state, _ = jax.lax.scan(unit, state, _columns(self.schedule))
        return state


def _when(holds: Any, function: Callable[[Any], Any], carry: Any) -> Any:
    """`function(carry)` where `holds`, `carry` where not.

    A loop of one turn or none, and no `lax.cond`: XLA copies what a branch hands on unchanged, all
    buffers in every unit of time, and what a loop carries it writes where it is.
    """

    def once(state: Any) -> Any:
        return jnp.zeros((), bool), function(state[1])

    return jax.lax.while_loop(lambda state: state[0], once, (jnp.asarray(holds), carry))[1]


def _add(sums: Any, more: Any) -> Any:
    """Without what `tap` sees of cotangents, for which there is no place."""
    plain, _ = untap(more)
    return jax.tree.map(lambda total, found: total + found.astype(total.dtype), sums, plain)


def _columns(schedule: Schedule) -> tuple[Any, ...]:
    """The table as two arrays of integers, `[time, stage]`: the kind, and which microbatch."""
    kinds = [
        [1 + KINDS.index(slot.kind) if slot else IDLE for slot in row] for row in schedule.rows
    ]
    which = [[slot.microbatch if slot else 0 for slot in row] for row in schedule.rows]
    return tuple(jnp.asarray(np.array(table, np.int32).T) for table in (kinds, which))


def _sizes(schedule: Schedule) -> dict[str, int]:
    """For how many microbatches each buffer has room: what the stage that needs most does; all
    devices run one program."""
    rows = schedule.rows
    pairs = list(itertools.pairwise(rows))
    return {
        "forward": max((between(a, b, "F", "F") for a, b in pairs), default=1),
        "backward": max(
            [between(rows[-1], rows[-1], "F", "B"), *(between(b, a, "B", "B") for a, b in pairs)]
        ),
        "residuals": max(schedule.kept),
        "kept": max(between(row, row, "B", "W") for row in rows),
    }
