"""The text that `funprop train` knows: Python's standard library, text, and files of tokens."""

from __future__ import annotations

import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from funprop.train.data.order import shuffled
from funprop.train.data.tokens import Tokens

BYTES = 256
SUFFIX = ".txt"
TIME = 128  # tokens a window
HELD_OUT_WINDOWS = 256
SHARE = 20  # one in so many is held out


class Text(NamedTuple):
    """What is trained on.

    Attributes:
      title: for headings.
      batch: `(seed, index) -> (inputs, targets)`, of a number of windows.
      held_out: windows that are not trained on.
      vocabulary: how many tokens there are.
      windows: how many to train on; of those drawn anew for each update, none are counted.
      same: what all processes of a run must have.
    """

    title: str
    batch: Callable[[int, int], Any]
    held_out: Any
    vocabulary: int
    same: Any
    windows: int = 0


def library(batch_size: int) -> Text:
    """Python's standard library, in windows drawn anew for each update."""
    text, unseen = sources()
    return Text(
        f"Python's standard library: {len(text):,} bytes to train on, {len(unseen):,} held out",
        lambda seed, i: windows(text, batch_size, seed, i),
        windows(unseen, HELD_OUT_WINDOWS, 0, 0),  # the same in every run
        BYTES,
        (text, unseen),
    )


def token_file(path: Path, batch_size: int, length: int = TIME) -> Text:
    """A file of tokens, all its windows in an order of their own, and again in another.

    Raises:
      OSError, ValueError: it is none, or the file that `prepare --held-out` writes is missing.
    """
    beside = path.with_name(f"{path.stem}-held-out{path.suffix}")
    if path.exists() and not beside.exists():
        raise ValueError(f"{beside} is missing: funprop prepare --held-out 0.05 writes it")
    seen, unseen = Tokens(path, length), Tokens(beside, length)
    if seen.vocabulary is None:
        raise ValueError(f"{path} must say its vocabulary, as files of funprop prepare do")
    n, some = len(seen), min(HELD_OUT_WINDOWS, len(unseen))
    if batch_size > n:
        raise ValueError(
            f"batch_size must be from 1 to {n}, the windows of {path}, got {batch_size}"
        )

    def batch(seed: int, i: int) -> Any:
        numbers = range(i * batch_size, (i + 1) * batch_size)
        rows = [int(shuffled(np.array([k % n]), n, seed, k // n)[0]) for k in numbers]
        return tuple(np.stack(part) for part in zip(*(seen[row] for row in rows), strict=True))

    held_out = tuple(np.stack(part) for part in zip(*(unseen[i] for i in range(some)), strict=True))
    title = f"{path}: {seen.tokens:,} tokens to train on, {unseen.tokens:,} held out"
    same = np.asarray([seen.tokens, unseen.tokens])
    return Text(title, batch, held_out, seen.vocabulary, same, n)


def text_files(path: Path, batch_size: int) -> Text:
    """The `.txt` file, or all that are in a folder, as bytes; windows drawn anew for each update.

    Of twenty files or more every twentieth is held out, of fewer the last twentieth of each.

    Raises:
      ValueError: there is no text, too little of it, or a file is none; names it.
      OSError: a file cannot be read.
    """
    files = files_in(path) if path.is_dir() else [path]
    texts = [_text_of(file) for file in files]
    if len(files) < SHARE:
        cut = [len(text) - len(text) // SHARE for text in texts]
        parts = (
            [text[:at] for text, at in zip(texts, cut, strict=True)],
            [text[at:] for text, at in zip(texts, cut, strict=True)],
        )
    else:
        parts = ([t for i, t in enumerate(texts) if i % SHARE], texts[::SHARE])
    train, test = (np.frombuffer(b"\n".join(part), np.uint8) for part in parts)
    if len(test) < TIME + 2 or len(train) < TIME + 2:
        raise ValueError(
            f"{path} must have more text: a twentieth of it, held out, is {len(test)} bytes"
        )
    return Text(
        f"{path}: {len(train):,} bytes to train on, {len(test):,} held out",
        lambda seed, i: windows(train, batch_size, seed, i),
        windows(test, HELD_OUT_WINDOWS, 0, 0),
        BYTES,
        (train, test),
    )


def files_in(folder: Path) -> list[Path]:
    """The files of text in a folder and those below it."""
    return sorted(file for file in folder.rglob("*") if file.suffix.lower() == SUFFIX)


def _text_of(file: Path) -> bytes:
    """A file's bytes, which are UTF-8."""
    content = file.read_bytes()
    try:
        content.decode()
        wrong = content.find(b"\0")
    except UnicodeDecodeError as error:
        wrong = error.start
    if wrong >= 0:
        raise ValueError(f"{file} is no text in UTF-8: byte 0x{content[wrong]:02x} at {wrong:,}")
    return content


def sources() -> tuple[np.ndarray, np.ndarray]:
    """The standard library's own sources, bytes: to train on, and every twentieth file held out."""
    root = Path(sysconfig.get_paths()["stdlib"])
    files = sorted(
        path
        for path in root.rglob("*.py")
        if not {"site-packages", "test", "tests", "idlelib"} & set(path.relative_to(root).parts)
    )
    parts: tuple[list[bytes], list[bytes]] = [], []
    for i, path in enumerate(files):
        parts[i % SHARE == 0].append(path.read_bytes())
    train, test = (np.frombuffer(b"\n".join(part), np.uint8) for part in parts)
    return train, test


def windows(text: np.ndarray, n: int, seed: int, i: int) -> tuple[np.ndarray, np.ndarray]:
    """`n` windows and the bytes after them, `[n, TIME]` each, drawn by `(seed, i)` alone."""
    starts = np.random.default_rng([seed, i]).integers(0, len(text) - TIME - 1, n)
    rows = text[starts[:, None] + np.arange(TIME + 1)].astype(np.int32)
    return rows[:, :-1], rows[:, 1:]
