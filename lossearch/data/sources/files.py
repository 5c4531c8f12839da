"""Tables and arrays in files: CSV, Parquet, NPZ."""

from __future__ import annotations

import csv as csv_module
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from lossearch.components import dataset
from lossearch.data.columns import Table, take_label
from lossearch.data.dataset import Dataset
from lossearch.data.sources.layout import layout_of, not_decoded
from lossearch.data.sources.paths import existing
from lossearch.errors import DataError, unknown

UNKNOWN = ("?", " ?")  # missing, beside what pandas takes for it
_SOME = 10_000  # rows that show whether a table has decimal commas
_NO_LABEL = ("", " ", "nan", "NaN")  # what is missing in the label column


@dataset()
def csv(
    *,
    path: str = "",
    label: str | int = "last",
    header: bool | None = None,
    separator: str | None = None,
    missing: str | float | tuple[str | float, ...] = (),
    encoding: str | None = None,
) -> Dataset:
    """A table in a CSV file.

    Lines of title or comment before the table, and a column without a name or a value behind the
    last separator, are left out with a note.

    Args:
        path: The file; it may be compressed. Missing values are empty, ``?``, ``NA`` or ``NaN``,
            and words such as ``n.a.`` among numbers; of the label only empty, ``?`` and ``NaN``.
        label: Name of the label column, ``last``, or, without a header, its number from 0.
        header: Whether the first line holds the names; seen from the file where left out.
        separator: Between the columns; seen from the file where left out.
        missing: A further word or number, or several, that mean that a value is missing.
        encoding: Of the file, such as ``cp1252`` or ``utf-16``; UTF-8 where left out, and UTF-16
            where the file begins with its mark.

    Returns:
        A table. Two classes are a binary task, whose positive class is the larger of 0/1 and
        -1/1, else the rarer one.

    Raises:
        DataError: no such file or column, an empty file, lines of unequal length, or text in
            another encoding.
    """
    file = existing(path, "csv")
    found = layout_of(file, encoding, separator, header)
    marks = [*UNKNOWN, *(missing if isinstance(missing, tuple) else (missing,))]

    def read(**options: Any) -> pd.DataFrame:
        given = {
            "header": None,
            "names": range(len(found.names)),
            "skiprows": found.before,
            "sep": found.separator,
            "engine": "python" if len(found.separator) > 1 else "c",
            "na_values": marks,
            "skipinitialspace": True,
            "encoding": found.encoding,
        }
        if given["engine"] == "c":
            given["low_memory"] = False  # in pieces, one column can come as text and as numbers
        return pd.read_csv(file, **given | options)

    try:
        table = read()
        notes = [*found.notes, *_drop_void(table, found.names)]
        names = [found.names[number] for number in table.columns]
        place = _place(names, label, file, named=found.header)
        number = table.columns[place]
        floats = table.select_dtypes("float").columns
        rest = table.drop(columns=[number, *floats])
        if len(floats) and Table(rest.head(_SOME)).commas:
            table[floats] = read(dtype=str)[floats]  # 1.234 may be a thousand
        if bool(table[number].isna().any()):  # None may be a class
            empty = [*_NO_LABEL, *marks]
            table[number] = read(usecols=[number], na_values=empty, keep_default_na=False)
    except pd.errors.EmptyDataError:
        raise DataError(f"{file} holds no rows") from None
    except UnicodeDecodeError as error:
        raise not_decoded(file, found.encoding, error) from None
    except (pd.errors.ParserError, csv_module.Error) as error:
        raise DataError(
            f"{file} is not a table: {str(error).strip()}. Give 'separator' if it is not "
            f"{found.separator!r}"
        ) from None
    table.columns = names
    return _labelled(table, names[place], file, notes)


def _drop_void(table: pd.DataFrame, names: Sequence[str]) -> list[str]:
    """Leave out what stands behind a separator at the end of each line, and say so."""
    void = 0
    while table.shape[1] > 1 and table.iloc[:, -1].isna().all() and (
        names[table.shape[1] - 1] in (f"Unnamed: {table.shape[1] - 1}", str(table.shape[1] - 1))
    ):  # fmt: skip
        table.drop(columns=table.columns[-1], inplace=True)
        void += 1
    return ["an empty column behind the last separator of each line was left out"] * bool(void)


@dataset()
def parquet(*, path: str = "", label: str | int = "last") -> Dataset:
    """A table in a Parquet file.

    Args:
        path: The file.
        label: Name of the label column, or ``last``.

    Returns:
        A table, as of dataset ``csv``.

    Raises:
        DataError: no such file or column, or not a Parquet file.
    """
    file = existing(path, "parquet")
    try:
        table = pd.read_parquet(file)
    except (OSError, ValueError) as error:  # pyarrow's own errors are among them
        raise DataError(f"{file} is not a readable Parquet file: {error}") from None
    names = list(map(str, table.columns))
    table.columns = names
    return _labelled(table, names[_place(names, label, file, named=True)], file)


def _place(names: list[str], label: str | int, file: Path, *, named: bool) -> int:
    """Which of the columns is the label.

    Raises:
        DataError: there is no such column, or no other.
    """
    if len(names) < 2:
        raise DataError(
            f"{file} has one column, '{names[0]}'; a label and at least one feature are wanted. "
            "Is it another 'separator'?"
        )
    if label == "last" and "last" not in names:
        return len(names) - 1
    if str(label) in names:
        return names.index(str(label))
    if not named:
        raise DataError(
            f"{file}: there is no column '{label}'. The file has no header: the label is 'last' "
            f"or a number from 0 to {len(names) - 1}"
        )
    raise DataError(f"{file}: {unknown('column', str(label), names)}")


def _labelled(table: pd.DataFrame, label: str, file: Path, notes: Iterable[str] = ()) -> Dataset:
    """The table without its label column, and that column."""
    if table.empty:
        raise DataError(f"{file} holds no rows")
    features, targets, more = take_label(table, label)
    return Dataset(features, targets, notes=(*notes, *more))


@dataset()
def npz(*, path: str = "", inputs: str = "X", targets: str = "y") -> Dataset:
    """Arrays in a NumPy ``.npz`` file, used as they are.

    Args:
        path: The file.
        inputs: Name of the array of inputs, ``(samples, ...)``.
        targets: Name of the array of labels, ``(samples,)`` or ``(samples, labels)``.

    Raises:
        DataError: no such file or array, or arrays that would need unpickling.
    """
    file = existing(path, "npz")
    if not zipfile.is_zipfile(file):
        raise DataError(f"{file} is not an .npz file; save both arrays with numpy.savez")
    try:
        with np.load(file, allow_pickle=False) as arrays:
            for name in (inputs, targets):
                if name not in arrays.files:
                    raise DataError(f"{file}: {unknown('array', name, arrays.files)}")
            return Dataset(arrays[inputs], arrays[targets])
    except (OSError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{file} is not a readable .npz file: {error}") from None
    except ValueError as error:
        if isinstance(error, DataError):
            raise
        raise DataError(
            f"{file} holds arrays of Python objects, which are not unpickled; save arrays of "
            f"numbers ({error})"
        ) from None
