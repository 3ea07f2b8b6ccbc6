"""What rewrites keep, where they keep it, and what they tell."""

import chex
import jax
import jax.numpy as jnp
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import funprop as fp
from funprop.inspect.visits import noting, visits
from funprop.trees import nbytes
from tests.cases import tied
from tests.test_bad_input import raises

KEY = jax.random.key(0)
X = jax.random.normal(KEY, (6, 5))


def block():
    return fp.serial(fp.residual(fp.serial(fp.dense(5), fp.gelu(), fp.dense(5))), fp.tanh())


def gradient(layer, params, x=X, key=None):
    y, residuals = layer.forward(params, x, key)
    return layer.backward(params, residuals, y)


# ------------------------------------------------------------------------------------ remat


def test_kept_parts_are_not_run_again():
    """Counted in the trace of backward: erf is gelu's alone, tanh that of the last layer."""
    params = block().init(KEY, X)

    def again(keep, inside=lambda layer: layer):
        layer = fp.remat(inside(block()), keep=keep)
        _, residuals = layer.forward(params, X)
        jaxpr = str(jax.make_jaxpr(layer.backward)(params, residuals, X))
        return jaxpr.count(" erfc "), jaxpr.count(" tanh ")

    once = again("*/gelu")  # gelu's own backward has one erfc
    assert again(None) == (once[0] + 1, 1)
    assert again("tanh") == (once[0] + 1, 0)
    assert once == (1, 1)
    # Through another one, which keeps nothing itself, or has what it keeps in the kept part.
    assert again("*/gelu", fp.remat) == (1, 2)
    assert again("*", lambda layer: fp.remat(layer, keep="*/gelu")) == (1, 0)


@pytest.mark.parametrize("keep", ["residual", "*/dense_0", "*/gelu", "*"])
@pytest.mark.parametrize(
    "inside",
    [
        lambda layer: layer,
        fp.remat,
        lambda layer: fp.remat(layer, keep="*/gelu"),
        lambda layer: fp.remat(layer, keep=("residual", "tanh")),
        fp.offload,
    ],
    ids=["plain", "remat", "a part kept", "all kept", "offload"],
)
def test_keeping_changes_no_gradient(keep, inside):
    """Of a block, and of all blocks at once, whatever is done inside."""
    params = fp.repeat(block(), 3).init(KEY, X)
    want = gradient(fp.repeat(block(), 3), params)
    each = fp.repeat(fp.remat(inside(block()), keep=keep), 3)
    whole = fp.remat(fp.repeat(inside(block()), 3), keep=keep)
    for layer in (each, whole):
        chex.assert_trees_all_close(gradient(layer, params), want, rtol=1e-6, atol=1e-6)


def test_what_is_recorded_is_found_once_and_in_order():
    """Inside what is kept, between, and through another `remat` that keeps it too."""
    tapped = fp.tap(block(), ("residual", "*/dense_1", "tanh"), forward=norm)
    params = tapped.init(KEY, X)
    want = fp.recorded(tapped.forward(params, X)[1])
    for inner in (None, "*/dense_1", "tanh"):
        for outer in (None, "residual", "*/gelu"):
            layer = fp.remat(fp.remat(tapped, keep=inner), keep=outer)
            got = fp.recorded(layer.forward(params, X)[1])
            chex.assert_trees_all_close(jax.tree.leaves(got), jax.tree.leaves(want))
            chex.assert_trees_all_close(
                gradient(layer, params), gradient(tapped, params), rtol=1e-6, atol=1e-6
            )


def test_what_is_kept_lies_between_nothing_and_everything():
    sizes = []
    for layer in (fp.remat(block()), fp.remat(block(), keep="tanh"), block()):
        params = layer.init(KEY, X)
        sizes.append(nbytes(jax.eval_shape(layer.forward, params, X)[1]))
    assert sizes == [X.nbytes, 3 * X.nbytes, 4 * X.nbytes]


def test_kept_parts_survive_other_rewrites_by_their_place():
    model = fp.remat(block(), keep="*/gelu")
    renamed = fp.map_layers(lambda leaf: fp.named("other", fp.autodiff(leaf)), model)
    params = model.init(KEY, X)
    chex.assert_trees_all_close(
        gradient(renamed, params), gradient(model, params), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize(
    "kept", [fp.remat(block(), keep="*/gelu"), fp.remat(block(), keep="*")], ids=["part", "all"]
)
def test_every_part_around_in_and_beside_a_kept_one_is_visited_in_its_place(kept):
    params = block().init(KEY, X)
    paths, places, outputs = [], [], []
    for model in (block(), kept):
        paths.append([visit.path for visit in visits(model, params, X)])
        places.append([])
        noting(model, lambda place, *call: places[-1].append(place)).forward(params, X)
        outputs.append({(row.path, row.output, row.params) for row in fp.summary(model, X).rows})
    assert paths[0] == paths[1] and places[0] == places[1]
    assert outputs[0] < outputs[1]  # what `remat` keeps itself is told too


def test_autodiff_keeps_what_a_checkpoint_policy_lets_it():
    inside = fp.serial(fp.dense(5), fp.gelu(), fp.dense(5))
    params = inside.init(KEY, X)
    nothing, dots, all_ = (
        fp.autodiff(inside, policy)
        for policy in (
            jax.checkpoint_policies.nothing_saveable,
            jax.checkpoint_policies.dots_saveable,
            None,
        )
    )
    sizes = [nbytes(layer.forward(params, X)[1]) for layer in (nothing, dots, all_)]
    assert X.nbytes == sizes[0] < sizes[1] < sizes[2]
    for layer in (nothing, dots):
        chex.assert_trees_all_close(
            gradient(layer, params), gradient(inside, params), rtol=1e-5, atol=1e-6
        )


# ---------------------------------------------------------------------------------- offload


def test_residuals_are_in_host_memory_and_records_are_not():
    layer = fp.offload(fp.tap(block(), "tanh", forward=jnp.sum))
    params = layer.init(KEY, X)
    residuals = jax.jit(layer.forward)(params, X)[1]
    tapped = residuals[1]
    assert tapped[0].sharding.memory_kind == "pinned_host"
    assert tapped[1].value.sharding.memory_kind != "pinned_host"
    chex.assert_trees_all_equal(gradient(layer, params), gradient(block(), params))


def test_a_device_without_host_memory_is_refused(monkeypatch):
    device = jax.local_devices()[0]
    monkeypatch.setattr(type(device), "addressable_memories", lambda self: [])
    raises(
        ValueError,
        "offload needs a device with pinned_host memory, got cpu with []",
        lambda: fp.offload(fp.tanh()).forward((), X),
    )
    # Of what is traced the device is not known: it may be compiled for another.
    traced = jax.jit(fp.offload(fp.tanh()).forward).trace((), X)
    assert "pinned_host" in traced.lower(lowering_platforms=("cuda",)).as_text()


# -------------------------------------------------------------------------------------- tap


def norm(x):
    return (x * x).sum()


@settings(max_examples=5, deadline=None)
@given(rows=st.integers(1, 4), width=st.integers(1, 4), n=st.integers(1, 3))
def test_tap_sees_each_copy_under_jit_and_changes_nothing(rows, width, n):
    x = jnp.ones((rows, width))
    inside = fp.serial(fp.dense(width), fp.tanh())
    plain = fp.serial(fp.repeat(inside, n), fp.dense(1))
    tapped = fp.tap(plain, "repeat/tanh", forward=norm, backward=norm)
    params = plain.init(KEY, x)
    objective = [fp.objective(model, fp.mean_squared()) for model in (tapped, plain)]
    batch = x, jnp.zeros((rows, 1))
    got, want = (jax.jit(fp.backprop(o))(params, batch) for o in objective)
    grads, seen = fp.untap(got.grads)
    chex.assert_trees_all_close((grads, got.loss), (want.grads, want.loss), rtol=1e-6)
    (cotangents,) = jax.tree.leaves(seen)
    (outputs,) = jax.tree.leaves(got.recorded)
    assert cotangents.shape == outputs.shape == (n,)
    # The last copy's output is what the head was given, and its cotangent what the head gave back.
    h, _ = plain.children[0].forward(params.repeat, x)
    y, head = plain.children[1].forward(params.dense, h)
    dh = plain.children[1].backward(params.dense, head, 2 * y)[1]
    chex.assert_trees_all_close(outputs[-1], norm(h), rtol=1e-5, atol=1e-12)
    chex.assert_trees_all_close(cotangents[-1], norm(dh), rtol=1e-5, atol=1e-12)


def test_what_is_tapped_trains_as_ever_and_in_16_bits_its_cotangents_are_seen_too():
    batch = jnp.ones((2, 3)), jnp.zeros((2, 1))
    plain = fp.serial(fp.dense(3), fp.tanh(), fp.dense(1))
    tapped = fp.tap(plain, "dense*", backward=norm)
    of = {m: fp.objective(m, fp.mean_squared()) for m in (plain, tapped)}
    params = of[plain].init(KEY, batch)
    trains = [fp.step(fp.backprop(of[m]), optax.sgd(0.1)) for m in (plain, tapped)]
    chex.assert_trees_all_equal(*(t.update(t.init(params, None), batch)[0] for t in trains))
    low = fp.objective(fp.cast(tapped, jnp.bfloat16), fp.mean_squared())
    for grad_fn in (fp.backprop(low), fp.mixed_precision(fp.backprop(of[tapped]))):
        grads, seen = fp.untap(grad_fn(params, batch).grads)
        assert len(jax.tree.leaves(seen)) == 2
        assert {leaf.dtype for leaf in jax.tree.leaves(grads)} == {jnp.dtype("float32")}


def test_tap_below_shared_params_sees_outputs_and_refuses_cotangents():
    model = fp.serial(tied())
    seen = fp.tap(model, "*/tanh", forward=norm)
    params = seen.init(KEY, X)
    told = fp.backprop(fp.objective(seen, fp.mean_squared()))(params, (X, X)).recorded
    assert len(jax.tree.leaves(told)) == 1
    chex.assert_trees_all_equal(gradient(seen, params), gradient(model, params))
    raises(
        ValueError,
        "a part whose params are made of others cannot be chosen, got '*/tanh'",
        lambda: fp.tap(model, "*/tanh", backward=norm),
    )
    raises(
        ValueError,
        "a part whose params are made of others cannot be chosen, got '*/tanh'",
        lambda: fp.remat(model, keep="*/tanh"),
    )


def test_bad_choices_are_refused():
    raises(
        ValueError,
        "the pattern 'tahn' must match a name, the nearest are tanh",
        lambda: fp.remat(block(), keep="tahn"),
    )
    raises(
        ValueError,
        "tap needs a function to watch with, forward or backward, got none",
        lambda: fp.tap(block(), "tanh"),
    )
