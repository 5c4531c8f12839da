"""A row of the ledger as a line of text, and back.

A line ends with its ``check``: a hash of the line and of the check before it. So a line that was
altered, lost, doubled or moved is seen, at the place where it happened. Lines of ledgers that were
begun without checks have none; those that are added to such a ledger go on from its lines.

Rows that were written as one say ``more``, but for the last of them. Where that one is missing,
the write was cut off, and none of them counts.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any

from lossearch.errors import StudyError

Row = dict[str, Any]
_KEY = b', "check": "'
_MORE = b', "more": true}'
_END = re.compile(rb'([0-9a-f]{16})"\}')


def to_lines(rows: Sequence[Row], before: str) -> tuple[bytes, str]:
    """The lines of rows that are written as one, and the last one's check.

    Args:
        rows: The rows; their numbers must be finite.
        before: The check of the line before them.
    """
    lines = bytearray()
    for number, row in enumerate(rows, 1):
        body = json.dumps(row, ensure_ascii=False, default=str).encode()
        if number < len(rows):
            body = body[:-1] + _MORE
        before = _check(body, before)
        lines += body[:-1] + _KEY + before.encode() + b'"}\n'
    return bytes(lines), before


def from_lines(lines: Sequence[bytes], path: Path) -> list[Row]:
    """The rows of a ledger's lines.

    Raises:
        StudyError: a line is damaged, or not in its place.
    """
    rows: list[Row] = []
    places: dict[str, int] = {}  # of the lines that have a check
    before = ""
    for number, line in enumerate(complete(lines), 1):
        body, check = _split(line)
        try:
            row = json.loads(body)
        except ValueError:
            row = None
        if not isinstance(row, dict) or "event" not in row:
            raise _damaged(path, number, "is not a ledger row")
        if body.endswith(_MORE):
            del row["more"]
        wanted = _check(body, before)
        if check in places:
            raise _damaged(path, number, f"is line {places[check]} once more")
        if check is None and places:
            raise _damaged(path, number, "has no check, and lines before it have one")
        if check is not None and check != wanted:
            place = f"does not follow from line {number - 1}" if number > 1 else "cannot be right"
            why = "it was altered, or lines before it are missing"
            raise _damaged(path, number, f"{place}: {why}")
        rows.append(row)
        if check is not None:
            places[check] = number
        before = wanted
    return rows


def complete(lines: Sequence[bytes]) -> Sequence[bytes]:
    """The lines without those at the end whose write was cut off."""
    count = len(lines)
    while count and _split(lines[count - 1])[0].endswith(_MORE):
        count -= 1
    return lines[:count]


def last_check(lines: Iterable[bytes]) -> str:
    """What the line after these goes on from."""
    before = ""
    for line in lines:
        body, check = _split(line)
        before = check or _check(body, before)
    return before


def _check(body: bytes, before: str) -> str:
    return blake2b(before.encode() + body, digest_size=8).hexdigest()


def _split(line: bytes) -> tuple[bytes, str | None]:
    """A line without its check, and the check, if it has one."""
    line = line.rstrip(b"\r")  # of a copy that has been through Windows
    body, _, end = line.rpartition(_KEY)
    found = _END.fullmatch(end)
    return (body + b"}", found[1].decode()) if found and body else (line, None)


def _damaged(path: Path, number: int, what: str) -> StudyError:
    keep = (
        f"keep its first {number - 1} lines, and `lossearch resume` does the rest again"
        if number > 1
        else "start a new study"
    )
    return StudyError(
        f"{path}, line {number}, {what}. Put the ledger back as it was, or {keep}; "
        "docs/reliability.md says how to go on after an edit that was meant"
    )


def finite(value: Any) -> Any:
    """NaN and infinity become null: JSON has neither."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {k: finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(v) for v in value]
    return value
