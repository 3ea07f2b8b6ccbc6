"""Tokens in a file, of any size: windows of them, read where they stand."""

from __future__ import annotations

import os
import stat
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from funprop.checks import to_path
from funprop.train.data.token_files import Layout, layout
from funprop.values import LARGEST, whole_number

if TYPE_CHECKING:
    from funprop.typing import Int


class Tokens:
    """A file of tokens as a source of windows, for `fit`; larger than memory, if need be.

    Window `i` is the tokens from `i * length` on, and its targets are the same one further: every
    token is a target once. A window is read where it stands (`pread`) when it is asked for, and
    nothing else is: the file is neither loaded nor mapped, where one that is cut short meanwhile
    would end the process.

    Args:
      path: a `.npy` file of integers in one dimension, or a `.bin` file of nothing but tokens, as
        `funprop prepare` writes it, with a `.bin.json` beside it that tells its dtype.
      length: tokens a window.
      dtype: of a `.bin` file without its `.json`, little-endian: `"uint8"`, `"uint16"` or
        `"uint32"`.
      vocabulary: how many tokens there are, which all must be below; else what the `.json` says.

    Attributes:
      path, length, vocabulary: as above, the vocabulary `None` where nobody knows.
      tokens: how many the file has.
      tokenizer: what made them, as the `.json` says, or `None`.

    Raises:
      OSError: there is no such file, or it may not be read.
      TypeError: an argument that is something else.
      ValueError: here, a file that cannot be one of tokens; later, a window with a token that is
        out of range, or that is no longer there. It names the file.

    Example:
      >>> import tempfile
      >>> file = Path(tempfile.mkdtemp()) / "tokens.npy"
      >>> np.save(file, np.arange(10, dtype=np.uint16))
      >>> windows = Tokens(file, 4)
      >>> len(windows), windows[1]
      (2, (array([4, 5, 6, 7], dtype=int32), array([5, 6, 7, 8], dtype=int32)))
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        length: int,
        *,
        dtype: Any = None,
        vocabulary: int | None = None,
    ) -> None:
        if not isinstance(path, str | os.PathLike):
            raise TypeError(f"path must be that of a file, got {type(path).__name__}")
        self.path, self.length = to_path("path", path), whole_number(length, "length", 1)
        if vocabulary is not None:
            whole_number(vocabulary, "vocabulary", 1)
        self._given = dtype, vocabulary
        file = _opened(self.path)
        weakref.finalize(self, os.close, file)
        self._file = file
        self._layout: Layout = layout(self.path, file, dtype)
        self.tokens, self.tokenizer = self._layout.tokens, self._layout.tokenizer
        self.vocabulary = self._layout.vocabulary if vocabulary is None else vocabulary
        if self.tokens <= self.length:
            raise ValueError(
                f"{self.path}: a window of {self.length} tokens and its targets need "
                f"{self.length + 1}, the file has {self.tokens}"
            )

    def __len__(self) -> int:
        return (self.tokens - 1) // self.length

    def __getitem__(self, i: int) -> tuple[Int[np.ndarray, "length"], Int[np.ndarray, "length"]]:
        return self.__getitems__([i])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[tuple[np.ndarray, np.ndarray]]:
        """Many windows, in fewer steps than one by one."""
        found = self._windows([self._first(i) for i in indices])
        return list(zip(found[:, :-1], found[:, 1:], strict=True))

    def __repr__(self) -> str:
        return f"Tokens({str(self.path)!r}, {self.length}): {self.tokens:,} tokens"

    def __reduce__(self) -> Any:  # another process opens the file itself
        dtype, vocabulary = self._given
        return _again, (self.path, self.length, dtype, vocabulary)

    def _first(self, i: int) -> int:
        """Of a window's tokens, which it is in the file."""
        i = whole_number(i, "index")
        if not -len(self) <= i < len(self):
            raise IndexError(f"index must be below {len(self)}, the number of windows, got {i}")
        return i % len(self) * self.length

    def _windows(self, firsts: list[int]) -> Int[np.ndarray, "windows length+1"]:
        dtype, start = self._layout.dtype, self._layout.start
        each = dtype.itemsize
        size = (self.length + 1) * each
        read = [os.pread(self._file, size, start + first * each) for first in firsts]
        if any(len(part) < size for part in read):
            raise ValueError(f"{self.path} has become shorter since it was opened")
        found = np.frombuffer(b"".join(read), dtype).reshape(len(firsts), -1)
        below = min(self.vocabulary or LARGEST + 1, LARGEST + 1)
        if dtype.kind == "i" or below <= np.iinfo(dtype).max:
            wrong = (found < 0) | (found >= below)
            if wrong.any():
                row, at = (int(i) for i in np.argwhere(wrong)[0])
                raise ValueError(
                    f"{self.path}: tokens must be from 0 to {below - 1}, got {found[row, at]} at "
                    f"{firsts[row] + at}"
                )
        return found.astype(np.int32)


def _again(path: Path, length: int, dtype: Any, vocabulary: int | None) -> Tokens:
    return Tokens(path, length, dtype=dtype, vocabulary=vocabulary)


def _opened(path: Path) -> int:
    if not stat.S_ISREG(path.stat().st_mode):  # a pipe would be waited for
        raise ValueError(f"{path} must be a file")
    return os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
