"""A forward and a backward pass of any library, judged; and `check_grads` in the place of JAX's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import funprop as fp
from funprop.testing import check_grads
from tests.test_verify import rule

X = jnp.float32([[0.9, -0.3, 0.2, 1.1], [0.1, 0.5, -1.2, 0.4]])
GAMMA = jnp.float32([1.0, 0.5, -0.3, 2.0])


def parts(x):
    centred = x - x.mean(-1, keepdims=True)
    inverse = 1 / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
    return centred * inverse, inverse


def norm(x, gamma):
    return parts(x)[0] * gamma


def norm_backward(x, gamma, dy):
    (n, inverse), g = parts(x), dy * gamma
    mean = lambda v: v.mean(-1, keepdims=True)
    return inverse * (g - mean(g) - n * mean(g * n)), (dy * n).sum(0)


def test_a_pair_in_numpy():
    assert fp.verify(fp.from_pair(norm, norm_backward), X, GAMMA).ok

    def wrong(x, gamma, dy):
        dx, dgamma = norm_backward(x, gamma, dy)
        return dx, -dgamma

    (found,) = fp.verify(fp.from_pair(norm, wrong), X, GAMMA).findings
    assert (found.path, found.story) == ("gamma", "sign")


def test_several_outputs_integers_and_inputs_without_a_gradient():
    def forward(table, index, scale):
        rows = table[index]
        return rows * scale, rows.sum()

    def backward(table, index, scale, dy):
        dtable = np.zeros_like(table)
        np.add.at(dtable, index, dy[0] * scale + dy[1])
        return dtable, None, (dy[0] * table[index]).sum()

    args = X, jnp.int32([0, 1, 1]), jnp.float32(0.7)
    assert fp.verify(fp.from_pair(forward, backward), *args).ok

    def overwritten(table, index, scale, dy):
        dtable = np.zeros_like(table)
        dtable[index] = dy[0] * scale + dy[1]
        return dtable, None, None

    report = fp.verify(fp.from_pair(forward, overwritten), *args)
    assert {f.path for f in report.findings} == {"table", "scale"}


def test_the_function_is_one_of_jax():
    function = jax.jit(fp.from_pair(lambda x: x * x, lambda x, dy: 2 * x * dy))
    np.testing.assert_allclose(jax.grad(lambda x: function(x).sum())(X), 2 * X)
    np.testing.assert_allclose(jax.vmap(function)(X), X * X)


def test_what_does_not_fit_is_told():
    with pytest.raises(TypeError, match=r"^forward must be callable, got int$"):
        fp.from_pair(3)  # pyright: ignore[reportArgumentType]
    (found,) = fp.verify(fp.from_pair(norm, lambda x, gamma, dy: dy), X, GAMMA).findings
    assert found.problem == "backward fails: TypeError: backward must give 2 gradients, got 1"
    (found,) = fp.verify(fp.from_pair(np.sin, lambda x, dy: dy.sum()), X).findings
    assert found.problem.endswith("gradient 0 must have the shape (2, 4), got ()")


def test_a_pair_in_torch():
    torch = pytest.importorskip("torch")

    class Cube(torch.autograd.Function):
        slope = 3

        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x**3

        @staticmethod
        def backward(ctx, dy):
            (x,) = ctx.saved_tensors
            return Cube.slope * x**2 * dy

    assert fp.verify(fp.from_pair(Cube.apply, to=torch.as_tensor), X).ok
    Cube.slope = 2
    (found,) = fp.verify(fp.from_pair(Cube.apply, to=torch.as_tensor), X).findings
    assert found.story == "factor"

    def layer_norm(x, weight):
        return torch.nn.functional.layer_norm(x, (4,), weight)

    assert fp.verify(fp.from_pair(layer_norm, to=torch.as_tensor), X, GAMMA).ok


def test_check_grads_as_jax_has_it():
    check_grads(jnp.tanh, (X,), 2)
    check_grads(lambda x, i: x[i], (X, jnp.int32(1)), order=1, modes=["fwd", "rev"], atol=1.0)

    @jax.custom_jvp
    def square(x):
        return x * x

    square.defjvp(lambda x, dx: (x[0] * x[0], 1.99 * x[0] * dx[0]))
    with pytest.raises(AssertionError, match="gradient is wrong"):
        check_grads(square, (X,), 1, eps=1e-2, rtol=0.5)
    with pytest.raises(ValueError, match="modes must be of 'fwd' and 'rev', got 'both'"):
        check_grads(jnp.sin, (X,), 1, "both")
    with pytest.raises(ValueError, match="order must be at least 1, got 0"):
        check_grads(jnp.sin, (X,), 0)


def test_trees_of_arrays_and_wider_outputs():
    forward = lambda p, n: {"y": p["w"][0] * n, "z": (np.float64(3) * p["w"][1],)}
    right = lambda p, n, dy: ({"w": [dy["y"] * n, 3 * dy["z"][0]], "b": None}, None)
    args = {"w": [X, X + 1], "b": None}, jnp.array([1, 2, 3, 4])
    report = fp.verify(fp.from_pair(forward, right), *args)
    assert report.ok and [c.path for c in report.checks] == ["p/w/0", "p/w/1"], str(report)
    other = fp.from_pair(forward, lambda p, n, dy: ({"v": dy["y"]}, None))
    (found,) = fp.verify(other, *args).findings
    assert "gradient 0 must be a tree like its input" in found.problem


def test_slopes_beyond_both_sides_of_a_kink_of_values():
    x = np.float32([0, 1, -1, 0])

    def absolute(at_zero):
        slope = lambda x: np.where(x == 0, at_zero, np.sign(x))
        return fp.from_pair(np.abs, lambda x, dy: (slope(x) * dy).astype(dy.dtype))

    assert fp.verify(absolute(0.5), x).ok
    (found,) = fp.verify(absolute(3.0), x).findings
    assert found.worst in ((0,), (3,))


def test_in_16_bits_the_mathematics_is_judged_in_float64():
    square = lambda factor: fp.from_pair(lambda x: x * x, lambda x, dy: factor * x * dy)
    x = jnp.asarray(X, jnp.bfloat16)
    assert fp.verify(square(2), x).ok
    (found,) = fp.verify(square(2.2), x).findings
    assert found.story == "factor"


def test_code_that_raises_is_told_in_one_sentence(capfd):
    def root(x):
        if (x < 0).any():
            raise ValueError("negative!")
        return np.sqrt(x)

    def refused(x):
        return jax.pure_callback(root, jax.typeof(x), x, vmap_method="sequential")

    def drawn(x):
        return jax.pure_callback(
            lambda x: np.random.permutation(x), jax.typeof(x), x, vmap_method="sequential"
        )

    for forward, told in ((refused, "negative!"), (drawn, "not deterministic")):
        function = rule(forward, lambda args, y, dy: (dy,))
        with pytest.raises(ValueError, match=told) as raised:
            fp.verify(function, -jnp.arange(1.0, 7.0))
        assert str(raised.value).count("\n") == 0
    report = fp.verify_rules(lambda x: rule(refused, lambda args, y, dy: (dy,))(x), -jnp.ones(3))
    assert "was not judged" in str(report) and "0 judged" in str(report)
    assert "Traceback" not in capfd.readouterr().err
