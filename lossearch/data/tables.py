"""Tables: from a data frame of any columns to float32 features, fitted on the training split."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from lossearch.data.columns import Column, Table
from lossearch.data.reading import ColumnRead, Reading
from lossearch.errors import DataError

RARE = 10  # a category seen less often in training joins the others of its kind
MOST = 100  # categories of one column, the rarest together


class TableEncoder:
    """A table's fitted preprocessing.

    Numbers and dates: the training median where missing, with an indicator column, then mean 0
    and variance 1. Text: one column for each category, the rare ones together, all zero for an
    unseen one. A column that is the same in each training row carries nothing and is dropped.

    Args:
        table: How its columns are read.
        rows: The training rows, as ``table.read`` returns them.

    Attributes:
        columns: The columns that are used.
        dropped: Those that are not, and why.
        numeric: Those of ``columns`` that are numbers or dates.
        feature_names: Names of the features.

    Raises:
        DataError: no column carries anything.
    """

    def __init__(self, table: Table, rows: pd.DataFrame) -> None:
        # sklearn takes a second to import, and only tables need it
        from sklearn.compose import ColumnTransformer
        from sklearn.impute import SimpleImputer
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import OneHotEncoder, StandardScaler

        self.table = table
        why = {c.name: _carries_nothing(pd.Series(rows[c.name]), c) for c in table.columns}
        self.dropped = {**table.index, **{name: reason for name, reason in why.items() if reason}}
        used = [column for column in table.columns if not why[column.name]]
        if not used:
            reasons = "; ".join(f"'{name}': {why}" for name, why in [*self.dropped.items()][:5])
            raise DataError(
                f"the table has no feature column with anything in it ({reasons or 'no column'})"
            )
        self.columns = [column.name for column in used]
        self.numeric = [column.name for column in used if column.kind != "category"]
        text = [name for name in self.columns if name not in self.numeric]
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
        self._transformer.fit(self._filled(rows))
        self.feature_names = tuple(map(str, self._transformer.get_feature_names_out()))
        self._rare: dict[str, int] = {}
        if text:
            rare = self._transformer.named_transformers_["category"].infrequent_categories_
            self._rare = {c: len(of) for c, of in zip(text, rare, strict=True) if of is not None}

    def __call__(self, frame: pd.DataFrame, table: str = "the table") -> Tensor:
        """Rows of a table with the same columns as float32 features ``(rows, features)``.

        Raises:
            DataError: a column is missing, or holds text where training held numbers.
        """
        return self.encode(self.table.read(frame, table))

    def encode(self, rows: pd.DataFrame) -> Tensor:
        """The same for rows that ``table.read`` returned."""
        features = self._transformer.transform(self._filled(rows))
        return torch.as_tensor(np.asarray(features, dtype=np.float32))

    def reading(self, read: pd.DataFrame) -> Reading:
        """What was read: all rows, as ``table.read`` returned them."""
        found = {column.name: column for column in self.table.columns}
        return Reading(
            len(read),
            tuple(
                self._read(found[name], pd.Series(read[name]))
                if name in found
                else ColumnRead(name, "number", 0, len(read), dropped=self.dropped[name])
                for name in self.table.names
            ),
        )

    def _read(self, column: Column, values: pd.Series) -> ColumnRead:
        return ColumnRead(
            column.name,
            column.kind,
            int(values.isna().sum()),
            int(values.nunique()),
            column.how,
            self._rare.get(column.name, 0),
            self.dropped.get(column.name, ""),
        )

    def _filled(self, rows: pd.DataFrame) -> pd.DataFrame:
        text = {c: rows[c].fillna("missing") for c in self.columns if c not in self.numeric}
        return rows[self.columns].assign(**text)


def _carries_nothing(values: pd.Series, column: Column) -> str:
    """Why a column of the training rows teaches nothing, if it does not."""
    if values.isna().all():
        return "empty in the training rows"
    counts = values.value_counts(dropna=False)
    if len(counts) == 1:
        return "the same in each training row"
    if column.kind == "category" and counts.iloc[0] < RARE:
        return f"text that is nearly all different: no value is in {RARE} training rows"
    return ""
