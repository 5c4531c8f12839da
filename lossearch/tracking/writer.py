"""The side thread between a study and the place where it is shown.

That place is a window, not a memory. Rows of the ledger are put on a queue, and one thread writes
what they mean. Everything it writes can be written twice without harm, so a study that was killed,
or whose server was away, is caught up by giving the writer the rows of its ledger again.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, Protocol, TypeVar

from lossearch.documents import without_password
from lossearch.tracking.records import Update, collect, study_id
from lossearch.trials.ledger import Row, State, apply

T = TypeVar("T")

_BATCH = 500  # rows written before the position is saved
_GATHER = 0.3  # seconds that rows are gathered, so that a cohort's share their calls
_WAITS = (1.0, 4.0, 10.0)  # seconds between the tries of a write; none once the study closes


class Store(Protocol):
    """Where runs stand. Each call may be made again after it was cut off."""

    refused: str | None  # what was left out because of its content

    @property
    def place(self) -> str:
        """What a person calls it."""
        ...

    def connect(self) -> None:
        """Get ready; does nothing where that is done."""
        ...

    def open(self, study: str) -> bool:
        """Find the runs of the study with this id; whether there are any."""
        ...

    def identity(self) -> dict[str, str]:
        """The place and the study's run in it."""
        ...

    def running(self) -> list[str]:
        """Keys of the runs that have no end."""
        ...

    def write(self, updates: dict[str, Update]) -> None: ...

    def log_files(self, paths: Iterable[Path]) -> None: ...

    def register(self, name: str, artifact: str) -> None: ...


class Writer:
    """Gives a store what the ledger's rows mean; never blocks the study and never raises.

    Give it every row of the study's ledger in order: :meth:`catch_up` with those there are, then
    :meth:`write` with each new one. Rows that the store already has are skipped.
    """

    def __init__(self, store: Store, folder: Path) -> None:
        self.problem: str | None = None
        self._folder = folder
        self._store = store
        self._state = State()
        self._seen = 0  # rows given so far
        self._written = 0  # of them, those that the store has
        self._queue: SimpleQueue[tuple[str, Any]] = SimpleQueue()
        self._closing = threading.Event()
        self._stopped = False
        self._thread = threading.Thread(target=self._work, name="lossearch-tracking", daemon=True)
        self._thread.start()

    def write(self, row: Row) -> None:
        """Have one new ledger row written."""
        self._put("row", row)

    def catch_up(self, rows: Iterable[Row]) -> None:
        """Have those of ``rows``, the ledger from its start, written that are not yet."""
        for row in rows:
            self._put("row", row)

    def log_files(self, paths: Iterable[Path]) -> None:
        """Have files and folders kept as artifacts of the study; those that do not exist are not.

        A file that is there already is replaced.
        """
        self._put("files", [Path(p) for p in paths])

    def register(self, name: str, artifact: str = "") -> None:
        """Have the study's artifacts, or one of them, registered as a version of a model.

        Args:
            name: The model's name.
            artifact: Path of one artifact within the study's run; empty for all of them.
        """
        self._put("model", (name, artifact))

    def close(self, timeout: float = 30.0) -> None:
        """Write what is left, at most ``timeout`` seconds long, and mark what still ran as ended.

        A trial without an end in the ledger becomes ``KILLED``; it runs again if it goes on in a
        resumed study.
        """
        self._put("close", None)
        self._closing.set()
        self._thread.join(timeout)
        if self._thread.is_alive() and not self._stopped:
            self._give_up(f"not everything was written within {timeout:g} s")

    def _put(self, kind: str, value: Any) -> None:
        if not self._stopped:
            self._queue.put((kind, value))

    def _give_up(self, why: str) -> None:
        self._stopped = True
        self.problem = (
            f"{self._store.place} is behind: {why}. The study is not affected; its records are in "
            f"{self._folder / 'ledger.jsonl'}, and `lossearch resume` or `lossearch report` "
            "writes the rest later"
        )

    # ---- everything below runs in the side thread ----

    def _work(self) -> None:
        try:
            done = False
            while not done:
                items = self._gather()
                if items == [("close", None)] and not self._state.study:
                    return
                self._retry(self._store.connect)
                updates: dict[str, Update] = {}
                for kind, value in items:
                    if kind == "row":
                        self._read(value, updates)
                        continue
                    self._flush(updates)
                    if kind == "close":
                        self._end_what_runs(updates)
                        self._flush(updates)
                        done = True
                    elif self._state.study:
                        self._extra(kind, value)
                self._flush(updates)
        except Exception as error:  # nothing about tracking may end a study
            self._give_up(short(error))

    def _gather(self) -> list[tuple[str, Any]]:
        items = [self._queue.get()]
        self._closing.wait(_GATHER)
        while len(items) < _BATCH:
            try:
                items.append(self._queue.get_nowait())
            except Empty:
                break
        return items

    def _retry(self, action: Callable[[], T]) -> T:
        for wait in _WAITS:
            try:
                return action()
            except Exception:
                self._closing.wait(wait)
        return action()

    def _read(self, row: Row, updates: dict[str, Update]) -> None:
        """Bring the state forward; what a row means goes to ``updates`` if it is not written."""
        apply(self._state, row)
        if row["event"] == "study":
            run = self._retry(lambda: self._store.open(study_id(row)))
            self._written = self._load_position() if run else 0
        self._seen += 1
        if self._seen > self._written:
            collect(self._state, row, updates)

    def _flush(self, updates: dict[str, Update]) -> None:
        if updates:
            self._retry(lambda: self._store.write(updates))
            updates.clear()
        if self._store.refused and not self.problem:
            self.problem = self._store.refused
        if self._seen > self._written:
            self._written = self._seen
            self._save_position()

    def _extra(self, kind: str, value: Any) -> None:
        """Files and models are pleasant to have: where they are refused, rows go on."""
        try:
            if kind == "files":
                self._retry(lambda: self._store.log_files(value))
            else:
                self._retry(lambda: self._store.register(*value))
        except Exception as error:
            self.problem = f"{self._store.place} did not take the study's {kind}: {short(error)}"

    def _end_what_runs(self, updates: dict[str, Update]) -> None:
        now = time.time()
        for key in self._store.running():
            updates[key] = Update(key, now)
            updates[key].end("interrupted", now)
            updates[key].tags["lossearch.status"] = "interrupted"

    def _load_position(self) -> int:
        """Rows that the store has; 0 where the file is about another place, study or run."""
        try:
            saved = json.loads((self._folder / "tracking.json").read_text(encoding="utf-8"))
            return int(saved["rows"]) if saved["written_to"] == self._store.identity() else 0
        except (OSError, ValueError, TypeError, KeyError):
            return 0

    def _save_position(self) -> None:
        content = {"written_to": self._store.identity(), "rows": self._written}
        path = self._folder / "tracking.json"
        draft = path.with_suffix(".tmp")
        draft.write_text(json.dumps(content, indent=1), encoding="utf-8")
        os.replace(draft, path)


def short(error: BaseException) -> str:
    """The start of an error's first line, with its type and without user name and password."""
    line = (str(error).strip().splitlines() or [""])[0]
    return f"{type(error).__name__}: {without_password(line)[:200]}"
