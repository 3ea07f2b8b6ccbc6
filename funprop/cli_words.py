"""The words of a command line, with what stands behind several flags of one name put together."""

from __future__ import annotations

from collections.abc import Sequence

SEVERAL = "--target", "--sweep"  # options that take more than one value


def gathered(words: Sequence[str]) -> list[str]:
    """With one flag for each option that takes several values: of two, parsers take the last alone.

    Example:
      >>> gathered(["train", "t.csv", "--target", "a", "--seed", "1", "--target=b"])
      ['train', 't.csv', '--seed', '1', '--target', 'a', 'b']
      >>> gathered(["train", "--target", "a", "b", "--seed", "1"])
      ['train', '--target', 'a', 'b', '--seed', '1']
    """
    for flag in SEVERAL:
        if sum(word.partition("=")[0] == flag for word in words) > 1:
            words = _behind_one(flag, words)
    return list(words)


def _behind_one(flag: str, words: Sequence[str]) -> list[str]:
    others, values, inside = [], [], False
    for word in words:
        name, equals, value = word.partition("=")
        if word.startswith("--"):
            inside = word == flag
        if name == flag:
            values += [value] if equals else []
        else:
            (values if inside else others).append(word)
    return [*others, flag, *values]
