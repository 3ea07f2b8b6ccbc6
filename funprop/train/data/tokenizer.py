"""A tokenizer.json of Hugging Face's tokenizers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from funprop.values import short_line


def read_tokenizer(file: Path) -> Any:
    """A `tokenizers.Tokenizer`, which neither cuts nor fills up.

    Raises:
      ModuleNotFoundError: `tokenizers` is missing.
      OSError: the file cannot be read.
      ValueError: it is no tokenizer.
    """
    try:
        from tokenizers import Tokenizer  # pyright: ignore[reportMissingImports]
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            "a tokenizer needs tokenizers: pip install 'funprop[tokens]'"
        ) from None
    text = file.read_bytes()
    try:
        made: Any = Tokenizer.from_str(text.decode())
    except Exception as error:  # the library's own kind
        raise ValueError(f"{file} is no tokenizer: {short_line(error)}") from None
    made.no_truncation()
    made.no_padding()
    return made
