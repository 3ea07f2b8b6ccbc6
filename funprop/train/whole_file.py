"""Files that are there as a whole or not at all, however the writing ends."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

OPEN_FILES = Path("/proc/self/fd")


@contextmanager
def whole_file(file: Path) -> Iterator[Path]:
    """A place to write what `file` shall hold; it takes the name when all is on the disk.

    Where the writing raises, `file` is what it was before. On Linux the draft has no name, so that
    a process that is killed leaves nothing behind; elsewhere it is a hidden file in the folder.

    Raises:
      OSError: it cannot be written; names `file`.

    Example:
      >>> import tempfile
      >>> file = Path(tempfile.mkdtemp()) / "numbers"
      >>> with whole_file(file) as draft:
      ...     _ = draft.write_text("1 2 3")
      >>> file.read_text()
      '1 2 3'
    """
    file = Path(os.path.realpath(file))  # what a link stands for, not the link, is replaced
    # Its own name may be as long as a name can be, so the draft's has none of it.
    hidden = file.with_name(f".{secrets.token_hex(8)}")
    try:
        nameless = _nameless(file.parent)
        if nameless is None:
            yield hidden
            with hidden.open("rb+") as written:
                os.fsync(written.fileno())
        else:
            try:
                yield OPEN_FILES / str(nameless)
                os.fsync(nameless)
                _link(nameless, hidden)
            finally:
                os.close(nameless)
        hidden.replace(file)
        sync(file.parent)
    except OSError as error:
        if error.errno is None:
            raise
        raise type(error)(error.errno, error.strerror, str(file)) from None
    finally:
        with contextlib.suppress(OSError):
            hidden.unlink()


def is_draft(name: str) -> bool:
    """Whether a file of this name is a draft, that a process which was killed has left."""
    return re.fullmatch(r"\.[0-9a-f]{16}", name) is not None


def clear_drafts(folder: Path) -> None:
    """Remove drafts that processes which were killed have left; nobody else may be writing."""
    for file in folder.iterdir():
        if is_draft(file.name):
            with contextlib.suppress(OSError):
                file.unlink()


def _nameless(folder: Path) -> int | None:
    """A new file in `folder` that has no name yet; `None` where there is no such thing."""
    if not (hasattr(os, "O_TMPFILE") and OPEN_FILES.is_dir()):
        return None
    try:
        return os.open(folder, os.O_TMPFILE | os.O_RDWR, 0o666)
    except OSError:  # the file system has none; or nothing can be written, as will be found
        return None


def _link(nameless: int, name: Path) -> None:
    folder = os.open(OPEN_FILES, os.O_RDONLY)  # only with a folder does os.link follow the link
    try:
        os.link(str(nameless), name, src_dir_fd=folder, follow_symlinks=True)
    finally:
        os.close(folder)


def sync(folder: Path) -> None:
    """Wait until what has been named in a folder is on the disk."""
    with contextlib.suppress(OSError):  # not everywhere may a folder be opened
        opened = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(opened)
        finally:
            os.close(opened)
