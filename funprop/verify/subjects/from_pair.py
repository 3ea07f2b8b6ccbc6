"""A forward and a backward pass of any library as one differentiable function of JAX."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from funprop.verify.subject import is_floating

if TYPE_CHECKING:
    from funprop.typing import Array


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
      forward: `(*inputs) -> output`, or a tuple of outputs.
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
    pull = _by_torch(forward) if backward is None else backward

    @jax.custom_vjp
    def function(*inputs: Array) -> Any:
        specs, several = _outputs(forward, to, [(v.shape, np.dtype(v.dtype)) for v in inputs])

        def on_host(*given: Any) -> tuple[np.ndarray, ...]:
            ys = _several(forward(*_given(to, given)))
            return tuple(_array(y, spec.dtype) for y, spec in zip(ys, specs, strict=True))

        ys = jax.pure_callback(on_host, specs, *inputs, vmap_method="sequential")
        return ys if several else ys[0]

    def function_and_inputs(*inputs: Array) -> tuple[Any, tuple[Array, ...]]:
        return function(*inputs), inputs

    def gradient(inputs: tuple[Array, ...], dy: Any) -> tuple[Any, ...]:
        moving = [i for i, v in enumerate(inputs) if is_floating(v)]
        specs = tuple(jax.ShapeDtypeStruct(inputs[i].shape, inputs[i].dtype) for i in moving)
        several = isinstance(dy, tuple)

        def on_host(inputs: Any, dys: Any) -> tuple[np.ndarray, ...]:
            dys = tuple(_given(to, dys))
            found = _several(pull(*_given(to, inputs), dys if several else dys[0]))
            if len(found) != len(inputs):
                raise TypeError(f"backward must give {len(inputs)} gradients, got {len(found)}")
            return tuple(
                _gradient(found[i], i, spec) for i, spec in zip(moving, specs, strict=True)
            )

        dys = jax.tree.map(jnp.asarray, dy if several else (dy,))
        grads = jax.pure_callback(on_host, specs, inputs, dys, vmap_method="sequential")
        filled = dict(zip(moving, grads, strict=True))
        return tuple(filled.get(i) for i in range(len(inputs)))

    function.defvjp(function_and_inputs, gradient)
    named = functools.wraps(forward)(function) if hasattr(forward, "__name__") else function
    return named


@functools.lru_cache(maxsize=256)
def _cached_outputs(forward: Any, to: Any, specs: tuple[Any, ...]) -> Any:
    some = [np.full(shape, 0.5 if dtype.kind == "f" else 0, dtype) for shape, dtype in specs]
    ys = forward(*map(to, some))
    arrays = [_array(y) for y in _several(ys)]
    specs = tuple(jax.ShapeDtypeStruct(y.shape, y.dtype) for y in arrays)
    return specs, isinstance(ys, (tuple, list))


def _outputs(forward: Any, to: Any, specs: Sequence[Any]) -> Any:
    """The specs of the outputs, and whether there are several: of the forward pass, run once."""
    return _cached_outputs(forward, to, tuple(specs))


def _several(values: Any) -> tuple[Any, ...]:
    return tuple(values) if isinstance(values, (tuple, list)) else (values,)


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
        inputs = [v.requires_grad_() if v.is_floating_point() else v for v in inputs]
        moving = [v for v in inputs if v.requires_grad]
        with torch.enable_grad():
            ys = _several(forward(*inputs))
        pairs = [(y, d) for y, d in zip(ys, _several(dy), strict=True) if y.requires_grad]
        if not pairs:
            return tuple(None for _ in inputs)
        outputs, cotangents = zip(*pairs, strict=True)
        found = iter(torch.autograd.grad(outputs, moving, cotangents, allow_unused=True))
        return tuple(next(found) if v.requires_grad else None for v in inputs)

    return backward
