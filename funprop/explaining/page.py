"""An explanation as one page that needs no network: data as JSON, drawn by the script beside it."""

from __future__ import annotations

import html
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from funprop.checks import to_path
from funprop.names import label

if TYPE_CHECKING:
    import os

    from funprop.explaining.calls import Call
    from funprop.explaining.explain import Explanation
    from funprop.explaining.stats import Stats
    from funprop.inspect.visits import Trail

HERE = Path(__file__).parent
UNITS, LAYERS = 8, 12  # no more in a network that is drawn unit by unit


def write(told: Explanation, path: str | os.PathLike[str]) -> None:
    """Write the page."""
    file = to_path("path", path)
    parts = {
        "TITLE": html.escape(_title(told)),
        "STYLE": (HERE / "page.css").read_text(encoding="utf-8"),
        "SCRIPT": (HERE / "page.js").read_text(encoding="utf-8"),
        # `</script>` in a name would end it.
        "DATA": json.dumps(data(told), allow_nan=False).replace("<", "\\u003c"),
    }
    page = (HERE / "page.html").read_text(encoding="utf-8")
    for name, part in parts.items():
        page = page.replace(f"@{name}@", part)
    file.write_text(page, encoding="utf-8")


def data(told: Explanation) -> dict[str, Any]:
    """What the page shows: no number in it is infinite or NaN, which JSON has not."""
    nodes: list[dict[str, Any]] = []
    places: dict[tuple[int, ...], int] = {}
    inside: dict[Trail, list[Call]] = {}
    for call in told.calls:
        inside.setdefault(call.trail[:-1], []).append(call)

    def node(call: Call) -> int:
        """The node of a call, and of all further calls of the same layer at the same place."""
        place = tuple(child for child, _ in call.trail)
        number = places.get(place)
        if number is None:
            number = places[place] = len(nodes)
            formula = call.formula._asdict() if call.formula else None
            name = label(call.layer) if call.whole else call.layer.name
            nodes.append(
                {
                    "name": name,
                    "path": call.path,
                    "kind": call.flows or "leaf",
                    "named": call.layer.named,
                    "copies": call.layer.copies,
                    "formula": formula,
                    "parts": [],
                    "calls": [],
                    "updates": [],
                }
            )
        made = nodes[number]
        made["calls"].append(_of_call(call))
        for part in inside.get(call.trail, []):
            child = node(part)
            if child not in made["parts"]:
                made["parts"].append(child)
        return number

    root = node(told.calls[0])
    for i, update in enumerate(told.updates):
        place = (0, *update.place)
        while place not in places:  # inside what is seen as a whole
            place = place[:-1]
        nodes[places[place]]["updates"].append(i)
    order = [(places[tuple(c for c, _ in call.trail)], call) for call in told.layers]
    loss = order[-1][0]
    seen: dict[int, int] = {}
    forward = []
    for number, _ in order:
        forward.append([number, seen.setdefault(number, 0)])
        seen[number] += 1
    return _finite(
        {
            "root": root,
            "nodes": nodes,
            "forward": forward[:-1],
            "loss": loss,
            "total": told.loss,
            "weight": told.weight,
            "optimizer": told.optimizer,
            "updates": [
                {
                    "name": u.name,
                    "role": u.role,
                    "trained": u.trained,
                    "ratio": u.ratio,
                    **{f: _of(getattr(u, f)) for f in ("weight", "gradient", "change", "after")},
                }
                for u in told.updates
            ],
            "notes": [note._asdict() for note in told.notes],
            "units": _units(told, [number for number, _ in order[:-1]], nodes),
        }
    )


def _of_call(call: Call) -> dict[str, Any]:
    told = {name: _of(getattr(call, name)) for name in ("x", "y", "dy", "dx")}
    grads = {name: _of(found) for name, found in call.gradients.items()}
    return {"path": call.path, **told, "gradients": grads, "dead": call.dead, "flat": call.flat}


def _of(found: Stats | None) -> dict[str, Any] | None:
    if found is None:
        return None
    told = found._asdict()
    return {name: _short(value) for name, value in told.items()}


def _short(value: Any) -> Any:
    if isinstance(value, list):
        return [_short(one) for one in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "infinite" if value > 0 else "-infinite"
    return value


def _units(told: Explanation, order: list[int], nodes: list[dict[str, Any]]) -> list[int] | None:
    """The nodes of a network small enough to be drawn unit by unit: layers in a chain, each dense
    (its params a matrix `w`, and `b` or none) or elementwise."""
    calls = told.layers[:-1]
    if not 0 < len(calls) <= LAYERS or len(order) != len(set(order)):
        return None
    if any(nodes[n]["kind"] not in ("leaf", "chain") for n in range(len(nodes))):
        return None
    for call in calls:
        ends = (call.x, call.y)
        if any(s is None or len(s.shape) != 2 or s.values is None for s in ends):
            return None
        assert call.x is not None and call.y is not None
        if max(call.x.shape[1], call.y.shape[1]) > UNITS:
            return None
        alike = call.formula is not None and call.formula.elementwise
        if not alike and set(call.gradients) not in ({"w"}, {"w", "b"}):
            return None
    return order


def _title(told: Explanation) -> str:
    model = told.objective.children[0] if told.objective.children else told.objective
    return label(model) if model.named and model.name else f"{len(told.layers)} layers"
