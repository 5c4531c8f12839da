"""What was read: the account of a dataset that a person sees before any training."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ColumnRead:
    """What became of one column of a table.

    Attributes:
        name: Its name.
        kind: ``number``, ``date`` or ``category``.
        missing: How many rows have no value.
        values: How many different values there are.
        how: How its values were understood, where that is not plain.
        rare: Values of a category that are too rare to have a feature of their own.
        dropped: Why it is no feature; empty where it is one.
    """

    name: str
    kind: str
    missing: int
    values: int
    how: str = ""
    rare: int = 0
    dropped: str = ""


@dataclass(frozen=True)
class Reading:
    """What was read of a table.

    Attributes:
        rows: Rows of the table, without those of a test part of its own.
        columns: Its columns but the label, in order.
    """

    rows: int
    columns: tuple[ColumnRead, ...]

    def notes(self) -> tuple[str, ...]:
        """What is not plain in it, a sentence each: first what was dropped, and why."""
        dropped: dict[str, list[str]] = {}
        understood: dict[str, list[str]] = {}
        for column in self.columns:
            if column.dropped:
                dropped.setdefault(column.dropped, []).append(column.name)
            if column.how:
                understood.setdefault(column.how, []).append(column.name)
        return (
            *(f"dropped {listed(names)}: {why}" for why, names in dropped.items()),
            *(f"{listed(names)}: {how}" for how, names in understood.items()),
        )


def listed(names: list[str], most: int = 5) -> str:
    """``'a', 'b', 'c' and 4 more``."""
    shown = ", ".join(f"'{name}'" for name in names[:most])
    return shown + (f" and {len(names) - most} more" if len(names) > most else "")
