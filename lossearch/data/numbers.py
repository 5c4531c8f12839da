"""Numbers as people write them: decimal commas, thousands separators, currency and percent signs.

How a column is written is decided once, from all its values; every later value is read that way.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd

# Words that people write among numbers where one is missing, in lower case.
MARKS = frozenset(
    (
        "?", "??", "*", "-", "--", "---", ".", "..", "...", "na", "n.a.", "n.a", "n/a", "#n/a",
        "<na>", "nan", "none", "null", "nil", "nd", "n.d.", "n/d", "k.a.", "missing", "unknown",
        "not available", "not applicable", "no data", "#null!", "#div/0!", "#value!", "#ref!",
        "#name?", "#num!",
    )
)  # fmt: skip

_UNITS = r"[$€£¥₹₽₩₺%]|USD|EUR|GBP|CHF|JPY|CNY|INR|CAD|AUD|SEK|NOK|DKK|PLN|BRL"
_SPACES = " \u00a0\u202f"  # a blank, a no-break one, a narrow no-break one
_SIGNS = "+−-"
_AROUND = re.compile(rf"([{_SIGNS}]?)\s*({_UNITS})?\s*(.*?)\s*({_UNITS})?")
_FEW = 100


@dataclass(frozen=True)
class Form:
    """How the numbers of a column are written.

    Attributes:
        decimal: The decimal sign, ``.`` or ``,``; the other one may part thousands.
        unit: A currency or percent sign that stands before or behind them, if any.
    """

    decimal: str = "."
    unit: str = ""

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        point = re.escape(self.decimal)
        pairs = r"(?:,\d\d)*" if self.decimal == "." else ""  # 12,34,567 as India writes it
        groups = "|".join(
            rf"{inner}(?:{sign}\d{{3}})+"
            for sign, inner in ((re.escape(self.other), pairs), (f"[{_SPACES}]", ""), ("['’]", ""))
        )
        whole = rf"[1-9]\d{{0,2}}(?:{groups})|\d+"
        return re.compile(rf"(?:(?:{whole})(?:{point}\d*)?|{point}\d+)(?:[eE][+-]?\d+)?")

    @property
    def other(self) -> str:
        return "," if self.decimal == "." else "."

    def value(self, text: str) -> float | None:
        """The number; ``None`` where the text is none of this form."""
        body, unit = _without_unit(text)
        if unit not in ("", self.unit):
            return None
        sign = body[: len(body) - len(body.lstrip(_SIGNS))]
        body = body[len(sign) :].strip()
        if len(sign) > 1 or not self._pattern.fullmatch(body):
            return None
        for part in (self.other, "'", "’", *_SPACES):
            body = body.replace(part, "")
        number = float(body.replace(self.decimal, "."))
        return -number if sign and sign != "+" else number


def described(form: Form, texts: Iterable[str]) -> str:
    """What is not plain in how these numbers are written, in words."""
    bodies, words = [_without_unit(text)[0] for text in texts], []
    if any(form.decimal in body for body in bodies) and form.decimal == ",":
        words.append("decimal comma")
    parts = {"'": "apostrophe", "’": "apostrophe", ",": "comma", ".": "point"}
    for sign in (form.other, "'", "’", *_SPACES):
        if any(sign in body for body in bodies):
            words.append(f"{parts.get(sign, 'blank')} between thousands")
    return ", ".join([*dict.fromkeys(words)] + ([f"in {form.unit}"] if form.unit else []))


def _without_unit(text: str) -> tuple[str, str]:
    """A text without its currency or percent sign, and that sign; (5), as accountants, is -5."""
    text = text.strip()
    if text.startswith("(") and text.endswith(")"):
        text = f"-{text[1:-1].strip()}"
    if text[-1:].isdigit() and text.lstrip("-")[:1].isdigit():
        return text, ""
    found = _AROUND.fullmatch(text)
    if found is None or (found[2] and found[4]):
        return text, ""
    return f"{found[1]}{found[3]}", found[2] or found[4] or ""


def forms_of(texts: Iterable[str]) -> list[Form]:
    """The forms in which all these texts are numbers: none, one, or both where they fit both."""
    texts = list(texts)
    if len(texts) > 2 * _FEW and not forms_of(texts[:_FEW]):
        return []  # before a million of them are looked at
    units = {unit for unit in (_without_unit(text)[1] for text in texts) if unit}
    if len(units) > 1 or not texts:
        return []
    unit = units.pop() if units else ""
    found = [Form(decimal, unit) for decimal in (".", ",")]
    return [form for form in found if all(form.value(text) is not None for text in texts)]


def is_number(text: str) -> bool:
    """Whether a text is a number in some form."""
    try:
        float(text)
    except ValueError:
        return bool(forms_of([text]))
    return True


def plain_numbers(text: pd.Series) -> pd.Series | None:
    """Text as numbers where all of it is plainly numeric, else ``None``."""
    try:
        return pd.Series(pd.to_numeric(text))
    except (ValueError, TypeError):
        return None


def read_numbers(text: pd.Series, form: Form, marks: frozenset[str] = MARKS) -> pd.Series:
    """Text as float64; NaN where it is missing or one of the marks.

    Raises:
        ValueError: with the first value that is no number of this form.
    """
    values: dict[object, float] = {}
    for value in pd.unique(text.dropna()):
        number = np.nan if str(value).strip().casefold() in marks else form.value(str(value))
        if number is None:
            raise ValueError(str(value))
        values[value] = number
    return text.map(values).astype("float64")
