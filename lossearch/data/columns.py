"""A table's columns: what each of them holds, decided once from all its values.

A column is numbers, dates or categories. Whatever is read later, a test part or new rows, is read
by the same decision, or refused by the column's name.
"""

from __future__ import annotations

import datetime
import decimal
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import pandas as pd

from lossearch.data import dates
from lossearch.data.labels import tidy_text
from lossearch.data.numbers import (
    MARKS,
    Form,
    described,
    forms_of,
    is_number,
    plain_numbers,
    read_numbers,
)
from lossearch.data.reading import listed
from lossearch.errors import DataError, did_you_mean

_UNNAMED = re.compile(r"(Unnamed: \d+(_level_\d+)?)?")
_COUNTING = re.compile(r"#|nr|no|index|row|row.?(id|names?|num(ber)?)|(.*[\W_])?id", re.IGNORECASE)
_CAMEL = re.compile(r".*[a-z]I[dD]")
_LONG = 10  # rows from which numbers that count them are no accident
_MANY = 1000  # values of a category that are looked at for numbers


@dataclass(frozen=True)
class Column:
    """How one column is read.

    Attributes:
        name: Its name, which no other column of the table has.
        kind: What it holds.
        form: How its numbers are written, where they are text that is not plainly numeric.
        date: The format of its dates, where they are text.
        how: What a person should know of it.
    """

    name: str
    kind: Literal["number", "date", "category"]
    form: Form | None = None
    date: str | None = None
    how: str = ""

    def also(self, how: str) -> Column:
        """The same with more that a person should know, which comes first."""
        return replace(self, how=f"{how}; {self.how}" if self.how else how)

    def read(self, given: pd.Series, table: str = "the table") -> pd.Series:
        """Values as float64 (a date: days since 1970) or as text, both with missing ones.

        Raises:
            DataError: a value is of another kind, or infinite.
        """
        column = _native(self.name, given)
        if self.kind == "category":
            return tidy_text(column).map(str, na_action="ignore").astype(object)
        numbers = self._numbers(column, table)
        infinite = int(np.isinf(numbers.to_numpy()).sum())
        if infinite:
            raise DataError(
                f"column '{self.name}' holds {infinite} infinite values; replace them, or leave "
                "them empty to have them imputed"
            )
        return numbers

    def _numbers(self, column: pd.Series, table: str) -> pd.Series:
        held = _held(column)
        if held == "number" and (self.kind == held or column.isna().all()):
            return column.astype("float64")
        if held == "date" and self.kind == held:
            return dates.days(column)
        text = tidy_text(column)
        try:
            if self.date is not None and held == "category":
                return dates.read_dates(text, self.date)
            if self.form is None and (plain := plain_numbers(text)) is not None:
                return plain.astype("float64")
            return read_numbers(text, self.form or Form())
        except ValueError as error:
            raise DataError(
                f"column '{self.name}' of {table} holds '{error}', and held {self.kind}s in "
                "training"
            ) from None


class Table:
    """How a table is read.

    Args:
        frame: The table that decides.

    Attributes:
        columns: Those that are read, in order.
        index: Those that are none but count the rows, and why.
        commas: Whether some of its numbers have a decimal comma.
        names: All of them; of two of one name the second has a number behind it.

    Raises:
        DataError: a column of neither numbers nor text nor dates.
    """

    def __init__(self, frame: pd.DataFrame) -> None:
        self.names = unique_names(frame.columns)
        self.columns: list[Column] = []
        self.index: dict[str, str] = {}
        given = [frame.iloc[:, number] for number in range(len(self.names))]
        found = [_decide(name, column) for name, column in zip(self.names, given, strict=True)]
        self.commas = any(len(forms) == 1 and forms[0].decimal == "," for _, forms, _ in found)
        for number, (column, forms, texts) in enumerate(found):
            column = _written(column, forms, texts, self.commas)
            if column.name != str(frame.columns[number]):
                column = column.also(f"a second column of the name '{frame.columns[number]}'")
            if column.kind == "number" and column.form is None:
                values = column.read(given[number]).to_numpy()
                why = _index(column.name, number, values)
                if why:
                    self.index[column.name] = why
                    continue
                if len(values) >= _LONG and _counts(values):
                    how = "it counts the rows, and gives the label away where these are sorted"
                    column = column.also(how)
            self.columns.append(column)

    def read(self, frame: pd.DataFrame, table: str = "the table") -> pd.DataFrame:
        """The table with its columns read; those that were not there are left out.

        Raises:
            DataError: a column is missing, or its values are of another kind than they were.
        """
        by_name = {name: number for number, name in enumerate(unique_names(frame.columns))}
        columns: dict[str, pd.Series] = {}
        for column in self.columns:
            if column.name not in by_name:
                hint = did_you_mean(column.name, by_name)
                raise DataError(f"{table} lacks column '{column.name}'{hint}")
            values = column.read(frame.iloc[:, by_name[column.name]], table)
            columns[column.name] = values.reset_index(drop=True)
        return pd.DataFrame(columns, index=pd.RangeIndex(len(frame)))


def take_label(frame: pd.DataFrame, name: Any) -> tuple[pd.DataFrame, pd.Series, tuple[str, ...]]:
    """A table without its label column, that column, and what a person should know of it.

    Numbers in text are read as those of the other columns; a second column of the name goes.

    Raises:
        DataError: several columns have this name, and they differ.
    """
    places = np.flatnonzero([column == name for column in frame.columns])
    features, label = frame.drop(columns=name), frame.iloc[:, places[0]]
    notes: list[str] = []
    for other in places[1:]:
        if not frame.iloc[:, other].astype(str).equals(label.astype(str)):
            raise DataError(
                f"{len(places)} columns are named '{name}', and they differ; give the one that is "
                "the label a name of its own"
            )
        notes.append(f"a second column '{name}', the same as the label, was dropped")
    if len(label) and all(isinstance(value, str) for value in label.dropna()):
        column, forms, texts = _decide(str(name), label)
        doubtful = len(forms) == 2 and any("," in text or "." in text for text in texts)
        column = _written(column, forms, texts, doubtful and Table(features).commas)
        if column.form is not None:
            label = column.read(label)
            notes.append(f"label '{name}': {column.how}")
    return features, label, tuple(notes)


def unique_names(names: Iterable[Any]) -> list[str]:
    """Names as text, each once: the second ``x`` is ``x.1``, as where pandas reads a file."""
    given = list(map(str, names))
    found: dict[str, None] = {}
    for name in given:
        new, times = name, 0
        while new in found or (times and new in given):
            times += 1
            new = f"{name}.{times}"
        found[new] = None
    return list(found)


def _decide(name: str, given: pd.Series) -> tuple[Column, list[Form], list[str]]:
    """What a column holds; of numbers in text, the forms that they may have, and the texts."""
    column = _native(name, given)
    held = _held(column)
    if held != "category" or isinstance(given.dtype, pd.CategoricalDtype):
        return Column(name, held), [], []
    text = tidy_text(column)
    counts = text.dropna().map(str).value_counts(sort=False)
    values: list[str] = list(counts.index)
    if plain_numbers(text) is not None:
        dotted = any("." in value for value in values)
        return Column(name, "number"), forms_of(values) if dotted else [], values
    marks = [value for value in values if value.casefold() in MARKS]
    rest = [value for value in values if value not in marks]
    forms = forms_of(rest)
    how = ", ".join(f"{counts[mark]} times '{mark}' read as missing" for mark in marks)
    if forms:
        return Column(name, "number", how=how), forms, rest
    date, doubtful = dates.format_of(rest)
    if date is None:
        return Column(name, "category", how=_nearly_numbers(counts)), [], []
    words = f"a date, {dates.in_words(date)}"
    if doubtful is not None:
        words += f", though {doubtful} could be day/month; write 2024-01-31 to be sure"
    return Column(name, "date", date=date, how=how).also(words), [], []


def _written(column: Column, forms: list[Form], texts: list[str], commas: bool) -> Column:
    """A column of numbers in text with its form; where two fit, that of the table's others."""
    if not forms:
        return column
    form = next((f for f in forms if (f.decimal == ",") == commas), forms[0])
    how = described(form, texts)
    other = next((f for f in forms if f != form), None)
    if other is not None and how:
        doubtful = next((t for t in texts if form.value(t) != other.value(t)), None)
        how += f": '{doubtful}' is {form.value(doubtful):g}" if doubtful is not None else ""
    if form == Form() and not how and not column.how:
        return column  # plain numbers
    return replace(column.also(how) if how else column, form=form)


def _nearly_numbers(counts: pd.Series) -> str:
    """Why a column that is nearly all numbers is none."""
    some = counts.iloc[:_MANY]
    words = [value for value in some.index if not is_number(value)]
    if not words or some[words].sum() > 0.2 * some.sum() or len(words) > 3:
        return ""
    return (
        f"a category, for beside numbers it holds {listed(words)}; where that means missing, say "
        f"missing: [{', '.join(words)}]"
    )


def _index(name: str, number: int, values: np.ndarray) -> str:
    """Why a column of numbers is an index rather than a feature, if it is one."""
    if len(values) < 3:
        return ""
    if number == 0 and _UNNAMED.fullmatch(name):
        different = len(np.unique(values)) == len(values)
        if different and (values == np.round(values)).all():
            return "an index: it has no name, and another whole number in each row"
    named = _COUNTING.fullmatch(name.strip()) or _CAMEL.fullmatch(name)
    if (named or (number == 0 and name == "0")) and _counts(values):
        return "an index: it counts the rows"
    return ""


def _counts(values: np.ndarray) -> bool:
    rows = np.arange(len(values))
    return np.array_equal(values, rows) or np.array_equal(values, rows + 1)


def _held(column: pd.Series) -> Literal["number", "date", "category"]:
    if pd.api.types.is_datetime64_any_dtype(column):
        return "date"
    return "number" if pd.api.types.is_numeric_dtype(column) else "category"


def _native(name: str, column: pd.Series) -> pd.Series:
    """A column that can be computed with.

    Raises:
        DataError: it holds neither numbers nor text nor dates.
    """
    kind = column.dtype
    if pd.api.types.is_complex_dtype(column):
        raise DataError(f"column '{name}' holds complex numbers; split it into two columns")
    if isinstance(kind, np.dtype) and not kind.isnative:
        return column.astype(kind.newbyteorder("="))
    if pd.api.types.is_timedelta64_dtype(column):
        return column.dt.total_seconds()
    if _held(column) != "category" or kind == "str" or kind == "string":
        return column
    column = column.astype(object)
    there = column[column.notna()].tolist()
    known = (str, int, float, np.generic, decimal.Decimal, datetime.date)  # also a datetime
    odd = next((value for value in there if not isinstance(value, known)), None)
    if odd is not None:
        many = isinstance(odd, (list, tuple, np.ndarray, dict, set))
        remedy = "Give each entry a column of its own" if many else "Convert it"
        what = "list" if isinstance(odd, (tuple, np.ndarray)) else type(odd).__name__
        raise DataError(
            f"column '{name}' holds {what} objects; only numbers, text and dates "
            f"can be features. {remedy}, or leave it out"
        )
    if not there or not all(isinstance(value, datetime.date) for value in there):
        return column
    try:
        zoned = any(getattr(value, "tzinfo", None) is not None for value in there)
        return pd.Series(pd.to_datetime(column, utc=zoned), index=column.index)
    except (ValueError, OverflowError) as error:
        raise DataError(f"column '{name}' holds dates out of range: {error}") from None
