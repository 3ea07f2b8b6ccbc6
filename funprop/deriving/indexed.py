"""Gathers, scatters, convolutions and windows: the primitives with long descriptions."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from funprop.deriving.rules import call
from funprop.deriving.text import Text, dtype_name, number

if TYPE_CHECKING:
    from funprop.deriving.flat import Operation

WINDOWS = {
    "reduce_window_max": ("-jnp.inf", "lax.max"),
    "reduce_window_min": ("jnp.inf", "lax.min"),
}


def _numbers(given: Any, kind: str) -> str:
    """The dimension numbers; those that are empty by default are left out."""
    fields = [*getattr(given, "__dataclass_fields__", ()), *getattr(given, "_fields", ())]
    told = [(name, tuple(int(n) for n in getattr(given, name) or ())) for name in fields]
    return f"lax.{kind}({', '.join(f'{name}={n}' for name, n in told if n or 'batch' not in name)})"


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
    names = {
        "scatter-add": "scatter_add",
        "scatter_mul": "scatter_mul",
        "scatter-mul": "scatter_mul",
    }
    name = names.get(operation.name, operation.name.replace("-", "_"))
    d = _numbers(p["dimension_numbers"], "ScatterDimensionNumbers")
    return call(f"lax.{name}", given, d, f"mode={_mode(p['mode'])}")


def convolved(operation: Operation, given: list[Text]) -> Text:
    p = operation.params
    d = p["dimension_numbers"]
    told = (
        f"lax.ConvDimensionNumbers({tuple(d.lhs_spec)}, {tuple(d.rhs_spec)}, {tuple(d.out_spec)})"
    )
    more = [f"window_strides={tuple(p['window_strides'])}", f"padding={tuple(p['padding'])}"]
    for name in ("lhs_dilation", "rhs_dilation"):
        if p[name] and any(n != 1 for n in p[name]):
            more.append(f"{name}={tuple(p[name])}")
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
            str(tuple(p[name]))
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


INDEXED: dict[str, Callable[[Operation, list[Text]], Text]] = {
    "gather": gathered,
    **dict.fromkeys(
        ("scatter", "scatter-add", "scatter_add", "scatter_mul", "scatter-mul"), scattered
    ),
    "conv_general_dilated": convolved,
    **dict.fromkeys(("reduce_window_max", "reduce_window_min", "reduce_window_sum"), windowed),
}
