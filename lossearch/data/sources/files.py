"""Tables and arrays in files: CSV, Parquet, NPZ."""

from __future__ import annotations

import csv as csv_module
import itertools
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd

from lossearch.components import dataset
from lossearch.data.dataset import Dataset
from lossearch.data.sources.paths import existing
from lossearch.errors import DataError, unknown

UNKNOWN = ["?", " ?"]  # missing, beside what pandas takes for it
SEPARATORS = ("\t", ";", "|", ",")


@dataset()
def csv(
    *,
    path: str = "",
    label: str | int = "last",
    header: bool | None = None,
    separator: str | None = None,
) -> Dataset:
    """A table in a CSV file.

    Args:
        path: The file; it may be compressed. Missing values are empty, ``?``, ``NA`` or ``NaN``.
        label: Name of the label column, ``last``, or, without a header, its number from 0.
        header: Whether the first line holds the names; seen from the file where left out.
        separator: Between the columns; seen from the file where left out.

    Returns:
        A table. Two classes are a binary task, whose positive class is the larger of 0/1 and
        -1/1, else the rarer one.

    Raises:
        DataError: no such file or column, an empty file, or lines of unequal length.
    """
    file = existing(path, "csv")
    try:
        start = pd.read_csv(
            file, header=None, sep="\0", engine="python", nrows=100, quoting=3, dtype=str,
            encoding="utf-8-sig", skip_blank_lines=True,
        )[0].tolist()  # fmt: skip
        separator = separator or _separator(start)
        if header is None:
            header = _has_header(start, separator)
        table = pd.read_csv(
            file,
            header=0 if header else None,
            sep=separator,
            engine="python" if len(separator) > 1 else "c",
            na_values=UNKNOWN,
            skipinitialspace=True,
            encoding="utf-8-sig",
        )
    except pd.errors.EmptyDataError:
        raise DataError(f"{file} is empty") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{file} is not UTF-8 ({error}); save it as UTF-8") from None
    except (pd.errors.ParserError, csv_module.Error) as error:
        raise DataError(
            f"{file} is not a table: {str(error).strip()}. Give 'separator' if it is not "
            f"{separator!r}"
        ) from None
    table.columns = [str(name).strip().strip("'\"") for name in table.columns]
    return _labelled(table, label, file, named=bool(header))


def _separator(lines: list[str]) -> str:
    """The first separator that cuts all these lines into one number of columns above 1."""
    for separator in SEPARATORS:
        widths = {len(cells) for cells in _cells(lines, separator)}
        if len(widths) == 1 and widths.pop() > 1:
            return separator
    return ","


def _cells(lines: list[str], separator: str) -> list[list[str]]:
    if len(separator) > 1:  # a regular expression, as pandas reads it
        return [line.split() for line in lines]
    return list(csv_module.reader(lines, delimiter=separator, skipinitialspace=True))


def _has_header(lines: list[str], separator: str) -> bool:
    """No number in the first line, and a column of numbers below, or no first cell seen again."""
    first, *rest = _cells(lines, separator)
    if any(_is_number(cell) or not cell.strip() for cell in first):
        return False
    columns = [set(column) for column in itertools.zip_longest(*rest, fillvalue="")]
    if any(column and all(_is_number(c) for c in column - {"", "?"}) for column in columns):
        return True
    return not any(cell in column for cell, column in zip(first, columns, strict=False))


def _is_number(cell: str) -> bool:
    try:
        float(cell.strip().strip("'\""))
    except ValueError:
        return False
    return True


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
    table.columns = [str(name) for name in table.columns]
    return _labelled(table, label, file, named=True)


def _labelled(table: pd.DataFrame, label: str | int, file: Path, *, named: bool) -> Dataset:
    """The table without its label column, and that column."""
    if table.empty:
        raise DataError(f"{file} holds no rows")
    if table.shape[1] < 2:
        raise DataError(
            f"{file} has one column, '{table.columns[0]}'; a label and at least one feature are "
            "wanted. Is it another 'separator'?"
        )
    columns = list(table.columns)
    name = columns[-1] if label == "last" and "last" not in columns else str(label)
    if name not in columns:
        if not named:
            raise DataError(
                f"{file}: there is no column '{name}'. The file has no header: the label is "
                f"'last' or a number from 0 to {len(columns) - 1}"
            )
        raise DataError(f"{file}: {unknown('column', name, columns)}")
    return Dataset(table.drop(columns=name), table[name])


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
