"""`funprop train --watch`: what a run shows of its layers."""

from __future__ import annotations

from pathlib import Path

from funprop.flow.picture import gradient_flow
from funprop.flow.watch import Watch, watch

PICTURE = "gradient_flow.png"


def watching(wanted: bool) -> Watch | None:
    """What `fit` fills, where it is wanted: at the ends of epochs, 100 updates apart or more."""
    return watch(every=100) if wanted else None


def draw_flow(folder: Path, seen: Watch | None, title: str) -> None:
    """`gradient_flow.png`, of what there was to see."""
    if seen is not None and seen.looks:
        gradient_flow(seen, folder / PICTURE, title=title)
