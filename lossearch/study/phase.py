"""A part of a study: what it trains next, and what it makes of the results."""

from __future__ import annotations

from typing import Any, Protocol

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


def of_one_seed(waiting: list[Job], most: int) -> list[Job]:
    """Take the jobs of the first one's seed off a list: they share weights and batches."""
    found = [job for job in waiting if job.seed == waiting[0].seed][:most]
    waiting[:] = [job for job in waiting if job not in found]
    return found


def training_row(result: JobResult) -> dict[str, Any]:
    """What a ledger's row of any whole training says of how it went."""
    return {
        "trial": result.trial,
        "curve": result.curve,
        "seconds": round(result.seconds, 4),
        "reason": result.reason or "",
        "detail": result.detail,
    }


def final_row(result: JobResult) -> dict[str, Any]:
    """The same of one that the verdict counts (:meth:`lossearch.study.setup.Setup.final_job`)."""
    scores = {"seed": result.seed, "validation": result.score, "test": result.test}
    return {**training_row(result), **scores}
