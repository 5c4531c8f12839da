"""Who hands out units."""

from __future__ import annotations

from typing import Protocol

from lossearch.training import Unit, UnitResult


class Source(Protocol):
    """Hands out units and takes their results; the study is one."""

    def next(self) -> Unit | None:
        """The next unit, or ``None`` where there is nothing to do until a result is in."""
        ...

    @property
    def over(self) -> bool:
        """Whether no unit will come any more."""
        ...

    def report(self, unit: Unit, result: UnitResult) -> None:
        """Take the results of a unit."""
        ...
