"""Columns made into inputs of a network, as the rows that are trained on have them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from funprop.train.tables.columns import Column
from funprop.train.whole_file import whole_file

if TYPE_CHECKING:
    import pandas as pd

FARTHEST = 10.0  # deviations from the mean, beyond which a number says no more
MOST_CATEGORIES = 64  # of a column; rarer ones are one
TRUSTED = ["numpy.dtype"]  # beside what skops trusts of scikit-learn's and NumPy's


def fitted(frame: pd.DataFrame, columns: Sequence[Column]) -> Any:
    """scikit-learn's `ColumnTransformer` for these columns, fitted to a frame.

    Numbers: the median in the place of what is missing, and a column that says where, where any is;
    then mean 0 and deviation 1. Categories: a column each; one that training had not is none of
    them, or one of the rare.
    """
    from sklearn.compose import ColumnTransformer
    from sklearn.impute import SimpleImputer
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder, StandardScaler

    categories = [c.name for c in columns if c.kind == "category"]
    numbers = [name for name in frame.columns if name not in categories]
    one_each = OneHotEncoder(
        handle_unknown="infrequent_if_exist", max_categories=MOST_CATEGORIES, sparse_output=False
    )
    scaled = make_pipeline(SimpleImputer(strategy="median", add_indicator=True), StandardScaler())
    parts = [("numbers", scaled, numbers), ("categories", one_each, categories)]
    return ColumnTransformer([part for part in parts if part[2]]).fit(frame)


def encoded(encoder: Any, frame: pd.DataFrame) -> Any:
    """Inputs of a network, `[rows, width]` in float32."""
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # unknown categories, which `unknown` tells of
        found = encoder.transform(frame)
    return np.clip(found, -FARTHEST, FARTHEST).astype(np.float32)


def unknown(encoder: Any, frame: pd.DataFrame) -> list[str]:
    """Lines that say which categories training had not."""
    if "categories" not in encoder.named_transformers_:
        return []
    one_each, lines = encoder.named_transformers_["categories"], []
    for name, known in zip(one_each.feature_names_in_, one_each.categories_, strict=True):
        new = sorted({*frame[name]} - {*known})
        if new:
            rows, some = sum(value in new for value in frame[name]), ", ".join(map(repr, new[:3]))
            some += ", ..." if len(new) > 3 else ""
            lines.append(f"{name!r}: {some} in {rows:,} rows, which training had not")
    return lines


def lacking(encoder: Any, frame: pd.DataFrame, columns: Sequence[Column]) -> list[str]:
    """Lines that say what is missing that never was in training: the median stands for it."""
    if "numbers" not in encoder.named_transformers_:
        return []
    imputer, lines = encoder.named_transformers_["numbers"].steps[0][1], []
    names = imputer.feature_names_in_
    lacked = {*names[imputer.indicator_.features_]}
    for column in columns:
        of_date = column.kind == "date"
        its = f"{column.name}: " if of_date else column.name
        first = next((n for n in names if n == its or (of_date and n.startswith(its))), None)
        rows = int(frame[first].isna().to_numpy().sum()) if first else 0
        if rows and first not in lacked:
            lines.append(f"{column.name!r} is missing in {rows:,} rows, and never was in training")
    return lines


def save(encoder: Any, file: Path) -> None:
    """Into a file without pickle."""
    from skops import io

    with whole_file(file) as draft:
        draft.write_bytes(io.dumps(encoder))


def load(file: Path) -> Any:
    """What `save` wrote. Nothing in the file is executed: types that skops does not know as
    scikit-learn's or NumPy's own are refused.

    Raises:
      ValueError: it is damaged, or holds other types; names them.
      OSError: it cannot be read.
    """
    from sklearn.compose import ColumnTransformer
    from skops import io

    content = file.read_bytes()
    try:
        others = [name for name in io.get_untrusted_types(data=content) if name not in TRUSTED]
        found = None if others else io.loads(content, trusted=TRUSTED)
    except Exception as error:  # of zip, of JSON, of NumPy
        raise ValueError(f"{file} is damaged: {type(error).__name__}") from None
    if others:
        raise ValueError(f"{file} holds types that are not trusted: {', '.join(others)[:160]}")
    if not isinstance(found, ColumnTransformer):
        raise ValueError(f"{file} holds no ColumnTransformer, but a {type(found).__name__}")
    return found
