"""Schedules of pipelines hold together and are as short as the field says; what does not fit is
refused. Gradients over devices: tests/eight_devices_pipeline.py."""

import re
import xml.etree.ElementTree as ElementTree

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import funprop as fp
from funprop.pipelining.cut import cut
from tests.test_bad_input import raises

MAKERS = (fp.gpipe, fp.one_f_one_b, fp.zero_bubble)
sizes = {"stages": st.integers(1, 9), "microbatches": st.integers(1, 24)}


@settings(max_examples=60, deadline=None)
@given(make=st.sampled_from(MAKERS), **sizes)
def test_every_slot_is_there_once_and_after_what_it_needs(make, stages, microbatches):
    """By a plain account of its own: `Schedule` checks, but who checks that?"""
    plan = make(stages, microbatches)
    times = {}
    for stage, row in enumerate(plan.rows):
        for time, slot in enumerate(row):
            if slot is not None:
                assert times.setdefault((*slot, stage), time) == time
    assert len(times) == 3 * stages * microbatches
    for (kind, i, stage), time in times.items():
        if kind == "F" and stage:
            assert times["F", i, stage - 1] < time
        if kind == "B":
            assert times["F", i, stage] < time
            if stage < stages - 1:
                # A backward pass that is whole is awaited whole.
                awaited = "B" if make is fp.zero_bubble else "W"
                assert times[awaited, i, stage + 1] < time
        if kind == "W":
            assert times["B", i, stage] < time


@settings(max_examples=60, deadline=None)
@given(**sizes)
def test_idle_units_and_what_is_kept(stages, microbatches):
    """Qi et al., arXiv:2401.10241, tables 1 and 2, for slots of equal length."""
    whole, zero = fp.one_f_one_b(stages, microbatches), fp.zero_bubble(stages, microbatches)
    assert set(whole.idle) == set(fp.gpipe(stages, microbatches).idle) == {3 * (stages - 1)}
    fewer = max(stages - microbatches, 0)
    assert set(zero.idle) == {stages - 1 + (fewer if stages > 1 else 0)}
    if microbatches >= stages:
        assert 2 * sum(zero.idle) <= sum(whole.idle)
    assert max(zero.kept) == max(whole.kept) == min(stages, microbatches)
    assert whole.kept == tuple(min(stages - s, microbatches) for s in range(stages))
    assert set(fp.gpipe(stages, microbatches).kept) == {microbatches}
    assert zero.bubble == sum(zero.idle) / (stages * zero.length)


GOOD = fp.zero_bubble(2, 2).rows


def changed(stage, time, slot):
    rows = [list(row) for row in GOOD]
    rows[stage][time] = slot
    return rows


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ([], "rows must be of one length, got []"),
        ([[("F", 0)], []], "rows must be of one length, got [1, 0]"),
        ([[None], [None]], "rows must have a slot, got none"),
        ([[("F", -1)]], "rows must have microbatches from 0, got ('F', -1)"),
        (
            [[("F", 10**9)]],  # no list is made of so many
            "rows must have F of each microbatch once and in order, got [1000000000]",
        ),
        (None, "rows must be a table"),
        ([["F0"]], "rows must be a table"),
        ([[("F", "0")]], "rows must be a table"),
        (changed(0, 0, None), "rows must have F of each microbatch once and in order, got [1] for"),
        ([[("F", 0), ("X", 0)]], "rows must have B of each microbatch"),
        ([[("F", 0), ("B", 0), ("W", 0), ("X", 0)]], "rows must be made of F, B and W, got 'X'"),
        ([[("F", 0), ("W", 0), ("B", 0)]], "rows must have W0 of stage 0 after B0 of stage 0"),
        ([[("B", 0), ("F", 0), ("W", 0)]], "rows must have B0 of stage 0 after F0 of stage 0"),
        (
            [[("F", 0), ("B", 0), ("W", 0)], [("F", 0), ("B", 0), ("W", 0)]],
            "rows must have B0 of stage 0 after B0 of stage 1, got times 1 and 1",
        ),
        (
            [[("F", 1), ("F", 0), *[(k, i) for k in "BW" for i in (0, 1)]]],
            "rows must have F of each microbatch once and in order, got [1, 0] for 2 in stage 0",
        ),
    ],
)
def test_a_table_that_does_not_hold_together_is_refused(rows, told):
    with pytest.raises((ValueError, TypeError), match=re.escape(told)):
        fp.Schedule(rows)
    raises(TypeError, "name must be a string, got 3", lambda: fp.Schedule(GOOD, 3))


def test_the_picture_has_a_cell_for_each_slot():
    plans = fp.one_f_one_b(3, 4), fp.zero_bubble(3, 4)
    root = ElementTree.fromstring(fp.schedule_picture(*plans))
    fills = [cell.get("fill") for cell in root.iter("{http://www.w3.org/2000/svg}rect")]
    counts = [fills.count(colour) - 1 for colour in ("#0072b2", "#d55e00", "#009e73", "#e4e4e4")]
    assert counts == [24, 24, 24, sum(map(sum, (plan.idle for plan in plans)))]  # one in the legend


# ---------------------------------------------------------------------------------- what is refused

BLOCK = fp.residual(fp.dense(3))
MESH = fp.make_mesh(pipe=1)
X = np.ones((4, 3), np.float32)


def of(model):
    return fp.objective(model, fp.mean_squared())


DEEP = of(fp.repeat(BLOCK, 2))


def called(model, n=2, batch=(X, X), key=None):
    objective = of(model)
    params = objective.init(jax.random.key(0), (X, X))
    return fp.pipeline(objective, MESH, fp.zero_bubble(1, n))(params, batch, key)


def around():
    return fp.serial(fp.dense(3), fp.residual(fp.serial(fp.dense(3), fp.repeat(BLOCK, 2))))


def shared():
    return fp.reparam(fp.repeat(BLOCK, 2), expand=lambda params: params)


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (
            lambda: fp.pipeline(of(fp.dense(3)), MESH, fp.gpipe(1, 2)),
            "objective must have one repeat, whose blocks are the stages, got none",
        ),
        (
            lambda: fp.pipeline(
                of(fp.serial(fp.repeat(BLOCK, 2), fp.repeat(BLOCK, 2))), MESH, fp.gpipe(1, 2)
            ),
            "objective must have one repeat, whose blocks are the stages, got dense_0 (repeat), "
            "dense_1 (repeat)",
        ),
        (
            lambda: fp.pipeline(
                of(fp.reversible(fp.dense(2), fp.dense(2), copies=4)), MESH, fp.gpipe(1, 2)
            ),
            "objective must have its blocks in a repeat, got reversible",
        ),
        (
            lambda: fp.pipeline(DEEP, MESH, fp.gpipe(2, 2)),
            "schedule must have as many stages as devices along 'pipe', 1, got 2",
        ),
        (
            lambda: fp.pipeline(DEEP, fp.make_mesh(data=1), fp.gpipe(1, 2)),
            "axis must be one of the mesh's, ('data',), got 'pipe'",
        ),
        (
            lambda: fp.pipeline(of(fp.remat(fp.repeat(BLOCK, 2))), MESH, fp.gpipe(1, 2)),
            "objective must have its blocks rewritten one by one, repeat(remat(block)), not the "
            "repeat as a whole",
        ),
        (
            lambda: fp.pipeline(of(shared()), MESH, fp.gpipe(1, 2)),
            "objective must not share the params of its blocks, got repeat",
        ),
        (lambda: cut(of(fp.repeat(BLOCK, 6))).share(4), "stages must divide the 6 blocks, got 4"),
        (
            lambda: called(fp.repeat(BLOCK, 2), 3),
            "batch must divide by 3 microbatches, got 4 examples",
        ),
        (
            lambda: called(around()),
            "objective must have nothing around its repeat, got an output of a part before it "
            "that a part behind it needs",
        ),
        (
            lambda: called(fp.serial(fp.batch_norm(), fp.repeat(BLOCK, 2)), key=jax.random.key(0)),
            "batch_norm mixes the examples of a batch in training, which pipeline takes apart: "
            "use group_norm or layer_norm, or shard, which is exact",
        ),
        (
            lambda: fp.data_parallel(fp.pipeline(DEEP, MESH, fp.gpipe(1, 2)), fp.make_mesh(data=1)),
            "data_parallel must not be made of pipeline(grad_fn), which is over devices already",
        ),
    ],
)
def test_what_does_not_fit_is_refused_in_a_sentence(call, told):
    raises(ValueError, told, call)


def test_blocks_that_hand_on_integers():
    """A cotangent of the same shape is what comes back."""
    same = fp.from_function(lambda key, x: (), lambda params, x: x, "same")
    model = fp.serial(fp.repeat(same, 2), fp.embedding(4, 3))
    objective, batch = of(model), (np.zeros(4, np.int32), X)
    params = objective.init(jax.random.key(0), batch)
    raises(
        TypeError,
        "blocks must hand on floating numbers, got int32[4]",
        lambda: fp.pipeline(objective, MESH, fp.gpipe(1, 2))(params, batch),
    )


def test_what_is_seen_of_cotangents_is_left_out():
    whole, watched = (
        of(fp.serial(see(fp.dense(3)), fp.repeat(see(BLOCK), 2)))
        for see in (lambda layer: layer, lambda layer: fp.tap(layer, backward=jnp.sum))
    )
    params = whole.init(jax.random.key(0), (X, X))
    got = fp.pipeline(watched, MESH, fp.gpipe(1, 2))(params, (X, X))
    chex.assert_trees_all_close(got, fp.backprop(whole)(params, (X, X)), rtol=1e-5)


def test_one_device_is_a_pipeline_too():
    """In the same process as all other tests, a table of one's own, and within `microbatch`."""
    objective = of(fp.serial(fp.dense(3), fp.repeat(BLOCK, 2)))
    params = objective.init(jax.random.key(0), (X, X))
    rows = [[("F", 0), None, ("B", 0), ("F", 1), ("W", 0), ("B", 1), None, ("W", 1)]]
    grad_fn = fp.pipeline(objective, MESH, fp.Schedule(rows, "<my own>"))
    assert repr(grad_fn) == "pipeline(grad_fn)"
    assert "&lt;my own>" in fp.schedule_picture(fp.Schedule(rows, "<my own>")).replace("&gt;", ">")
    got, want = (
        jax.jit(each)(params, (X, X))
        for each in (fp.microbatch(grad_fn, 2), fp.backprop(objective))
    )
    chex.assert_trees_all_close(got, want, rtol=1e-5)
    raises(
        TypeError,
        "pipeline has no reverse mode, only jax.jvp: take jax.grad of microbatch(backprop("
        "objective), 2), whose sums are the same",
        lambda: jax.grad(lambda params: grad_fn(params, (X, X)).loss)(params),
    )
