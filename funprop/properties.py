"""What layers say of themselves, asked: which one it is, and what does not go together with it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from funprop.maps import map_nodes

if TYPE_CHECKING:
    from funprop.layer import Layer


def first_that(says: str, model: Layer) -> str:
    """The path of the first part of `model` that says so, as far down as it can be told.

    Example:
      >>> import funprop as fp
      >>> first_that("draws", fp.serial(fp.dense(4), fp.dropout(0.5)))
      'dropout'
    """
    found = []

    def look(path: str, node: Layer) -> Layer:  # children come before the node above them
        if getattr(node, says):
            found.append(path or node.name)
        return node

    map_nodes(look, model)
    return found[0]


def mixing(model: Layer, key: Any) -> str | None:
    """The part of `model` that mixes the examples of a batch, run with that key; in training only:
    without a key there is none."""
    return first_that("mixes", model) if key is not None and model.mixes else None


def refuse_mixing(who: str, what: str | None, *, sharded: bool = True) -> None:
    """Raise where `who` takes a batch apart and something mixes its examples.

    Args:
      who: what takes it apart.
      what: what mixes them (see `mixing`), if anything does.
      sharded: whether `shard` does what `who` was meant for.
    """
    if what is not None:
        raise ValueError(
            f"{what} mixes the examples of a batch in training, which {who} takes apart: use "
            "group_norm or layer_norm" + (", or shard, which is exact" if sharded else "")
        )
