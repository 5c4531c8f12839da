"""Progress on the terminal: what runs, the best so far, how long it will take."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn
from rich.progress import TimeElapsedColumn as Elapsed

from lossearch.executors import Executor
from lossearch.study.run import Run
from lossearch.trials.ledger import Row, State

_ENDED = ("finished", "pruned", "failed", "rejected")


class Display:
    """One bar for the search and one for the confirmation, on stderr.

    The ETA is of the trials still to come at the pace of those that ended, pruned ones included.
    """

    def __init__(self, run: Run, executor: Executor, console: Console | None = None) -> None:
        self.run = run
        self.console = console or Console(stderr=True)
        self.started = time.monotonic()
        config = run.setup.config
        self.console.print(
            f"[bold]{config.name}[/]: {config.search.trials} trials of "
            f"{config.training.epochs} epochs on {executor.workers} worker"
            f"{'s' if executor.workers > 1 else ''} → {run.folder.path}"
        )
        self.progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            Elapsed(),
            TextColumn("{task.fields[eta]}"),
            TextColumn("{task.fields[note]}"),
            console=self.console,
            refresh_per_second=4,
        )
        self._bars: dict[str, Any] = {}
        self._began: dict[str, tuple[float, int]] = {}
        self.progress.start()
        state = run.state
        started = sum(bool(t.rungs) or t.status != "running" for t in state.trials.values())
        self._bar("search", config.search.trials, started)

    def __call__(self, state: State, row: Row) -> None:
        event = row["event"]
        if event in (*_ENDED, "rung"):
            self._search(state)
        elif event == "confirmed":
            self._confirmed(state)
        elif event in ("verdict", "ended"):
            self.progress.stop()

    def _search(self, state: State) -> None:
        trials = state.trials.values()
        met = sum(bool(t.rungs) or t.status != "running" for t in trials)
        best = self.run.best()
        note = ""
        if best is not None and best.score is not None:
            note = f"best {self.run.setup.metric.name} {best.score:.4g}: {best.label}"
        counts = state.counts()
        bad = counts["failed"] + counts["rejected"]
        self._update("search", met, note + (f" ({bad} failed or rejected)" if bad else ""))

    def _confirmed(self, state: State) -> None:
        if "confirm" not in self._bars:
            baseline, candidates = self.run.finalists()
            finalists = len(candidates) + (baseline is not None)
            total = finalists * self.run.setup.config.confirm.seeds
            self._bar("confirm", total, max(len(state.confirmations) - 1, 0))
        self._update("confirm", len(state.confirmations), "fresh seeds, test split")

    def _bar(self, name: str, total: int, done: int) -> None:
        bar = self.progress.add_task(name, total=total, completed=done, eta="", note="")
        self._bars[name] = bar
        self._began[name] = (time.monotonic(), done)

    def _update(self, name: str, done: int, note: str) -> None:
        began, before = self._began[name]
        bar = self._bars[name]
        total = self.progress.tasks[bar].total or 0
        eta = ""
        if done > before and done < total:
            left = (time.monotonic() - began) / (done - before) * (total - done)
            eta = f"ETA {_time(left)}"
        self.progress.update(bar, completed=done, eta=eta, note=note)


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
