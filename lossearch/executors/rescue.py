"""Units that take their process down: split and tried again, until who did it is alone."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace

from lossearch.errors import StorageError
from lossearch.executors.source import Source
from lossearch.training import JobResult, Unit, UnitResult


@dataclass
class _Split:
    """A unit that took its process down, and what its parts have come to."""

    unit: Unit
    results: dict[str, JobResult] = field(default_factory=dict)  # by the job's name
    deaths: Counter[str] = field(default_factory=Counter)


class Rescue:
    """A source whose units are done, whatever their objectives do to the process.

    A unit of several jobs that takes its process down comes again in halves, so that its other
    jobs lose no more than its time; a job that does it alone is marked. One whose process died
    once, and alone, may have met somebody else's kill: it has a second try.
    """

    def __init__(self, source: Source) -> None:
        self.source = source
        self._waiting: list[Unit] = []
        self._splits: dict[int, _Split] = {}

    @property
    def over(self) -> bool:
        return self.source.over

    def next(self) -> Unit | None:
        return self._waiting.pop(0) if self._waiting else self.source.next()

    def report(self, unit: Unit, result: UnitResult) -> None:
        """Take what became of a unit, or of a part of one.

        Raises:
            StorageError: the study has to stop.
        """
        if result.stop is not None:
            raise StorageError(result.stop)
        if result.died is not None and not unit.jobs:  # no objective was in it
            problem = f"to train as a stack: {result.detail}"
            self.source.report(unit, UnitResult(size=1, problem=problem))
            return
        split = self._splits.get(unit.number)
        if result.died is None and split is None:
            self.source.report(unit, result)
            return
        if split is None:
            split = self._splits[unit.number] = _Split(unit)
        if result.died is None:
            split.results |= {j.name: r for j, r in zip(unit.jobs, result.jobs, strict=True)}
        else:
            self._again(split, unit, result)
        if len(split.results) == len(split.unit.jobs):
            del self._splits[unit.number]
            done = [split.results[job.name] for job in split.unit.jobs]
            self.source.report(split.unit, UnitResult(done))

    def _again(self, split: _Split, unit: Unit, result: UnitResult) -> None:
        first, *others = unit.jobs
        split.deaths.update(job.name for job in unit.jobs)
        if others:
            half = len(unit.jobs) // 2
            parts = unit.jobs[:half], unit.jobs[half:]
            self._waiting += [replace(unit, jobs=part) for part in parts]
        elif result.died == "worker_died" and split.deaths[first.name] < 2:
            self._waiting.append(unit)
        else:
            split.results[first.name] = JobResult(
                first.trial,
                first.seed,
                done=True,
                reason=result.died,
                detail=result.detail,
                variant=first.variant,
            )
