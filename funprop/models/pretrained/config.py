"""A config.json: what it says, or one sentence on what of it we lack."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from funprop.layer import Layer
from funprop.models.pretrained.rows import Row


class Config:
    """What a config.json says, entry by entry; an entry that is not there has transformers' own
    default.

    Args:
      entries: the JSON object.
      where: for messages.
      inside: the path of an entry that is an object itself, with a dot behind it.
    """

    def __init__(self, entries: Mapping[str, Any], where: str, inside: str = "") -> None:
        self.entries, self.where, self.inside = entries, where, inside

    def given(self, name: str) -> bool:
        return self.entries.get(name) is not None

    def part(self, name: str) -> Config:
        """An entry that is an object; an empty one where it is not there."""
        found = self.entries.get(name)
        if found is not None and not isinstance(found, dict):
            raise self.wrong(name, "an object")
        return Config(found or {}, self.where, f"{self.inside}{name}.")

    def number(self, name: str, default: int | None) -> Any:
        """A positive whole number; or the default, which may be none."""
        found = self.entries.get(name)
        found = default if found is None else found
        if found is not None and (type(found) is not int or found < 1):
            raise self.wrong(name, "a positive whole number")
        return found

    def real(self, name: str, default: float | None = None) -> float:
        """A positive number, which must be there if there is no default."""
        found = self.entries.get(name, default)
        if type(found) not in (int, float) or not 0 < found < math.inf:
            raise self.wrong(name, "a positive number")
        return float(found)

    def flag(self, name: str, default: bool) -> bool:
        found = self.entries.get(name, default)
        if type(found) is not bool:
            raise self.wrong(name, "true or false")
        return found

    def choice(self, name: str, default: str, known: Mapping[str, Any]) -> Any:
        """What is known under the name that an entry says."""
        found = self.entries.get(name, default)
        if not isinstance(found, str) or found not in known:
            raise self.unsupported(name, known)
        return known[found]

    def only(self, name: str, default: Any, supported: Any) -> None:
        """An entry of which we have one value alone."""
        if self.entries.get(name, default) != supported:
            raise self.unsupported(name, [supported])

    def none(self, name: str, but: str) -> None:
        """An entry that must not be there."""
        if self.given(name):
            raise ValueError(f"{self.where}: {self.inside}{name} is not supported: {but}")

    def wrong(self, name: str, expected: str) -> ValueError:
        got = repr(self.entries[name]) if name in self.entries else "nothing"
        return ValueError(f"{self.where}: {self.inside}{name} must be {expected}, got {got}")

    def unsupported(self, name: str, known: Iterable[Any]) -> ValueError:
        got, supported = self.entries.get(name), ", ".join(map(str, known))
        return ValueError(
            f"{self.where}: {self.inside}{name} {got!r} is not supported; supported: {supported}"
        )


class Family(NamedTuple):
    """Models of one kind.

    Attributes:
      name: their `model_type`.
      architectures: their classes in transformers, the language model first.
      prefix: of all names but the head's; files of the bare model leave it out.
      buffers: a pattern for tensors that are no weights.
      tied: whether the head is the embedding's table where the configuration does not say.
      model: `(config, rewrite) -> layer`.
      rows: our leaves and their tensors, by the configuration.
      small: entries that make the same model tiny, to judge its gradient by.
    """

    name: str
    architectures: tuple[str, ...]
    prefix: str
    buffers: str
    tied: bool
    model: Callable[[Config, Callable[[Layer], Layer]], Layer]
    rows: Callable[[Config], list[Row]]
    small: dict[str, int]
