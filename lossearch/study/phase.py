"""A part of a study: what it trains next, and what it makes of the results."""

from __future__ import annotations

from typing import Protocol

from lossearch.training import Job, JobResult


class Phase(Protocol):
    """One after the other, phases make a study."""

    def jobs(self, most: int) -> list[Job]:
        """The next unit's jobs; none where nothing is to do until a result is in, or any more.

        Args:
            most: How many jobs a unit holds.
        """
        ...

    @property
    def left(self) -> int:
        """How many jobs it knows of that have no result yet; 0 where it cannot know."""
        ...

    def report(self, result: JobResult) -> None:
        """Take what became of a job."""
        ...

    def end(self) -> None:
        """Nothing is to do any more."""
        ...
