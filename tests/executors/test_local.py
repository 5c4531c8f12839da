"""The local executor: units in order, results back, and no endless wait."""

from __future__ import annotations

from typing import Any

import pytest

from lossearch.executors import ExecutorConfig, make_executor
from lossearch.executors.local import LocalExecutor
from lossearch.training import Unit, UnitResult


class Source:
    """Hands out so many empty units, and is over then; or never is."""

    def __init__(self, units: int, ends: bool = True) -> None:
        self.left, self.ends, self.seen = units, ends, []

    @property
    def over(self) -> bool:
        return self.ends and self.left == 0

    def next(self) -> Unit | None:
        if self.left == 0:
            return None
        self.left -= 1
        return Unit(self.left, ())

    def report(self, unit: Unit, result: UnitResult) -> None:
        self.seen.append((unit.number, result.size))


class Bench:
    def run(self, unit: Unit) -> UnitResult:
        return UnitResult(size=unit.number)


def run(source: Source) -> None:
    executor = make_executor(ExecutorConfig(name="local"))
    assert isinstance(executor, LocalExecutor) and executor.workers == 1
    executor.run(Bench(), source)  # pyright: ignore[reportArgumentType]


def test_every_unit_is_run_and_reported_in_order() -> None:
    source = Source(3)
    run(source)
    assert source.seen == [(2, 2), (1, 1), (0, 0)]


def test_a_source_that_stalls_is_a_fault_and_no_endless_wait() -> None:
    source = Source(1, ends=False)
    with pytest.raises(RuntimeError, match="nothing to do, and is not over"):
        run(source)
    assert source.seen == [(0, 0)]


def test_ctrl_c_passes_through(monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    source = Source(2)
    monkeypatch.setattr(source, "report", stop)
    with pytest.raises(KeyboardInterrupt):
        run(source)
