"""The local executor: units in order, results back, and no endless wait."""

from __future__ import annotations

from typing import Any

import pytest

from lossearch.executors import ExecutorConfig, make_executor
from lossearch.executors.local import LocalExecutor
from lossearch.training import Unit


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

    def report(self, unit: Unit, results: list[Any]) -> None:
        self.seen.append((unit.number, results))


@pytest.fixture
def executor(monkeypatch: pytest.MonkeyPatch) -> LocalExecutor:
    class Bench:
        def __init__(self, *_: Any) -> None: ...

        def run(self, unit: Unit) -> list[Any]:
            return [unit.number]

    monkeypatch.setattr("lossearch.executors.local.Workbench", Bench)
    made = make_executor(ExecutorConfig(name="local"))
    assert isinstance(made, LocalExecutor) and made.workers == 1
    return made


def test_every_unit_is_run_and_reported_in_order(executor: LocalExecutor) -> None:
    source, recipe = Source(3), object()
    executor.run(recipe, source)  # pyright: ignore[reportArgumentType]
    assert source.seen == [(2, [2]), (1, [1]), (0, [0])]


def test_a_source_that_stalls_is_a_fault_and_no_endless_wait(executor: LocalExecutor) -> None:
    source, recipe = Source(1, ends=False), object()
    with pytest.raises(RuntimeError, match="nothing to do, and is not over"):
        executor.run(recipe, source)  # pyright: ignore[reportArgumentType]
    assert source.seen == [(0, [0])]


def test_ctrl_c_passes_through(executor: LocalExecutor, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    source, recipe = Source(2), object()
    monkeypatch.setattr(source, "report", stop)
    with pytest.raises(KeyboardInterrupt):
        executor.run(recipe, source)  # pyright: ignore[reportArgumentType]
