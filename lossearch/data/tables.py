"""Tables: from a data frame of any columns to float32 features, fitted on the training split."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from lossearch.data.labels import as_numbers, tidy_text
from lossearch.errors import DataError, did_you_mean

RARE = 10  # a category seen less often in training joins the others of its kind
MOST = 100  # categories of one column, the rarest together


def clean_table(frame: pd.DataFrame) -> pd.DataFrame:
    """Each column as float64 or as text, both with missing values.

    Raises:
        DataError: no column, an infinite number, or a column of neither numbers nor text.
    """
    columns: dict[str, pd.Series] = {}
    for number, name in enumerate(map(str, frame.columns)):
        columns[name] = _clean(name, frame.iloc[:, number])
    if all(column.isna().all() for column in columns.values()):
        raise DataError("the table has no feature column with a value in it")
    return pd.DataFrame(columns)


def _clean(name: str, column: pd.Series, *, text: bool | None = None) -> pd.Series:
    """One column; as text or as numbers, or, where not said, as what it holds."""
    if isinstance(column.dtype, pd.CategoricalDtype):
        column = column.astype(object).map(str, na_action="ignore")
        text = text is not False
    elif pd.api.types.is_datetime64_any_dtype(column):
        column = column.astype("int64").astype(float).where(column.notna(), np.nan)
    if text or not pd.api.types.is_numeric_dtype(column):
        column = tidy_text(column)
        column = column if text else as_numbers(column)
    column = column.reset_index(drop=True)
    if pd.api.types.is_complex_dtype(column):
        raise DataError(f"column '{name}' holds complex numbers; split it into two columns")
    if pd.api.types.is_numeric_dtype(column):
        column = column.astype("float64")
        infinite = int(np.isinf(column.to_numpy()).sum())
        if infinite:
            raise DataError(
                f"column '{name}' holds {infinite} infinite values; replace them, or leave them "
                "empty to have them imputed"
            )
        return column
    known = (str, int, float, np.generic)
    odd = [value for value in column.dropna() if not isinstance(value, known)]
    if odd:
        raise DataError(
            f"column '{name}' holds {type(odd[0]).__name__} objects; only numbers, text and "
            "timestamps can be features. Convert it or drop it"
        )
    return column.map(str, na_action="ignore").astype(object)


class TableEncoder:
    """A table's fitted preprocessing.

    Numbers: the training median where missing, with an indicator column, then mean 0 and variance
    1. Text: one column for each category, the rare ones together, all zero for an unseen one.

    Args:
        frame: The training rows, as :func:`clean_table` returns them.
    """

    def __init__(self, frame: pd.DataFrame) -> None:
        # sklearn takes a second to import, and only tables need it
        from sklearn.compose import ColumnTransformer
        from sklearn.impute import SimpleImputer
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import OneHotEncoder, StandardScaler

        self.columns = list(frame.columns)
        self.numeric = [c for c in self.columns if pd.api.types.is_numeric_dtype(frame[c])]
        text = [c for c in self.columns if c not in self.numeric]
        impute = SimpleImputer(strategy="median", add_indicator=True, keep_empty_features=True)
        one_hot = OneHotEncoder(
            handle_unknown="ignore", min_frequency=RARE, max_categories=MOST, sparse_output=False
        )
        self._transformer: Any = ColumnTransformer(
            [
                ("number", make_pipeline(impute, StandardScaler()), self.numeric),
                ("category", one_hot, text),
            ],
            verbose_feature_names_out=False,
        )
        self._transformer.fit(self._filled(frame))
        self.feature_names = tuple(map(str, self._transformer.get_feature_names_out()))

    def __call__(self, frame: pd.DataFrame) -> Tensor:
        """Rows of a table with the same columns as float32 features ``(rows, features)``.

        Raises:
            DataError: a column is missing, or holds text where training held numbers.
        """
        by_name = {str(name): number for number, name in enumerate(frame.columns)}
        columns: dict[str, pd.Series] = {}
        for name in self.columns:
            if name not in by_name:
                raise DataError(f"the table lacks column '{name}'{did_you_mean(name, by_name)}")
            text = name not in self.numeric
            columns[name] = _clean(name, frame.iloc[:, by_name[name]], text=text)
            if not text and not pd.api.types.is_numeric_dtype(columns[name]):
                raise DataError(f"column '{name}' holds text, and held numbers in training")
        return self.encode(pd.DataFrame(columns))

    def encode(self, frame: pd.DataFrame) -> Tensor:
        """The same for rows that :func:`clean_table` returned."""
        features = self._transformer.transform(self._filled(frame))
        return torch.as_tensor(np.asarray(features, dtype=np.float32))

    def _filled(self, frame: pd.DataFrame) -> pd.DataFrame:
        text = {c: frame[c].fillna("missing") for c in self.columns if c not in self.numeric}
        return frame.assign(**text)
