"""Calls of `jax.numpy`, `jax.numpy.linalg` and `jax.numpy.fft`."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from tests.benchmarks.others.call import (
    POINTS,
    Calls,
    Table,
    array,
    at,
    by,
    every,
    excuse,
    normal,
    positive,
    unit,
)
from tests.benchmarks.others.names import functions

X, Y, P, Q, U = normal(3, 4), normal(3, 4), positive(3, 4), positive(3, 4), unit(3, 4)
V, W, A, B = normal(5), normal(5), normal(4, 4), normal(4, 3)
SPD = A @ A.T + np.eye(4, dtype=np.float32)
INTS, MORE = np.array([3, 1, 2]), np.array([1, 2, 4])
BITS = np.array([[1, 0, 1]], np.uint8)
INF = float("inf")

CALLS: Calls = {
    **every(
        "abs absolute negative positive sign square exp exp2 expm1 sin cos tan sinh cosh tanh "
        "arctan atan arcsinh asinh cbrt ceil floor trunc rint round around fabs deg2rad degrees "
        "rad2deg radians sinc nan_to_num conj conjugate real imag angle isfinite isinf isnan "
        "isneginf isposinf isreal isrealobj iscomplex iscomplexobj signbit spacing frexp modf copy "
        "i0 unwrap asarray array zeros_like ones_like empty_like",
        at(POINTS[1:-1]),
        at(X),
    ),
    **every("log log10 log2 log1p sqrt reciprocal", at(P)),
    **every("arccos acos arcsin asin arctanh atanh", at(U), at(array(-0.5, 0, 0.5))),
    **every("arccosh acosh", at(1.1 + P)),
    **every(
        "add subtract multiply divide true_divide maximum minimum fmax fmin arctan2 atan2 copysign "
        "hypot logaddexp logaddexp2 nextafter fmod mod remainder floor_divide divmod equal greater "
        "greater_equal less less_equal not_equal heaviside isclose allclose array_equal "
        "array_equiv vdot inner outer kron vecdot append",
        at(X, Y),
    ),
    **every(
        "logaddexp logaddexp2",
        at(X, Y),
        at(array(0, 1, -200, 5), array(0, 1, 200, -5)),
        at(array(0, -INF), array(-INF, 0)),
        at(X.astype("bfloat16"), Y.astype("bfloat16")),
    ),
    **every("power pow float_power", at(P, X), at(array(0.5, 1, 2), array(0, 1, 3))),
    **every(
        "sum mean std var max min amax amin prod ptp median nansum nanmean nanstd nanvar nanmax "
        "nanmin nanprod nanmedian any all argmax argmin nanargmax nanargmin count_nonzero average "
        "cumsum cumprod nancumsum nancumprod sort argsort diff ediff1d gradient "
        "trapezoid ravel transpose matrix_transpose squeeze flip fliplr flipud rot90 "
        "atleast_1d atleast_2d atleast_3d diag diagonal diagflat trace tril triu cov corrcoef "
        "shape ndim size",
        at(X),
    ),
    **every("matmul dot", at(X, A)),
    **every("cumulative_sum cumulative_prod", at(V)),
    **every("convolve correlate polymul polyadd polysub polydiv", at(V, W[:3])),
    **every("hanning hamming blackman bartlett", by(lambda f: f(5))),
    **every(
        "gcd lcm bitwise_and bitwise_or bitwise_xor bitwise_left_shift bitwise_right_shift "
        "left_shift right_shift",
        at(INTS, MORE),
    ),
    **every("bitwise_not bitwise_invert invert bitwise_count", at(INTS)),
    **every("logical_and logical_or logical_xor", at(X > 0, Y > 0)),
    **every("union1d intersect1d setdiff1d setxor1d", by(lambda f, x: f(x, W, size=9), V)),
    **every("unique unique_values", by(lambda f, x: f(x, size=5), V)),
    **every("unique_all unique_counts unique_inverse", by(lambda f, x: f(x, size=5)[0], V)),
    **every("quantile percentile nanquantile nanpercentile", at(X, 0.3)),
    **every("take choose", by(lambda f, x: f(x, INTS - 1, 0), X)),
    **every("hsplit", at(X, indices_or_sections=2)),
    **every("vsplit", at(X, indices_or_sections=3)),
    **every("split array_split", at(X, indices_or_sections=3)),
    **every("histogram histogram_bin_edges", at(V)),
    "apply_along_axis": [by(lambda f, x: f(jnp.sort, 0, x), X)],
    "apply_over_axes": [by(lambda f, x: f(jnp.sum, x, [0, 1]), X)],
    "arange": [by(lambda f: f(3.0))],
    "argpartition": [at(X, kth=2)],
    "argwhere": [by(lambda f, x: f(x, size=3), X)],
    "astype": [by(lambda f, x: f(x, jnp.bfloat16), X)],
    "bincount": [by(lambda f, w: f(INTS, w, length=5), X[:, 0])],
    "block": [by(lambda f, x, y: f([x, y]), X, Y)],
    "broadcast_arrays": [at(X, V[:4])],
    "broadcast_to": [at(V, shape=(2, 5))],
    "clip": [at(POINTS, -1, 1)],
    "choose": [by(lambda f, x, y: f(INTS - 1, [x, y, x], mode="clip"), X[:, 0], Y[:, 0])],
    "column_stack": [by(lambda f, x, y: f([x, y]), X, Y)],
    "compress": [by(lambda f, x: f(INTS > 1, x, 0, size=2), X)],
    **every("concat concatenate stack vstack hstack dstack", by(lambda f, x, y: f([x, y]), X, Y)),
    "cross": [at(V[:3], W[:3])],
    "delete": [by(lambda f, x: f(x, 1), V)],
    "digitize": [at(V, np.sort(W))],
    "dsplit": [at(normal(2, 2, 4), indices_or_sections=2)],
    "einsum": [by(lambda f, x, y: f("ij,jk->ik", x, y), X, A)],
    "expand_dims": [at(X, axis=0)],
    "extract": [by(lambda f, x: f(X > 0, x, size=3), X)],
    "fill_diagonal": [by(lambda f, x: f(x, 1.0, inplace=False), A)],
    "flatnonzero": [by(lambda f, x: f(x, size=3), V)],
    "frompyfunc": [by(lambda f, x, y: f(jnp.add, 2, 1, identity=0)(x, y), X, Y)],
    "fromfunction": [by(lambda f, x: f(lambda i: x * i, (3,)), V[0])],
    "full": [by(lambda f, x: f((2, 3), x), V[0])],
    "full_like": [by(lambda f, x: f(X, x), V[0])],
    "geomspace": [by(lambda f, a, b: f(a, b, 4), P[0, 0], P[0, 1])],
    "histogram2d": [at(V, W)],
    "histogramdd": [at(B)],
    "insert": [by(lambda f, x: f(x, 1, 2.0), V)],
    "interp": [by(lambda f, x, y: f(x, np.linspace(-2, 2, 5), y), V, W)],
    "isin": [at(V, W)],
    "ix_": [by(lambda f, x: x[f(INTS - 1, INTS)], X)],
    "kaiser": [by(lambda f, b: f(5, b), P[0, 0])],
    "ldexp": [at(V, np.arange(5))],
    "lexsort": [by(lambda f, x: f((x,)), V)],
    "linspace": [by(lambda f, a, b: f(a, b, 4), V[0], V[1])],
    "logical_not": [at(X > 0)],
    "logspace": [by(lambda f, a, b: f(a, b, 4), V[0], V[1])],
    "matvec": [at(X, A[0])],
    "meshgrid": [at(V, W)],
    "moveaxis": [at(X, source=0, destination=1)],
    "nonzero": [by(lambda f, x: f(x, size=3), X)],
    "packbits": [at(BITS)],
    "pad": [
        at(X, pad_width=1),
        at(X, pad_width=1, mode="reflect"),
        at(X, pad_width=1, mode="mean"),
    ],
    "partition": [at(X, kth=2)],
    "permute_dims": [at(X, axes=(1, 0))],
    "piecewise": [by(lambda f, x: f(x, [x < 0, x >= 0], [jnp.sin, jax.nn.relu]), V)],
    "place": [by(lambda f, x: f(x, X > 0, V, inplace=False), X)],
    "poly": [at(V)],
    "polyder": [at(V)],
    "polyfit": [at(V, W, deg=2)],
    "polyint": [at(V)],
    "polyval": [at(V, W)],
    "put": [by(lambda f, x, v: f(x, INTS, v, inplace=False), X, V[:3])],
    "put_along_axis": [by(lambda f, x: f(x, np.array([[0], [1], [2]]), 1.0, 1, inplace=False), X)],
    "ravel_multi_index": [by(lambda f: f((INTS - 1, INTS - 1), (3, 3), mode="clip"))],
    "repeat": [at(X, repeats=2)],
    "reshape": [at(X, shape=(4, 3))],
    "resize": [at(X, new_shape=(2, 3))],
    "roll": [at(X, shift=1)],
    "rollaxis": [at(X, axis=1)],
    "roots": [by(lambda f, p: f(p, strip_zeros=False), V)],
    "searchsorted": [at(np.sort(V), W)],
    "select": [by(lambda f, x, y: f([X > 1, X > 0], [x, y]), X, Y)],
    "sinc": [
        at(POINTS[1:-1]),
        at(X),
        at(array(0, 0)),
        by(lambda f, x: jax.vmap(jax.grad(f))(x), array(0, 0.5)),
        by(lambda f, x: jax.vmap(jax.grad(jax.grad(f)))(x), array(0, 0.5)),
    ],
    "sort_complex": [at(V)],
    "swapaxes": [at(X, axis1=0, axis2=1)],
    "take_along_axis": [by(lambda f, x: f(x, np.array([[0], [1], [2]]), 1), X)],
    "tensordot": [at(X, A, axes=1)],
    "tile": [at(X, reps=2)],
    "tri": [by(lambda f: f(3))],
    "unpackbits": [at(BITS)],
    "unravel_index": [by(lambda f: f(INTS, (3, 3)))],
    "unstack": [at(X)],
    "vander": [at(V)],
    "vecmat": [at(A[0], A)],
    "vectorize": [by(lambda f, x: f(jax.nn.relu)(x), X)],
    "where": [by(lambda f, x, y: f(X > 0, x, y), X, Y)],
    "diag_indices_from": [by(lambda f, x: x[f(x)], A)],
    "tril_indices_from": [by(lambda f, x: x[f(x)], A)],
    "triu_indices_from": [by(lambda f, x: x[f(x)], A)],
    "argmin": [at(X)],
}

EXCUSED = excuse(
    the_shape_of_its_output_depends_on_values="trim_zeros",
    reads_or_writes_files="fromfile load save savez frombuffer from_dlpack fromiter fromstring",
    gives_text_or_settings="array_repr array_str get_printoptions set_printoptions printoptions",
    asks_about_types="can_cast dtype finfo iinfo isdtype isscalar issubdtype iterable "
    "promote_types result_type broadcast_shapes einsum_path",
    gives_constants_or_indices="empty eye identity ones zeros diag_indices indices mask_indices "
    "tril_indices triu_indices",
)

N3, N1, SINGULAR = (
    normal(3, 3),
    normal(1, 1),
    np.array([[1, 2, 3, 1], [2, 4, 6, 2], [0, 1, 0, 3], [1, 0, 2, 5]], np.float32),
)

LINALG: Calls = {
    **every(
        "cond inv matrix_norm norm qr svd svdvals vector_norm trace diagonal matrix_transpose",
        at(A),
    ),
    **every("cholesky", at(SPD)),
    **every("eigh eigvalsh", at(A + A.T)),
    **every("eigvals", by(lambda f, a: f(a).real, A)),
    **every("eig", by(lambda f, a: f(a)[0].real, A)),
    **every("det", at(A), at(N3), at(normal(2, 2)), at(N1), at(normal(2, 5, 5)), at(SINGULAR)),
    **every(
        "slogdet",
        at(A),
        at(N3),
        at(normal(2, 2)),
        at(N1),
        at(normal(2, 5, 5)),
        at(normal(3, 2, 2)),
        at(A, method="qr"),
        at(N1, method="qr"),
        at(N3, method="qr"),
    ),
    "pinv": [
        at(A),
        at(B),
        at(B.T),
        at(SPD, hermitian=True),
        at(SINGULAR),
        at(np.ones((3, 2), np.float32)),
        at(np.zeros((3, 2), np.float32)),
        at(normal(2, 3, 2)),
    ],
    "cross": [at(V[:3], W[:3])],
    "lstsq": [at(B, normal(4))],
    "matmul": [at(A, B)],
    "matrix_power": [at(A, n=3), at(A, n=-1)],
    "matrix_rank": [at(A)],
    "multi_dot": [by(lambda f, a, b: f([a, a, b]), A, B)],
    "outer": [at(V, W)],
    "solve": [at(A, B)],
    "tensordot": [at(A, B, axes=1)],
    "tensorinv": [at(normal(2, 2, 4))],
    "tensorsolve": [at(A, normal(4))],
    "vecdot": [at(V, W)],
}

FFT: Calls = {
    **every("fft fft2 fftn ifft ifft2 ifftn rfft rfft2 rfftn fftshift ifftshift ihfft", at(A)),
    **every("irfft irfft2 irfftn hfft", at(A)),
    **every("fftfreq rfftfreq", by(lambda f: f(5))),
}


def tables() -> list[Table]:
    """One table for each module."""
    linalg, fft = jnp.linalg, jnp.fft
    return [
        Table("jax.numpy", jnp, CALLS, functions(jnp), EXCUSED),
        Table("jax.numpy.linalg", linalg, LINALG, functions(linalg), {}),
        Table("jax.numpy.fft", fft, FFT, functions(fft), {}),
    ]
