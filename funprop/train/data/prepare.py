"""`funprop prepare`: files of text as one file of tokens, which `Tokens` reads."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from funprop.train.data.token_files import beside
from funprop.train.data.tokenizer import read_tokenizer
from funprop.train.whole_file import whole_file
from funprop.values import real_number, short_line

PIECE = 2**16  # bytes of text, about: what a tokenizer is given at once
PIECES = 64  # of them side by side, by the tokenizer's own threads
BYTES = 256


class Coder(NamedTuple):
    """What makes tokens of text.

    Attributes:
      encode: pieces of a file to their tokens, in order.
      closing: the tokens after every file.
      vocabulary: how many there are.
      dtype: that they have on disk.
      told: what is said of it beside the tokens.
    """

    encode: Callable[[list[bytes]], list[np.ndarray]]
    closing: tuple[int, ...]
    vocabulary: int
    dtype: str
    told: dict[str, str]


def prepare(
    files: Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    *,
    tokenizer: str | os.PathLike[str] | None = None,
    end_of_text: str | None = None,
    held_out: float = 0.0,
) -> str:
    """Write the tokens of files into `out`, a `.bin` file, and what they are beside it.

    Files are read piece by piece and may be larger than memory. `out` is there as a whole or not at
    all. Without a tokenizer tokens are bytes, one byte each on disk: the file of tokens is then as
    long as the text, and is the text.

    Args:
      files: in this order.
      out: ends in `.bin`. The part that is held out goes to `NAME-held-out.bin`.
      tokenizer: a `tokenizer.json` of Hugging Face's `tokenizers`, for text in UTF-8. It is given
        about 64 KiB at a time, up to a line's end, so one token in some 20,000 may differ from what
        it makes of the whole.
      end_of_text: one of the tokenizer's tokens, put after every file.
      held_out: the share that is held out: every n-th file, where there are enough; else the last
        part of every file, from a line's start on.

    Returns:
      What was written, in a sentence.

    Raises:
      ModuleNotFoundError: `tokenizers` is asked for and is not there.
      OSError: a file cannot be read or written.
      ValueError: no text, text that is no UTF-8, a tokenizer that is none.

    Example:
      >>> import tempfile
      >>> folder = Path(tempfile.mkdtemp())
      >>> _ = (folder / "a.txt").write_text("one two three")
      >>> prepare([folder / "a.txt"], folder / "tokens.bin").replace(str(folder), "")
      'wrote 13 tokens (bytes, uint8, 13 bytes) of 1 file to /tokens.bin'
    """
    paths, out, share = [Path(file) for file in files], Path(out), real_number(held_out, "held_out")
    unseen = out.with_name(f"{out.stem}-held-out.bin")
    if not paths:
        raise ValueError("files must be at least one, got none")
    if out.suffix != ".bin":
        raise ValueError(f"out must end in .bin, got {out}")
    if not 0 <= share < 1:
        raise ValueError(f"held_out must be at least 0 and below 1, got {held_out}")
    for path in paths:
        path.stat()
        if any(place.exists() and place.samefile(path) for place in (out, unseen)):
            raise ValueError(f"out must not be one of the files, got {path}")
    coder = _bytes(end_of_text) if tokenizer is None else _coder(Path(tokenizer), end_of_text)
    places = [out, unseen] if share else [out]
    with contextlib.ExitStack() as stack:
        drafts = [stack.enter_context(whole_file(place)) for place in places]
        written = [stack.enter_context(draft.open("wb")) for draft in drafts]
        counts = [0] * len(places)
        for path, which, first, end in _parts(paths, share):
            counts[which] += _write(written[which], path, first, end, coder)
        for place, count in zip(places, counts, strict=True):
            if not count:
                raise ValueError(f"{place} would have no tokens")
            _tell(place, count, coder)
    each = [f"{count:,} tokens to {place}" for place, count in zip(places, counts, strict=True)]
    of_files = f"{len(paths):,} file{'s' * (len(paths) > 1)}"
    kind = f"{coder.told['tokenizer']}, {coder.dtype}"
    if share:
        return f"wrote of {of_files} ({kind}) {each[0]} and {each[1]}"
    size = counts[0] * np.dtype(coder.dtype).itemsize
    return f"wrote {counts[0]:,} tokens ({kind}, {size:,} bytes) of {of_files} to {out}"


def _tell(place: Path, count: int, coder: Coder) -> None:
    told = {"dtype": coder.dtype, "tokens": count, "vocabulary": coder.vocabulary, **coder.told}
    with whole_file(beside(place)) as draft:
        draft.write_text(json.dumps(told, indent=2) + "\n")


def _parts(paths: list[Path], share: float) -> Iterator[tuple[Path, int, int, int | None]]:
    """Each file's parts: the file, 0 or 1 for trained on or held out, and from where to where."""
    every = round(1 / share) if share else 0
    for i, path in enumerate(paths):
        if not share:
            yield path, 0, 0, None
        elif len(paths) >= 2 * every > 2:
            yield path, int(i % every == every - 1), 0, None
        else:
            cut = _cut(path, share)
            yield path, 0, 0, cut
            yield path, 1, cut, None


def _cut(path: Path, share: float) -> int:
    """Where a line starts at which about `share` of the file is left."""
    if not path.is_file():
        raise ValueError(f"held_out needs a file that can be read from anywhere, got {path}")
    cut = round(path.stat().st_size * (1 - share))
    with path.open("rb") as file:
        file.seek(cut)
        rest = file.read(PIECE)
    line = rest.find(b"\n") + 1
    return cut + (line or _of_no_character(rest))


def _of_no_character(rest: bytes) -> int:
    """How many bytes belong to a character of UTF-8 that has begun before."""
    return next((i for i, byte in enumerate(rest[:4]) if byte & 0xC0 != 0x80), 0)


def _write(file: BinaryIO, path: Path, first: int, end: int | None, coder: Coder) -> int:
    count = 0
    try:
        opened = path.open("rb")
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from None
    with opened as text:
        if first:
            text.seek(first)
        pieces = _pieces(text, None if end is None else end - first)
        while some := [piece for _, piece in zip(range(PIECES), pieces, strict=False)]:
            try:
                for tokens in coder.encode(some):
                    file.write(tokens.tobytes())
                    count += len(tokens)
            except UnicodeDecodeError as error:
                raise ValueError(f"{path} must be text in UTF-8: {short_line(error)}") from None
    if count and end is None:
        file.write(np.asarray(coder.closing, coder.dtype).tobytes())
        count += len(coder.closing)
    return count


def _pieces(text: BinaryIO, left: int | None) -> Iterator[bytes]:
    """The next `left` bytes, or all, in pieces that end with a line, where lines are not longer
    than a piece, or else with a character."""
    kept = b""
    while True:
        more = text.read(PIECE if left is None else min(PIECE, left))
        left = None if left is None else left - len(more)
        kept += more
        if not more:
            if kept:
                yield kept
            return
        cut = kept.rfind(b"\n") + 1
        if not cut and len(kept) > PIECE:
            cut = len(kept) - next((i for i in range(1, 5) if kept[-i] & 0xC0 != 0x80), 1)
        if cut:
            yield kept[:cut]
            kept = kept[cut:]


def _bytes(end_of_text: str | None) -> Coder:
    if end_of_text is not None:
        raise ValueError("end_of_text needs a tokenizer, which has such a token")

    def encode(pieces: list[bytes]) -> list[np.ndarray]:
        return [np.frombuffer(piece, np.uint8) for piece in pieces]

    return Coder(encode, (), BYTES, "uint8", {"tokenizer": "bytes"})


def _coder(file: Path, end_of_text: str | None) -> Coder:
    made = read_tokenizer(file)
    closing = ()
    if end_of_text is not None:
        closing = (made.token_to_id(end_of_text),)
        if closing == (None,):
            raise ValueError(f"end_of_text must be a token of {file}, got {end_of_text!r}")
    vocabulary = 1 + max(made.get_vocab(with_added_tokens=True).values(), default=0)
    dtype = "uint16" if vocabulary <= 2**16 else "uint32"

    def encode(pieces: list[bytes]) -> list[np.ndarray]:
        words = [piece.decode() for piece in pieces]
        found = made.encode_batch_fast(words, add_special_tokens=False)
        return [np.asarray(one.ids, f"<{np.dtype(dtype).str[1:]}") for one in found]

    told = {"tokenizer": file.name, "sha256": hashlib.sha256(file.read_bytes()).hexdigest()}
    return Coder(encode, closing, vocabulary, dtype, told)
