"""The ledger: the single truth of a study, one durable JSON line for each thing that happened.

Everything else is derived from it: what Optuna knows, what MLflow shows, the report. None of them
is ever asked what happened. :func:`replay` turns the lines into a :class:`State`.

Events and their own keys (each line also has ``event``, ``time`` (seconds since 1970) and, at its
end, ``more`` and ``check``, which no row in memory has; see :mod:`lossearch.trials.rows`):

``study``      name, config (resolved), data (the DataInfo), model, versions, plugins, left_out
``resumed``    (nothing more)
``measured``   jobs (how many a unit holds), problem (why the model cannot be stacked, or null)
``proposed``   trial, role, objective, label, training, params, distributions,
               plays_baseline, control, sampler (what it keeps with the trial)
``probed``     trial, rates (learning rates that were tried), scores, point (the one that goes on)
``rung``       trial, epoch, score, seconds, curve (one row an epoch since the last rung)
``finished``   trial, score, metrics, epochs, seconds
``pruned``     trial, epoch, score
``failed``     trial, reason, detail, epoch
``rejected``   trial, reason, detail, equals (a trial that it repeats), and what ``proposed`` has
``searched``   reason (why the search proposed no more)
``finetuned``  trial, values (training hyperparameters), variant, score, metrics, seconds, reason
``confirmed``  trial, seed, validation, test (metric -> value), curve, seconds
``ablated``    the same of the winner without a part: also part (its name), objective, reason
``verdict``    the content of verdict.json
``ended``      status (``complete``, ``interrupted`` or ``failed``)

Where several metrics decide, ``rung`` and ``finished`` also have ``scores`` (metric -> value);
``score`` is the first of them.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import IO, Any, Literal

from lossearch.errors import BusyError, StorageError, StudyError
from lossearch.trials.rows import Row, complete, finite, from_lines, last_check, to_lines

try:
    import fcntl
except ImportError:  # Windows has no flock: there, nobody guards against two runs of one study
    fcntl = None

Role = Literal["baseline", "given", "reference", "search"]
Status = Literal["running", "finished", "pruned", "failed", "rejected"]


class Ledger:
    """An append-only file of JSON lines, and the lock of its study.

    Each line is on the disk before ``append`` returns, or when :meth:`together` ends. While it
    is open no other process gets the study; the system lets go of it when the process ends.

    Raises:
        BusyError: another process holds it.
        StudyError: the file cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        while True:
            try:
                # unbuffered: what a full disk refused must not be tried again on closing
                self._file = path.open("ab", buffering=0)
            except OSError as error:
                raise StorageError(
                    f"the ledger {path} cannot be written: {error.strerror}"
                ) from None
            if not _lock(self._file):
                self._file.close()
                raise BusyError(f"the study in {path.parent} is being run by another process")
            if _stands(self._file, path):
                break
            self._file.close()  # who held it has taken it away: its study never began
        self._together = False
        self._refused: OSError | None = None
        self._rows: list[Row] = []  # those that wait for the end of a block
        content = path.read_bytes()
        lines = complete(content.split(b"\n")[:-1])
        self._check = last_check(lines)
        self._end = sum(len(line) + 1 for line in lines)
        if self._end < len(content):
            self._cut()

    @contextmanager
    def together(self) -> Iterator[None]:
        """Rows that are appended in here are one: after a kill all of them are there, or none.

        They are written at once when the block ends; an error in it leaves none.
        """
        self._together = True
        try:
            yield
            if self._rows:
                self._write(self._rows)
        finally:
            self._together, self._rows = False, []

    def append(self, event: str, **values: Any) -> Row:
        """Write one event durably, unless within :meth:`together`, and return its row.

        Raises:
            StorageError: the disk is full or the folder is gone; the study must stop.
        """
        row = {"event": event, "time": round(time.time(), 3), **finite(values)}
        if self._together:
            self._rows.append(row)
        else:
            self._write([row])
        return row

    def _write(self, rows: Sequence[Row]) -> None:
        if self._refused is not None:
            raise self._error(self._refused)
        lines, check = to_lines(rows, self._check)
        try:
            if self._file.write(lines) != len(lines):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            self._cut()
            raise self._error(error) from None
        self._check, self._end = check, self._end + len(lines)
        try:
            os.fsync(self._file.fileno())
        except OSError as error:
            self._refused = error  # a later one would succeed, and mean nothing
            raise self._error(error) from None

    def _cut(self) -> None:
        """Take half a write off the end; where that fails too, nothing is written behind it."""
        try:
            self._file.truncate(self._end)
        except OSError as error:
            self._refused = error

    def _error(self, error: OSError) -> StorageError:
        return StorageError(
            f"the ledger {self.path} cannot be written: {error.strerror}. What is in it is "
            "safe; make room and run `lossearch resume`"
        )

    def close(self) -> None:
        self._file.close()


def read_ledger(path: Path) -> list[Row]:
    """All rows of a ledger; what a kill in the middle of a write has left is left out.

    Raises:
        StudyError: there is no ledger at ``path``, or a line in it is damaged, lost or doubled.
    """
    try:
        *lines, _torn = path.read_bytes().split(b"\n")  # without a newline, the write was cut off
    except FileNotFoundError:
        raise StudyError(f"there is no study in {path.parent}: it has no {path.name}") from None
    except OSError as error:
        raise StudyError(f"the ledger {path} cannot be read: {error.strerror}") from None
    return from_lines(lines, path)


def _lock(file: IO[bytes]) -> bool:
    """Claim a ledger for this process; the system lets go of it when the process ends, or dies."""
    if fcntl is None:
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _stands(file: IO[bytes], path: Path) -> bool:
    """Whether this file is still the one at its path."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except OSError:
        return False


@dataclass
class Trial:
    """One proposed objective with its training hyperparameters, and what became of it."""

    number: int
    role: Role
    objective: dict[str, Any]
    label: str
    training: dict[str, Any]
    params: dict[str, Any] = field(default_factory=dict)
    distributions: dict[str, str] = field(default_factory=dict)
    status: Status = "running"
    score: float | None = None
    epoch: int = 0
    seconds: float = 0.0
    metrics: dict[str, float] = field(default_factory=dict)
    curve: list[dict[str, float]] = field(default_factory=list)
    rungs: dict[int, float] = field(default_factory=dict)
    scores: dict[str, float] = field(default_factory=dict)
    rung_scores: dict[int, dict[str, float]] = field(default_factory=dict)
    sampler: dict[str, Any] = field(default_factory=dict)
    reason: str = ""
    detail: str = ""
    equals: int | None = None
    plays_baseline: bool = False  # its objective is the baseline's, in another guise
    control: int | None = None  # the finalist whose hyperparameters the baseline is tried at
    rates: list[float] = field(default_factory=list)
    point: int | None = None
    full: Row | None = None  # the best of its ``finetuned`` rows
    started: float = 0.0
    ended: float = 0.0

    @property
    def tuned(self) -> dict[str, Any]:
        """The training hyperparameters that it goes on with: of the rates probed, the best."""
        if self.point is None:
            return self.training
        return {**self.training, "lr": self.rates[self.point]}

    @property
    def final(self) -> dict[str, Any]:
        """Those of its last stage."""
        return self.tuned if self.full is None else self.full["values"]

    def values(self, epoch: int | None = None) -> tuple[float, ...]:
        """What decides, at a rung or (without ``epoch``) at the end: a value for each metric.

        Empty where there is none, or one of several is not a number.
        """
        if epoch is None:
            score, scores = self.score, self.scores
        else:
            score, scores = self.rungs.get(epoch), self.rung_scores.get(epoch, {})
        found = tuple(scores.values()) or (score,)
        return tuple(v for v in found if v is not None) if None not in found else ()


@dataclass
class Confirmation:
    """One retraining of a finalist, on a seed that the search never used."""

    trial: int
    seed: int
    validation: float | None
    test: dict[str, float]
    curve: list[dict[str, float]] = field(default_factory=list)
    seconds: float = 0.0
    reason: str = ""
    detail: str = ""


@dataclass(kw_only=True)
class Ablation(Confirmation):
    """One training of the winner without a part, on a seed of the confirmations."""

    part: str
    objective: dict[str, Any]


@dataclass
class State:
    """What the ledger says, put together.

    Attributes:
        seconds: How long the study has run, up to its last row; without the time between a stop,
            or a kill, and the next resume.
        last: The time of the last row.
    """

    study: Row = field(default_factory=dict)
    trials: dict[int, Trial] = field(default_factory=dict)
    confirmations: list[Confirmation] = field(default_factory=list)
    ablations: list[Ablation] = field(default_factory=list)
    finetuned: list[Row] = field(default_factory=list)
    verdict: Row | None = None
    ended: str | None = None
    unit: Row | None = None  # the ``measured`` row
    stopped: str | None = None  # why the search ended
    seconds: float = 0.0
    last: float = 0.0

    def counts(self) -> dict[str, int]:
        """How many trials have each status."""
        counts: dict[str, int] = {}
        for status in ("finished", "pruned", "failed", "rejected", "running"):
            counts[status] = 0
        for trial in self.trials.values():
            counts[trial.status] += 1
        return counts

    def finished(self) -> Iterator[Trial]:
        return (t for t in self.trials.values() if t.status == "finished" and t.score is not None)


def replay(rows: Iterable[Row]) -> State:
    """Put the rows together in order.

    Raises:
        StudyError: a row is about something that no earlier one tells of.
    """
    state = State()
    for number, row in enumerate(rows, 1):
        try:
            apply(state, row)
        except (KeyError, TypeError) as error:
            raise StudyError(
                f"row {number} of the ledger ({row.get('event')}) does not follow from those "
                f"before it: {error} is missing"
            ) from None
    return state


def apply(state: State, row: Row) -> None:
    """Bring ``state`` forward by one row."""
    event = row["event"]
    now = row.get("time", state.last)
    if event not in ("study", "resumed"):
        state.seconds += max(now - state.last, 0.0)  # a clock may be set back
    state.last = now
    if event == "study":
        state.study = row
    elif event == "resumed":
        state.ended = None
    elif event == "measured":
        state.unit = row
    elif event == "searched":
        state.stopped = row["reason"]
    elif event in ("proposed", "rejected") and row["trial"] not in state.trials:
        trial = Trial(
            row["trial"],
            row["role"],
            row["objective"],
            row["label"],
            row["training"],
            row.get("params", {}),
            row.get("distributions", {}),
            sampler=row.get("sampler", {}),
            plays_baseline=row.get("plays_baseline", False),
            control=row.get("control"),
            started=row["time"],
        )
        state.trials[trial.number] = trial
        if event == "rejected":
            _end(trial, row, "rejected")
    elif event == "probed":
        trial = state.trials[row["trial"]]
        trial.rates, trial.point = row["rates"], row["point"]
        if "training.lr" in trial.params:  # what a sampler learns from is what was trained
            trial.params = {**trial.params, "training.lr": trial.tuned["lr"]}
    elif event == "finetuned":
        state.finetuned.append(row)
        trial = state.trials[row["trial"]]
        sign = 1 if state.study.get("maximize", True) else -1
        if row["score"] is not None and (
            trial.full is None or sign * row["score"] > sign * trial.full["score"]
        ):
            trial.full = row
    elif event == "rung":
        trial = state.trials[row["trial"]]
        trial.epoch, trial.score = row["epoch"], row["score"]
        trial.seconds += row["seconds"]
        trial.curve += row["curve"]
        if row["score"] is not None:
            trial.rungs[row["epoch"]] = row["score"]
            if row.get("scores"):
                trial.rung_scores[row["epoch"]] = row["scores"]
    elif event in ("finished", "pruned", "failed", "rejected"):
        trial = state.trials[row["trial"]]
        trial.score = row.get("score")
        trial.scores = row.get("scores", {})
        trial.metrics = row.get("metrics", {})
        _end(trial, row, event)
    elif event == "confirmed":
        state.confirmations.append(Confirmation(**_fields(Confirmation, row)))
    elif event == "ablated":
        state.ablations.append(Ablation(**_fields(Ablation, row)))
    elif event == "verdict":
        state.verdict = {k: v for k, v in row.items() if k not in ("event", "time")}
    elif event == "ended":
        state.ended = row["status"]


def _fields(kind: type[Confirmation], row: Row) -> dict[str, Any]:
    """What a row says of the kind's fields; those without a default must be there."""
    optional = {f.name for f in fields(kind) if not (f.default is f.default_factory is MISSING)}
    return {f.name: row[f.name] for f in fields(kind) if f.name in row or f.name not in optional}


def _end(trial: Trial, row: Row, status: Status) -> None:
    trial.status = status
    trial.reason = row.get("reason", "")
    trial.equals = row.get("equals")
    trial.detail = row.get("detail", "")
    trial.epoch = row.get("epochs", row.get("epoch", trial.epoch)) or trial.epoch
    trial.ended = row["time"]
