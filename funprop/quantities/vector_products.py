"""Products of the Hessian and the Gauss-Newton matrix with vectors; what random vectors tell."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from funprop.arguments import check_given, check_trainable
from funprop.as_function import as_function
from funprop.checks import check_function, described, require_key
from funprop.keys import split_key
from funprop.layer import Layer
from funprop.located import check_params
from funprop.objectives import with_a_say
from funprop.params.frozen import trained, with_trained
from funprop.params.selection import Pattern, where
from funprop.properties import mixing, refuse_mixing
from funprop.quantities.columns import check_objective
from funprop.quantities.curvature import output_of
from funprop.quantities.shared_params import expansion
from funprop.trees import is_float, path_string, wide_dtype
from funprop.values import whole_number

if TYPE_CHECKING:
    from funprop.typing import PyTree

Product = Callable[..., Any]


def hessian_vector_product(objective: Layer, pattern: Pattern | None = None) -> Product:
    """`H v`, with the Hessian `H` of the batch's loss, a sum, in params: one pass forward over the
    hand-written backward.

    Args:
      objective: a layer from a batch to a `Sum`.
      pattern: names of params, as of `where`; the product is then with their block of `H`: other
        entries of `v` are not looked at, and other entries of the product are zero.

    Returns:
      `(params, vector, batch, key=None) -> product`; vector and product are like the gradient. To
      multiply with many, `jax.linearize` or `jax.vmap` it.

    Source: Pearlmutter, Neural Computation 6 (1994).

    Raises:
      TypeError: `objective` is no layer, or gives no `Sum`.
      ValueError: when called, the pattern matches nothing.

    Example:
      >>> import funprop as fp
      >>> line = fp.objective(fp.dense(1, bias=False), fp.mean_squared())
      >>> params = fp.DenseParams(jnp.array([[1.0]]), None)
      >>> batch = jnp.array([[1.0], [2.0]]), jnp.array([[2.0], [4.0]])
      >>> hessian_vector_product(line)(params, params, batch).w.tolist()  # 2 x^2, summed
      [[10.0]]
    """
    check_objective(objective)
    loss = as_function(objective)

    def product(params: PyTree, vector: PyTree, batch: PyTree, key: Any = None) -> PyTree:
        _check(objective, params, batch, key)
        own = trained(params)

        def gradient(own: PyTree) -> PyTree:
            return jax.grad(lambda p: loss(with_trained(params, p), batch, key).total)(own)

        chosen = _chosen(pattern, own)
        return chosen(jax.jvp(gradient, (own,), (chosen(_like(own, vector)),))[1])

    return product


def ggn_vector_product(objective: Layer, pattern: Pattern | None = None) -> Product:
    """`J^T H J v`, the generalised Gauss-Newton matrix of the batch's loss, a sum, times a vector:
    `J` of the model's outputs in params, `H` of the loss in the outputs.

    Of any loss, as `H` is the derivative of the loss's own backward; with a loss that is convex in
    the outputs the matrix has no negative eigenvalue. Of `linear_cross_entropy` the outputs are the
    logits; of another loss with params, `H` is in these too.

    Args:
      objective: of a model and a loss, `objective(model, loss)`, or such a one with shared params.
      pattern: as of `hessian_vector_product`.

    Returns:
      `(params, vector, batch, key=None) -> product`, as of `hessian_vector_product`.

    Source: Schraudolph, Neural Computation 14 (2002).

    Raises:
      TypeError: `objective` is no layer, or gives no `Sum`.
      ValueError: it is not of one model and one loss; or, when called, the pattern matches nothing,
        or there is a key and a layer mixes examples (`batch_norm`).

    Example:
      >>> import funprop as fp
      >>> line = fp.objective(fp.dense(1, bias=False), fp.mean_squared())
      >>> params = fp.DenseParams(jnp.array([[1.0]]), None)
      >>> batch = jnp.array([[1.0], [2.0]]), jnp.array([[2.0], [4.0]])
      >>> ggn_vector_product(line)(params, params, batch).w.tolist()
      [[10.0]]
    """
    check_objective(objective)
    expand, (model, loss) = two_parts(objective)
    output = output_of(loss)
    outputs, total = as_function(model), as_function(loss if output is None else output.loss)
    logits = None if output is None else as_function(output.layer)

    def product(params: PyTree, vector: PyTree, batch: PyTree, key: Any = None) -> PyTree:
        refuse_mixing("ggn_vector_product", mixing(objective, key), sharded=False)
        _check(objective, params, batch, key)
        own = trained(params)
        inputs, *targets = batch
        inputs = with_a_say(inputs, *targets[1:])
        model_key, loss_key = split_key(key, 2)  # the same noise as the objective's own

        def both(own: PyTree) -> tuple[PyTree, PyTree]:
            of_model, of_loss = expand(with_trained(params, own))
            y = outputs(of_model, inputs, model_key)
            if output is None or logits is None:
                return y, of_loss
            return logits(of_loss, output.cleaned(y, *targets[1:])), ()

        def gradient(outputs: PyTree, of_loss: PyTree) -> PyTree:
            def of(outputs: PyTree, of_loss: PyTree) -> Any:
                return total(of_loss, (outputs, *targets), loss_key).total

            return jax.grad(of, (0, 1))(outputs, of_loss)

        chosen = _chosen(pattern, own)
        found, forward = jax.linearize(both, own)
        moved = forward(chosen(_like(own, vector)))
        curved = jax.jvp(gradient, found, moved)[1]
        return chosen(jax.linear_transpose(forward, own)(curved)[0])

    return product


def two_parts(node: Layer) -> tuple[Callable[[PyTree], tuple[PyTree, PyTree]], tuple[Layer, Layer]]:
    """`params -> (those of the model, those of the loss)`, and both of an objective: also where its
    params are made of others.

    Raises:
      ValueError: it has not two parts.
    """
    if len(node.children) == 2:
        model, loss = node.children
        return lambda params: node.split(params), (model, loss)  # pyright: ignore
    if len(node.children) != 1:
        raise ValueError(
            "objective must be of a model and a loss, as objective(model, loss) is, got "
            f"{node.name} of {len(node.children)} parts"
        )
    inside, parts = two_parts(node.children[0])
    expand = expansion(node)[0] if node.shares else lambda params: node.split(params)[0]
    return lambda params: inside(expand(params)), parts


def hutchinson_trace(
    product: Callable[[PyTree], PyTree], like: PyTree, key: Any, *, samples: int = 16
) -> PyTree:
    """The trace of a matrix that is known by its products, leaf by leaf, without bias: the mean of
    `v . M v` over random signs `v`.

    Args:
      product: `vector -> M vector`, such as
        `lambda v: fp.hessian_vector_product(objective)(params, v, batch)`.
      like: what a vector is like, such as `fp.trained(params)`.
      key: to draw from.
      samples: how many products.

    Returns:
      A number for every leaf, the trace of its own block, in float32 at least; their sum is the
      trace of the whole.

    Source: Hutchinson, Communications in Statistics 19 (1990).

    Raises:
      TypeError: `product` is no function, a leaf of `like` not of floats, or the key no random key.
      ValueError: `samples` is not positive, or a product not like its vector.

    Example:
      >>> twice = lambda v: jax.tree.map(lambda leaf: 2 * leaf, v)
      >>> found = hutchinson_trace(twice, {"w": jnp.ones((2, 3))}, jax.random.key(0))
      >>> float(found["w"])
      12.0
    """
    each = hutchinson_diagonal(product, like, key, samples=samples)
    return jax.tree.map(jnp.sum, each)


def hutchinson_diagonal(
    product: Callable[[PyTree], PyTree], like: PyTree, key: Any, *, samples: int = 16
) -> PyTree:
    """The diagonal of a matrix that is known by its products, without bias: the mean of `v * M v`
    over random signs `v`. Exact after one where the matrix is diagonal.

    Args, Raises: as `hutchinson_trace`.

    Source: Bekas, Kokiopoulou and Saad, Applied Numerical Mathematics 57 (2007).

    Example:
      >>> twice = lambda v: jax.tree.map(lambda leaf: 2 * leaf, v)
      >>> hutchinson_diagonal(twice, jnp.ones(3), jax.random.key(0), samples=1).tolist()
      [2.0, 2.0, 2.0]
    """
    check_function("product", product, "from a vector to its product with the matrix")
    require_key(key)
    samples = whole_number(samples, "samples", 1)
    like = trained(like)
    for path, leaf in jax.tree_util.tree_leaves_with_path(like):
        if not isinstance(leaf, float) and not (hasattr(leaf, "dtype") and is_float(leaf)):
            name = "/".join(filter(None, ("like", path_string(path))))
            raise TypeError(f"{name} must be of floats, got {described(leaf)}")
    leaves, tree = jax.tree.flatten(like)

    def one(total: PyTree, key: Any) -> tuple[PyTree, None]:
        keys = jax.random.split(key, len(leaves))
        signs = [
            jax.random.rademacher(k, jnp.shape(leaf), jnp.result_type(leaf))
            for k, leaf in zip(keys, leaves, strict=True)
        ]
        vector = tree.unflatten(signs)
        found = product(vector)
        _check_product(vector, found)

        def add(t: Any, v: Any, p: Any) -> Any:
            return t + v.astype(t.dtype) * jnp.asarray(p, t.dtype)

        return jax.tree.map(add, total, vector, found), None

    # In float32 at least: a sum in 16 bits comes to rest long before it is whole.
    zeros = jax.tree.map(lambda a: jnp.zeros(jnp.shape(a), wide_dtype(jnp.result_type(a))), like)
    total, _ = jax.lax.scan(one, zeros, jax.random.split(key, samples))
    return jax.tree.map(lambda t: t / samples, total)


def _check_product(vector: PyTree, found: Any) -> None:
    if jax.tree.structure(found) != jax.tree.structure(vector):
        raise ValueError(f"product must give what is like its vector, got {described(found)}")
    for (path, v), p in zip(
        jax.tree_util.tree_leaves_with_path(vector), jax.tree.leaves(found), strict=True
    ):
        if jnp.shape(p) != v.shape:
            name = "/".join(filter(None, ("product", path_string(path))))
            raise ValueError(f"{name} must have the shape {v.shape}, got {jnp.shape(p)}")


def _check(objective: Layer, params: PyTree, batch: PyTree, key: Any) -> None:
    check_given(batch, key, None)
    check_params(objective, params, batch)
    check_trainable(params)


def _chosen(pattern: Pattern | None, own: PyTree) -> Callable[[PyTree], PyTree]:
    if pattern is None:
        return lambda tree: tree
    mask = where(pattern, own)
    return lambda tree: jax.tree.map(lambda m, v: v if m else jnp.zeros_like(v), mask, tree)


def _like(own: PyTree, vector: PyTree) -> PyTree:
    """The vector, which may be as params are, in the structure of what is trained."""
    tree = jax.tree.structure(own)
    if jax.tree.structure(vector) != tree:
        vector = trained(vector)
    if jax.tree.structure(vector) != tree:
        raise ValueError(
            "vector must be like the gradient of params, as fp.trained(params) is, got "
            f"{described(vector)} of {len(jax.tree.leaves(vector))} leaves"
        )
    for (path, of), leaf in zip(
        jax.tree_util.tree_leaves_with_path(own), jax.tree.leaves(vector), strict=True
    ):
        name = "/".join(filter(None, ("vector", path_string(path))))
        if not hasattr(leaf, "__array__") and not isinstance(leaf, float):
            raise TypeError(f"{name} must be an array, got {described(leaf)}")
        if jnp.shape(leaf) != jnp.shape(of):
            raise ValueError(
                f"{name} must have the shape {jnp.shape(of)} of params, got {jnp.shape(leaf)}"
            )
    return jax.tree.map(lambda of, leaf: jnp.asarray(leaf, jnp.result_type(of)), own, vector)
