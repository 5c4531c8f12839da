"""Units that take their process down: only the jobs at fault are marked, and all are reported."""

from __future__ import annotations

import pytest

from lossearch.errors import StorageError
from lossearch.executors.rescue import Rescue
from lossearch.training import Job, JobResult, Unit, UnitResult
from lossearch.training.unit import Death


class Source:
    """One unit, and what became of it."""

    def __init__(self, unit: Unit) -> None:
        self.units, self.told = [unit], list[tuple[Unit, UnitResult]]()

    @property
    def over(self) -> bool:
        return bool(self.told)

    def next(self) -> Unit | None:
        return self.units.pop() if self.units else None

    def report(self, unit: Unit, result: UnitResult) -> None:
        self.told.append((unit, result))


def jobs(*trials: int) -> tuple[Job, ...]:
    return tuple(Job(trial, {}, {}, seed=0, until=1) for trial in trials)


def finish(unit: Unit, deadly: dict[int, Death], kills: list[int]) -> tuple[Source, int]:
    """Run a unit whose deadly jobs take it down; ``kills``: units that somebody else ends."""
    source, tries = Source(unit), 0
    rescue = Rescue(source)
    while not rescue.over:
        part = rescue.next()
        assert part is not None
        tries += 1
        found = [deadly[j.trial] for j in part.jobs if j.trial in deadly]
        if tries in kills:
            found = ["worker_died"]
        if found:
            rescue.report(part, UnitResult(died=found[0], detail="somewhere"))
        else:
            rescue.report(
                part, UnitResult([JobResult(j.trial, 0, score=j.trial / 10) for j in part.jobs])
            )
    return source, tries


@pytest.mark.parametrize("size", [1, 2, 7, 30])
@pytest.mark.parametrize("death", ["worker_died", "timed_out"])
def test_the_one_at_fault_is_found_and_the_others_are_done(size: int, death: Death) -> None:
    for bad in (0, size // 2, size - 1):
        source, tries = finish(Unit(5, jobs(*range(size))), {bad: death}, [])
        [(unit, result)] = source.told
        assert unit.number == 5 and [r.trial for r in result.jobs] == [*range(size)]
        reasons = {r.trial: r.reason for r in result.jobs if r.reason is not None}
        assert reasons == {bad: death} and result.jobs[bad].done
        assert all(r.score == r.trial / 10 for r in result.jobs if r.trial != bad)
        assert tries <= 2 * size.bit_length() + 2


def test_two_at_fault() -> None:
    source, _ = finish(Unit(0, jobs(*range(8))), {2: "timed_out", 3: "worker_died"}, [])
    found = {r.trial: r.reason for r in source.told[0][1].jobs}
    assert found == {**dict.fromkeys(range(8)), 2: "timed_out", 3: "worker_died"}


def test_a_kill_from_outside_marks_nobody() -> None:
    """A process may be taken by the system's memory killer, or by a person."""
    for trials, kills in (((0,), [1]), ((0, 1, 2, 3), [1])):
        source, _ = finish(Unit(0, jobs(*trials)), {}, kills)
        assert all(r.reason is None for r in source.told[0][1].jobs)


def test_measuring_that_takes_the_process_down_is_no_end() -> None:
    rescue = Rescue(source := Source(Unit(1, (), measure=8)))
    unit = rescue.next()
    assert unit is not None
    rescue.report(unit, UnitResult(died="worker_died", detail="it crashed"))
    [(_, result)] = source.told
    assert result.size == 1 and result.problem == "to train as a stack: it crashed"


def test_a_full_disk_stops_the_study() -> None:
    rescue = Rescue(source := Source(Unit(1, jobs(1))))
    unit = rescue.next()
    assert unit is not None
    with pytest.raises(StorageError, match="make room"):
        rescue.report(unit, UnitResult(stop="make room"))
    assert not source.told
