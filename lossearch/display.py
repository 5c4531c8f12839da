"""Progress on the terminal: what runs, the best so far, how long it will take."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Column
from rich.text import Text

from lossearch.executors import Executor
from lossearch.report.data import data_lines
from lossearch.study.run import Run
from lossearch.trials.ledger import Row, State

_ENDED = ("finished", "pruned", "failed", "rejected")
_QUIET = 10.0  # seconds between two lines of a log


class Display:
    """One bar for the search and one for the confirmation, on stderr, and the best so far.

    The ETA is of the trials still to come at the pace of those since the first result (what came
    before it was start-up), pruned ones included.
    Where stderr is no terminal, a line now and then says the same.
    """

    def __init__(self, run: Run, executor: Executor, console: Console | None = None) -> None:
        self.run = run
        self.console = console or Console(stderr=True, highlight=False)
        config = run.setup.config
        workers = f"{executor.workers} worker{'s' if executor.workers > 1 else ''}"
        self.console.print(
            f"[bold]{escape(config.name)}[/]: {config.search.trials} trials of up to "
            f"{config.training.epochs} epochs on {workers}, into {escape(str(run.folder.path))}",
            soft_wrap=True,
        )
        print_data(self.console, run.state.study["data"])
        self.progress = Progress(
            TextColumn("{task.description}", table_column=Column(min_width=7, no_wrap=True)),
            BarColumn(bar_width=20),
            MofNCompleteColumn(table_column=Column(no_wrap=True)),
            TimeElapsedColumn(table_column=Column(no_wrap=True)),
            TextColumn("{task.fields[eta]}", table_column=Column(no_wrap=True)),
            TextColumn(
                "{task.fields[note]}", table_column=Column(no_wrap=True, overflow="ellipsis")
            ),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        self._bars: dict[str, TaskID] = {}
        self._began: dict[str, tuple[float, int]] = {}
        self._said = time.monotonic()
        self.progress.start()
        self._bar("search", config.search.trials, _met(run.state))

    def __call__(self, state: State, row: Row) -> None:
        event = row["event"]
        if event in (*_ENDED, "rung"):
            self._update("search", _met(state), self._best(state))
        elif event == "finetuned":
            self._later("full", state, len(state.finetuned), "the best objectives in full")
        elif event == "confirmed":
            self._confirmed(state)
        elif event == "ablated":
            self._later("parts", state, len(state.ablations), "the winner without each part")
        elif event in ("verdict", "ended"):
            self.progress.stop()
            if row.get("status") == "interrupted":
                again = f"`lossearch resume {escape(str(self.run.folder.path))}` goes on."
                self.console.print(
                    f"\nStopped. All that finished is kept; {again}", soft_wrap=True
                )

    def _best(self, state: State) -> str:
        best, counts = self.run.best(), state.counts()
        bad = counts["failed"] + counts["rejected"]
        note = f"({bad} failed or rejected) " if bad else ""
        if best is not None and best.score is not None:
            note += f"best {self.run.setup.metric.name} {best.score:.4g}: {best.label}"
        return note

    def _confirmed(self, state: State) -> None:
        done = len(state.confirmations)
        if "confirm" not in self._bars:
            baseline, candidates = self.run.finalists()
            finalists = len(candidates) + (baseline is not None)
            self._bar("confirm", finalists * self.run.setup.config.confirm.seeds, done - 1)
        self._update("confirm", done, "finalists and baseline on fresh seeds")

    def _later(self, name: str, state: State, done: int, note: str) -> None:
        """A phase that says itself how much there is to do."""
        if name not in self._bars:
            self._bar(name, done + self.run.left, done - 1)
        self.progress.update(self._bars[name], total=done + self.run.left)
        self._update(name, done, note)

    def _bar(self, name: str, total: int, done: int) -> None:
        self._bars[name] = self.progress.add_task(
            name, total=total, completed=done, eta="", note=""
        )

    def _update(self, name: str, done: int, note: str) -> None:
        began, before = self._began.setdefault(name, (time.monotonic(), done))
        bar = self._bars[name]
        total = int(self.progress.tasks[bar].total or 0)
        eta = ""
        if before < done < total:
            left = (time.monotonic() - began) / (done - before) * (total - done)
            eta = f"ETA {_time(left)}"
        self.progress.update(bar, completed=done, eta=eta, note=escape(note))
        now = time.monotonic()
        if not self.console.is_terminal and now - self._said > _QUIET:
            self._said = now
            line = f"{name} {done}/{total} {eta} {note}"
            self.console.print(" ".join(line.split()), markup=False, soft_wrap=True)


def print_data(console: Console, data: Mapping[str, Any]) -> None:
    """What was read, in three lines."""
    for word, text in data_lines(data):
        console.print(Text.assemble((f"{word:7}", "bold"), text), soft_wrap=True)


def _met(state: State) -> int:
    """How many trials have been trained to some rung, or have ended."""
    counted = (t for t in state.trials.values() if t.control is None)  # those are not proposed
    return sum(bool(t.rungs) or t.status != "running" for t in counted)


def _time(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def begin_display(
    progress: bool = True, on_event: Callable[..., None] | None = None
) -> Callable[[Run, Executor], Callable[[State, Row], None]]:
    """What a session calls once it runs: makes the display."""

    def begin(run: Run, executor: Executor) -> Callable[[State, Row], None]:
        shown = Display(run, executor) if progress else None

        def listen(state: State, row: Row) -> None:
            if shown is not None:
                shown(state, row)
            if on_event is not None:
                on_event(state, row)

        return listen

    return begin
