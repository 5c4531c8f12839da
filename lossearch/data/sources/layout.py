"""How a text file holds a table: its encoding, lines before it, separator and header.

Seen from its first lines; what is not plain is noted, what cannot be told is refused.
"""

from __future__ import annotations

import codecs
import csv as csv_module
import io
import itertools
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from pandas.io.common import get_handle

from lossearch.data.dates import format_of
from lossearch.data.numbers import MARKS, is_number
from lossearch.errors import DataError, did_you_mean

SEPARATORS = ("\t", ";", "|", ",")
Cells = list[list[str]]
_HEAD = 4 * 2**20  # bytes that are looked at
_LINES = 100
_BEFORE = 20  # lines of title and comment, at most
_COMMENTS = ("#", "%", "//")
_MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
_KNOWN = ("utf-8", "utf-16", "latin-1", "cp1252", "cp1250", "cp1251", "gbk", "shift_jis", "big5")


@dataclass(frozen=True)
class Layout:
    """What the first lines say.

    Attributes:
        encoding: Of the file's text.
        separator: Between the columns; of several characters, a regular expression.
        before: Lines before the first row.
        header: Whether one of them holds names.
        names: A name for each column.
        notes: What was guessed, a sentence each.
    """

    encoding: str
    separator: str
    before: int
    header: bool
    names: tuple[str, ...]
    notes: tuple[str, ...]


def layout_of(
    file: Path, encoding: str | None, separator: str | None, header: bool | None
) -> Layout:
    """The layout of a file, as far as it is not given.

    Raises:
        DataError: the file is empty, or its encoding has to be given, or is not what was given.
    """
    head = _head(file)
    encoding, notes = _encoding(file, head, encoding)
    lines = _lines(file, head, encoding)
    if not any(line.strip() for line in lines):
        raise DataError(f"{file} is empty")
    if separator is None:
        separator = _separator([line for line in lines if line.strip()])
    numbers = [number for number, line in enumerate(lines) if line.strip()]
    table = [_cells(lines[number], separator) for number in numbers]
    start = _start(table)
    if start:
        first = lines[numbers[0]].strip()
        shown = first if len(first) <= 60 else first[:59] + "…"
        what = "1 line" if start == 1 else f"{start} lines"
        notes.append(f"{what} before the table left out: '{shown}'")
    table = table[start:]
    if header is None:
        header, doubt = _has_header(table)
        notes += [doubt] if doubt else []
    before = numbers[start] + header
    return Layout(encoding, separator, before, header, _names(table, header), tuple(notes))


def _head(file: Path) -> bytes:
    with get_handle(file, "rb", compression="infer", is_text=False) as opened:
        return opened.handle.read(_HEAD)  # pyright: ignore


def _encoding(file: Path, head: bytes, given: str | None) -> tuple[str, list[str]]:
    if given is not None:
        try:
            name = codecs.lookup(given).name
        except LookupError:
            raise DataError(
                f"there is no encoding '{given}'{did_you_mean(given, _KNOWN) or '.'} "
                f"Common ones: {', '.join(_KNOWN)}"
            ) from None
        return ("utf-8-sig" if name == "utf-8" else name), []
    for mark, name in _MARKS.items():
        if head.startswith(mark):
            return name, [f"read as {name.upper()}, which it begins with"] * (name == "utf-16")
    if head.startswith(b"PK\3\4"):
        raise DataError(f"{file} is an Excel file or an archive; save its table as CSV")
    if b"\0" in head[:1000]:
        raise DataError(
            f"{file} is not UTF-8 text; where it is a table in UTF-16, say encoding: utf-16-le"
        )
    return "utf-8-sig", []


def _lines(file: Path, head: bytes, encoding: str) -> list[str]:
    try:
        text = codecs.getincrementaldecoder(encoding)().decode(head, final=len(head) < _HEAD)
    except UnicodeDecodeError as error:
        raise not_decoded(file, encoding, error) from None
    lines = [
        line.rstrip("\r\n") for line in io.StringIO(text.removeprefix("\ufeff"), newline=None)
    ]
    if len(head) == _HEAD and len(lines) > 1:
        lines.pop()  # it is cut
    return lines[:_LINES]


def not_decoded(file: Path, encoding: str, error: UnicodeDecodeError) -> DataError:
    """The refusal of a file that another encoding is needed for."""
    western = encoding.startswith("utf-8")
    return DataError(
        f"{file} is not {'UTF-8' if western else encoding} ({error.reason} at byte "
        f"{error.start}); say which 'encoding' it has"
        + (" (in Western Europe cp1252 or latin-1)" if western else "")
        + ", or save it as UTF-8"
    )


def _cells(line: str, separator: str) -> list[str]:
    if not line.strip():
        return []
    if len(separator) > 1:  # a regular expression, as pandas reads it
        return re.split(separator, line.strip())
    try:
        return next(csv_module.reader([line], delimiter=separator, skipinitialspace=True), [])
    except csv_module.Error:  # a cell of more than 128 kB
        return line.split(separator)


def _separator(lines: list[str]) -> str:
    """What cuts most of these lines into one number of columns above 1; of equal ones the first.

    A title and comments before the table are among the few.
    """

    def fitting(separator: str) -> int:
        widths = Counter(len(_cells(line, separator)) for line in lines)
        return max((count for width, count in widths.items() if width > 1), default=0)

    found = max(SEPARATORS, key=fitting)
    return found if fitting(found) else ","


def _start(table: Cells) -> int:
    """How many lines of title and comment stand before the table."""
    usual = _usual(table[len(table) // 2 :])
    for start, cells in enumerate(table[: min(_BEFORE, len(table) - 1)]):
        below = table[start + 1 :]
        if len(cells) == usual or usual == 1:
            rest = list(itertools.dropwhile(_is_comment, below))
            if not (_is_comment(cells) and rest and _evident(rest)):
                return start
        elif _is_comment(cells) or len(cells) == 1:
            continue
        elif not all(len(other) == usual for other in below) or len(below) < 2:
            return start  # lines of unequal length, which reading refuses
        elif abs(len(cells) - usual) == 1 and not _evident(below):
            return start  # a header without a name for the index, or rows that end in a separator
    return 0


def _is_comment(cells: list[str]) -> bool:
    return cells[0].lstrip().startswith(_COMMENTS)


def _usual(table: Cells) -> int:
    return Counter(map(len, table)).most_common(1)[0][0] if table else 0


def _names(table: Cells, header: bool) -> tuple[str, ...]:
    """A name for each column; as many as rows have cells, empty ones at their ends included."""
    first, rest = _tidy(table[0]), table[1:]
    usual = _usual(rest or table)
    ending = [len(cells) for cells in rest if not any(cell.strip() for cell in cells[usual:])]
    width = max(len(first), usual, *ending) if ending else max(len(first), usual)
    if not header:
        return tuple(map(str, range(width)))
    if len(first) == usual - 1 and any(cells[-1].strip() for cells in rest if len(cells) == usual):
        first = ["", *first]  # as R writes names of rows
    first[0] = first[0].lstrip("#% ") or first[0]
    first += [""] * (width - len(first))
    return tuple(name or f"Unnamed: {number}" for number, name in enumerate(first))


def _has_header(table: Cells) -> tuple[bool, str]:
    """Whether the first line holds names, and what a person should know of the decision.

    It does where some column is a word over numbers or dates, or where none of its words is seen
    again. Numbers in it are names only where they count up, as those of a frame without names.
    """
    first, rest = _tidy(table[0]), table[1:]
    numbers = [cell for cell in first if is_number(cell)]
    counting = all(map(str.isdigit, numbers)) and all(
        int(later) > int(earlier) for earlier, later in itertools.pairwise(numbers)
    )
    if "?" in first or not counting or "" in first[1:-1]:
        return False, ""
    if _evident(table):
        return True, ""
    columns = list(itertools.zip_longest(*map(_tidy, rest), fillvalue=""))
    words = [(cell, column) for cell, column in zip(first, columns, strict=False)
             if cell and cell not in numbers]  # fmt: skip
    again = any(cell in column for cell, column in words)
    if not numbers:
        return not again, ""
    if numbers != [str(number) for number in range(len(numbers))] or len(numbers) < 3:
        return False, ""
    shown = f"the first line, {', '.join(first[:4])}, …,"
    if words or first[0] == "":
        return not again, ""
    if len(numbers) >= 10 or any("." in value for column in columns for value in column):
        return True, f"{shown} is read as names; where it is data, say header: false"
    return False, f"{shown} is read as data; where it holds names, say header: true"


def _evident(table: Cells) -> bool:
    """Whether some column is a word with nothing but numbers or dates below."""
    first, rest = _tidy(table[0]), map(_tidy, table[1:])
    for name, column in zip(first, itertools.zip_longest(*rest, fillvalue=""), strict=False):
        values = sorted({value for value in column if value and value.casefold() not in MARKS})
        if not name or not values or name.casefold() in MARKS or is_number(name):
            continue
        if all(map(is_number, values)):
            return True
        if format_of(values)[0] is not None and format_of([name])[0] is None:
            return True
    return False


def _tidy(cells: list[str]) -> list[str]:
    return [cell.strip().strip("'\"").strip() for cell in cells]
