"""A forward and a backward pass of any library as one differentiable function of JAX."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from funprop.verify.subject import is_floating

if TYPE_CHECKING:
    from funprop.typing import PyTree


def from_pair(
    forward: Callable[..., Any],
    backward: Callable[..., Any] | None = None,
    *,
    to: Callable[[np.ndarray], Any] = np.asarray,
) -> Callable[..., Any]:
    """A pair of a forward and a backward pass, in NumPy, PyTorch, CuPy or anything else that takes
    and gives arrays on the host, as a function that `verify`, `jax.grad` and all else take.

    `verify` judges it by differences of its values, in float64 where it runs in float64.

    Args:
      forward: `(*inputs) -> output`, arrays or any pytrees of them.
      backward: `(*inputs, dy) -> gradient`, or a tuple of one for each input, `None` where there is
        none; `dy` is as the output. Without it, `torch.autograd.grad` of `forward`: of an
        `autograd.Function`, a Triton kernel, a compiled module.
      to: makes the library's array of a NumPy array: `torch.as_tensor`, `cupy.asarray`; for a
        kernel on a GPU, `lambda a: torch.as_tensor(a, device="cuda")`.

    Returns:
      A function of arrays. It runs on the host: it may be jitted, but is no faster for it.

    Raises:
      TypeError: a gradient is not of the shape of its input; when it is called.

    Example:
      >>> import funprop as fp
      >>> square = fp.from_pair(lambda x: x * x, lambda x, dy: x * dy)  # should be 2 * x * dy
      >>> [(f.path, f.story) for f in fp.verify(square, jnp.array([1.0, 2.0, -0.5])).findings]
      [('x', 'factor')]
    """
    for what, given in (("forward", forward), ("backward", backward), ("to", to)):
        if not callable(given) and not (what == "backward" and given is None):
            raise TypeError(f"{what} must be callable, got {type(given).__name__}")
    if backward is None and importlib.util.find_spec("torch") is None:
        raise TypeError(
            "backward must be given: PyTorch, whose it is without one, is not installed"
        )
    pull = _by_torch(forward) if backward is None else backward

    @jax.custom_vjp
    def function(*inputs: PyTree) -> Any:
        leaves, structure = jax.tree.flatten(inputs)
        specs, outputs = _outputs(forward, to, structure, leaves)

        def on_host(*given: Any) -> tuple[np.ndarray, ...]:
            ys = outputs.flatten_up_to(forward(*structure.unflatten(_given(to, given))))
            return tuple(_array(y, spec.dtype) for y, spec in zip(ys, specs, strict=True))

        ys = jax.pure_callback(on_host, specs, *leaves, vmap_method="sequential")
        return outputs.unflatten(ys)

    def function_and_inputs(*inputs: PyTree) -> tuple[Any, tuple[PyTree, ...]]:
        return function(*inputs), inputs

    def gradient(inputs: tuple[PyTree, ...], dy: Any) -> tuple[Any, ...]:
        leaves, structure = jax.tree.flatten(inputs)
        moving = [i for i, v in enumerate(leaves) if is_floating(v)]
        specs = tuple(jax.ShapeDtypeStruct(leaves[i].shape, leaves[i].dtype) for i in moving)
        dys, outputs = jax.tree.flatten(dy)

        def on_host(leaves: Any, dys: Any) -> tuple[np.ndarray, ...]:
            given = structure.unflatten(_given(to, leaves))
            found = _by_leaf(pull(*given, outputs.unflatten(_given(to, dys))), structure)
            return tuple(
                _gradient(found[i], i, spec) for i, spec in zip(moving, specs, strict=True)
            )

        dys = list(map(jnp.asarray, dys))
        grads = jax.pure_callback(on_host, specs, leaves, dys, vmap_method="sequential")
        filled = dict(zip(moving, grads, strict=True))
        return structure.unflatten([filled.get(i) for i in range(len(leaves))])

    function.defvjp(function_and_inputs, gradient)
    named = functools.wraps(forward)(function) if hasattr(forward, "__name__") else function
    return named


@functools.lru_cache(maxsize=256)
def _cached_outputs(forward: Any, to: Any, structure: Any, specs: tuple[Any, ...], _: bool) -> Any:
    some = [np.full(shape, 0.5 if dtype.kind == "f" else 0, dtype) for shape, dtype in specs]
    ys, outputs = jax.tree.flatten(forward(*structure.unflatten(map(to, some))))
    arrays = [_array(y) for y in ys]
    known = [jax.dtypes.canonicalize_dtype(y.dtype) for y in arrays]  # float64 where JAX has it
    return tuple(map(jax.ShapeDtypeStruct, [y.shape for y in arrays], known)), outputs


def _outputs(forward: Any, to: Any, structure: Any, leaves: Sequence[Any]) -> Any:
    """The specs of the outputs, and their structure: of the forward pass, run once."""
    specs = tuple((v.shape, np.dtype(v.dtype)) for v in leaves)
    return _cached_outputs(forward, to, structure, specs, bool(jax.config.jax_enable_x64))  # pyright: ignore[reportAttributeAccessIssue]


def _by_leaf(found: Any, structure: Any) -> list[Any]:
    """The gradient of each leaf of the inputs, `None` where there is none."""
    found = tuple(found) if isinstance(found, (tuple, list)) else (found,)
    inputs = structure.children()
    if len(found) != len(inputs):
        raise TypeError(f"backward must give {len(inputs)} gradients, got {len(found)}")
    grads: list[Any] = []
    for i, (grad, given) in enumerate(zip(found, inputs, strict=True)):
        try:
            grads += [None] * given.num_leaves if grad is None else given.flatten_up_to(grad)
        except ValueError:
            raise TypeError(f"gradient {i} must be a tree like its input") from None
    return grads


def _given(to: Any, values: Sequence[Any]) -> list[Any]:
    return [to(np.array(v)) for v in values]  # copies: the other library may write into them


def _array(value: Any, dtype: Any = None) -> np.ndarray:
    """A library's array as NumPy's."""
    if hasattr(value, "detach"):  # PyTorch's
        value = value.detach().cpu()
    elif hasattr(value, "get") and not isinstance(value, np.ndarray):  # CuPy's
        value = value.get()
    try:
        return np.asarray(value, dtype)
    except TypeError:  # bfloat16, which NumPy does not know
        return np.asarray(jnp.from_dlpack(value), dtype)


def _gradient(value: Any, i: int, spec: jax.ShapeDtypeStruct) -> np.ndarray:
    if value is None:
        return np.zeros(spec.shape, spec.dtype)
    found = _array(value)
    if found.shape != spec.shape:
        raise TypeError(f"gradient {i} must have the shape {spec.shape}, got {found.shape}")
    return found.astype(spec.dtype)


def _by_torch(forward: Callable[..., Any]) -> Callable[..., Any]:
    def backward(*given: Any) -> tuple[Any, ...]:
        import torch  # pyright: ignore[reportMissingImports]  # an extra of the user

        *inputs, dy = given
        leaves, structure = jax.tree.flatten(tuple(inputs))
        leaves = [v.requires_grad_() if v.is_floating_point() else v for v in leaves]
        moving = [v for v in leaves if v.requires_grad]
        with torch.enable_grad():
            ys = jax.tree.leaves(forward(*structure.unflatten(leaves)))
        pairs = [(y, d) for y, d in zip(ys, jax.tree.leaves(dy), strict=True) if y.requires_grad]
        if not pairs:
            return tuple(None for _ in inputs)
        outputs, cotangents = zip(*pairs, strict=True)
        found = iter(torch.autograd.grad(outputs, moving, cotangents, allow_unused=True))
        return structure.unflatten([next(found) if v.requires_grad else None for v in leaves])

    return backward
