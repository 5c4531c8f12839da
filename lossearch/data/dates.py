"""Dates and times that stand as text, read by one format for a whole column."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import pandas as pd

from lossearch.data.numbers import MARKS

ISO = "ISO8601"
_DAYS = (
    "%Y/%m/%d", "%d.%m.%Y", "%d.%m.%y", "%m/%d/%Y", "%d/%m/%Y", "%m/%d/%y", "%d/%m/%y",
    "%m-%d-%Y", "%d-%m-%Y", "%d %b %Y", "%d-%b-%Y", "%d-%b-%y", "%d %B %Y", "%b %d, %Y",
    "%B %d, %Y", "%b %d %Y",
)  # fmt: skip
_TIMES = ("", " %H:%M", " %H:%M:%S", " %I:%M %p", " %I:%M:%S %p")
_ALONE = ("%b %Y", "%B %Y", "%Y-%m", "%m/%Y", "%H:%M", "%H:%M:%S")
_ISO = re.compile(r"\d{4}-\d\d-\d\d([T ]\d\d:?\d\d.*)?")
_FEW = 20


def format_of(texts: Sequence[str]) -> tuple[str | None, str | None]:
    """The format in which all these texts are dates, if there is one, and one that is doubtful.

    Month and day that cannot be told apart are read as month/day.
    """
    if not texts or not all(any(c.isdigit() for c in text) for text in texts[:_FEW]):
        return None, None
    iso = all(map(_ISO.fullmatch, texts))
    formats = [ISO] if iso else [day + time for day in _DAYS for time in _TIMES] + [*_ALONE]
    for part in (texts[:_FEW], texts):
        formats = [each for each in formats if _parsed(part, each).notna().all()]
    if not formats:
        return None, None
    differs = _parsed(texts, formats[0]) != _parsed(texts, formats[-1])
    return formats[0], texts[int(differs.argmax())] if differs.any() else None


def read_dates(text: pd.Series, form: str) -> pd.Series:
    """Text as days since 1970; NaN where it is missing or a word that says so.

    Raises:
        ValueError: with the first value that is no date of this format.
    """
    values = [v for v in pd.unique(text.dropna()) if str(v).strip().casefold() not in MARKS]
    parsed = _parsed(list(map(str, values)), form)
    for value, found in zip(values, parsed, strict=True):
        if pd.isna(found):
            raise ValueError(str(value))
    return text.map(dict(zip(values, days(parsed), strict=True))).astype("float64")


def days(dates: pd.Series) -> pd.Series:
    """Days since 1970 as float64, whatever the unit and the time zone of these timestamps."""
    if dates.dt.tz is not None:
        dates = dates.dt.tz_convert("UTC").dt.tz_localize(None)
    a_day = 86400 * {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}[dates.dt.unit]
    return (dates.astype("int64") / a_day).where(dates.notna(), np.nan)


def in_words(form: str) -> str:
    """``day.month.year`` for ``%d.%m.%Y``."""
    words = {"Y": "year", "y": "year", "m": "month", "b": "month", "B": "month", "d": "day"}
    if form == ISO:
        return "year-month-day"
    return re.sub(r"%(\w)", lambda m: words.get(m[1], m[1]), form)


def _parsed(texts: Sequence[str], form: str) -> pd.Series:
    return pd.Series(pd.to_datetime(pd.Series(texts, dtype=object), format=form, errors="coerce",
                                    utc=form == ISO))  # fmt: skip
