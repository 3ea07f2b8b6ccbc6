"""Gathers, scatters, convolutions, windows, sorting and matrices: the primitives with long
descriptions."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from funprop.deriving.rules import call
from funprop.deriving.text import Text, dtype_name, number, tuple_of

if TYPE_CHECKING:
    from funprop.deriving.flat import Operation

SCATTERS = [f"scatter{how}" for how in ("", "_add", "_sub", "_mul", "_min", "_max")]
TRIANGLE = ("left_side", "lower", "transpose_a", "conjugate_a", "unit_diagonal")
DECOMPOSED: dict[str, tuple[str, ...]] = {  # what of each is more than how it is computed
    "eig": ("compute_left_eigenvectors", "compute_right_eigenvectors"),
    "eigh": ("lower", "sort_eigenvalues", "subset_by_index"),
    "hessenberg": (),
    "householder_product": (),
    "qr": ("full_matrices", "pivoting"),
    "schur": ("compute_schur_vectors", "sort_eig_vals"),
    "svd": ("full_matrices", "compute_uv", "subset_by_index"),
    "tridiagonal_solve": (),
}
WINDOWS = {
    "reduce_window_max": ("-jnp.inf", "lax.max"),
    "reduce_window_min": ("jnp.inf", "lax.min"),
}


def _numbers(given: Any, kind: str) -> str:
    """The dimension numbers; those that are empty by default are left out."""
    fields = [*getattr(given, "__dataclass_fields__", ()), *getattr(given, "_fields", ())]
    told = [(name, tuple(int(n) for n in getattr(given, name) or ())) for name in fields]
    return f"lax.{kind}({', '.join(f'{name}={n}' for name, n in told if n or 'batch' not in name)})"


def _ints(sizes: Any) -> Any:
    """A tuple of integers, or of such, without NumPy's own."""
    return tuple(map(_ints, sizes)) if isinstance(sizes, tuple | list) else int(sizes)


def _mode(mode: Any) -> str:
    names = {"CLIP": "clip", "FILL_OR_DROP": "fill", "PROMISE_IN_BOUNDS": "promise_in_bounds"}
    return f'"{names.get(getattr(mode, "name", ""), "clip")}"'


def gathered(operation: Operation, given: list[Text]) -> Text:
    """`table[rows]` where whole rows are taken, else `lax.gather`."""
    p = operation.params
    d = p["dimension_numbers"]
    table, index = operation.takes
    rows = (
        tuple(d.collapsed_slice_dims) == (0,) == tuple(d.start_index_map)
        and not d.operand_batching_dims
        and tuple(p["slice_sizes"]) == (1, *table.shape[1:])
        and tuple(d.offset_dims)
        == tuple(range(len(index.shape) - 1, len(operation.gives[0].shape)))
    )
    if rows and _mode(p["mode"]) == '"promise_in_bounds"':
        return Text(f"{given[0].atom}[{given[1].atom}.squeeze(-1)]")
    axes = [axis for axis in range(len(table.shape)) if axis not in d.operand_batching_dims]
    along = tuple(d.collapsed_slice_dims) == tuple(d.start_index_map) == tuple(axes)
    if along and len(axes) == 1 and not d.offset_dims and _mode(p["mode"]) == '"clip"':
        index = f"{given[1].atom}.squeeze(-1)"
        return Text(f'jnp.take_along_axis({given[0].code}, {index}, {axes[0]}, mode="clip")')
    sizes = str(tuple(int(n) for n in p["slice_sizes"]))
    fill = p.get("fill_value")
    more = [f"mode={_mode(p['mode'])}"]
    if fill is not None:
        more.append(f"fill_value={number(fill, operation.gives[0].dtype)}")
    return call("lax.gather", given, _numbers(d, "GatherDimensionNumbers"), sizes, *more)


def scattered(operation: Operation, given: list[Text]) -> Text:
    p = operation.params
    d = _numbers(p["dimension_numbers"], "ScatterDimensionNumbers")
    return call(f"lax.{operation.name.replace('-', '_')}", given, d, f"mode={_mode(p['mode'])}")


def convolved(operation: Operation, given: list[Text]) -> Text:
    p = operation.params
    d = p["dimension_numbers"]
    told = (
        f"lax.ConvDimensionNumbers({tuple(d.lhs_spec)}, {tuple(d.rhs_spec)}, {tuple(d.out_spec)})"
    )
    more = [f"window_strides={_ints(p['window_strides'])}", f"padding={_ints(p['padding'])}"]
    for name in ("lhs_dilation", "rhs_dilation"):
        if p[name] and any(n != 1 for n in p[name]):
            more.append(f"{name}={_ints(p[name])}")
    more.append(f"dimension_numbers={told}")
    for name in ("feature_group_count", "batch_group_count"):
        if p[name] != 1:
            more.append(f"{name}={p[name]}")
    wanted = p.get("preferred_element_type")
    if wanted is not None and wanted != operation.takes[0].dtype:
        more.append(f"preferred_element_type={dtype_name(wanted)}")
    return call("lax.conv_general_dilated", given, *more)


def windowed(operation: Operation, given: list[Text]) -> Text:
    p = operation.params
    start, function = WINDOWS.get(operation.name, ("0.0", "lax.add"))
    more = [
        start,
        function,
        *(
            str(_ints(p[name]))
            for name in (
                "window_dimensions",
                "window_strides",
                "padding",
                "base_dilation",
                "window_dilation",
            )
        ),
    ]
    return call("lax.reduce_window", given, *more)


def selected(operation: Operation, given: list[Text]) -> Text:
    """What max pooling gives back; JAX has no other public name for it."""
    p, (source, operand) = operation.params, given
    start, function = WINDOWS[f"reduce_window_{'max' if p['select_prim'].name == 'ge' else 'min'}"]
    sizes = [str(_ints(p[n])) for n in ("window_dimensions", "window_strides", "padding")]
    pool = f"lambda x: lax.reduce_window(x, {start}, {function}, {', '.join(sizes)})"
    return Text(f"jax.vjp({pool}, {operand.code})[1]({source.code})[0]")


def factored(operation: Operation, given: list[Text]) -> Text:
    p = operation.params
    more = [f"{name}={p[name]}" for name in TRIANGLE if p[name]]
    return call("lax.linalg.triangular_solve", given, *more)


def decomposed(operation: Operation, given: list[Text]) -> Text:
    p = operation.params
    if p.get("select_callable") is not None:
        raise LookupError("a function of somebody's")
    more = ["symmetrize_input=False"] if operation.name == "eigh" else []
    more += [f"{name}={p[name]}" for name in DECOMPOSED[operation.name] if p[name] is not None]
    text = call(f"lax.linalg.{operation.name}", given, *more)
    alone = operation.name == "eig" and len(operation.gives) == 1  # a list all the same
    return Text(f"{text.code}[0]") if alone else text


def divided(operation: Operation, given: list[Text]) -> Text:
    sizes, axis = operation.params["sizes"], operation.params["axis"]
    ends = [int(sum(sizes[: i + 1])) for i in range(len(sizes) - 1)]
    return call("jnp.split", given, str(ends), f"axis={axis}")


def ordered(operation: Operation, given: list[Text]) -> Text:
    p = operation.params
    keys = [f"num_keys={p['num_keys']}"] if p["num_keys"] != 1 else []
    stable = [] if p["is_stable"] else ["is_stable=False"]
    several = given if len(given) == 1 else [Text(tuple_of([text.code for text in given]))]
    return call("lax.sort", several, f"dimension={p['dimension']}", *stable, *keys)


INDEXED: dict[str, Callable[[Operation, list[Text]], Text]] = {
    "gather": gathered,
    # JAX writes some of their names with a dash.
    **dict.fromkeys([*SCATTERS, *(name.replace("_", "-") for name in SCATTERS)], scattered),
    "conv_general_dilated": convolved,
    **dict.fromkeys(("reduce_window_max", "reduce_window_min", "reduce_window_sum"), windowed),
    "reduce_xor": lambda o, t: call("lax.reduce_xor", t, str(_ints(o.params["axes"]))),
    "fft": lambda o, t: call(
        "lax.fft", t, repr(o.params["fft_type"].name), str(_ints(o.params["fft_lengths"]))
    ),
    "cholesky": lambda o, t: call("lax.linalg.cholesky", t, "symmetrize_input=False"),
    "triangular_solve": factored,
    "select_and_scatter_add": selected,
}
# What gives more than one array.
SEVERAL: dict[str, Callable[[Operation, list[Text]], Text]] = {
    "split": divided,
    "sort": ordered,
    "top_k": lambda o, t: call("lax.top_k", t, str(o.params["k"]), f"axis={o.params['axis']}"),
    "lu": lambda o, t: call("lax.linalg.lu", t),
    **dict.fromkeys(DECOMPOSED, decomposed),
}
