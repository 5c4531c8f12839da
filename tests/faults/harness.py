"""Studies that are killed, and what must be true of them after they have gone on.

``LOSSEARCH_FAULTS=5 make faults`` does each thing 5 times rather than 60 or 20; with
``LOSSEARCH_FAULTS_SEED`` the moments are others.
"""

from __future__ import annotations

import ctypes
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from lossearch.tracking.records import study_id
from lossearch.trials.ledger import read_ledger
from lossearch.trials.rows import complete

SEED = int(os.environ.get("LOSSEARCH_FAULTS_SEED", "0"))
LIMIT = 600.0  # seconds that no run of these takes, nor a fault in it
STUDY: dict[str, Any] = {
    "name": "fault",
    "seed": 3,
    "data": {"name": "digits", "noise": {"rate": 0.3}, "limit": 600},
    "model": {"name": "mlp", "hidden": [32]},
    "space": "label_noise",
    "metrics": ["nll"],
    "search": {"trials": 14, "rungs": {"min_epochs": 2, "factor": 3}},
    "training": {"epochs": 6, "batch_size": 32, "device": "cpu", "threads": 1},
    "confirm": {"top": 2, "seeds": 3},
    "executor": "local",
}
ENDS = ("finished", "pruned", "failed", "rejected")
_MARK = "LOSSEARCH_FAULT_MARK"
_SUBREAPER = 36  # PR_SET_CHILD_SUBREAPER


def times(usual: int) -> int:
    """How often a fault is made."""
    return int(os.environ.get("LOSSEARCH_FAULTS", usual))


# --- processes ---------------------------------------------------------------------------------


def adopt_orphans() -> None:
    """What a killed driver leaves behind becomes a child of this process, and can be found."""
    ctypes.CDLL(None).prctl(_SUBREAPER, 1, 0, 0, 0)


def descendants(of: int | None = None) -> dict[int, str]:
    """Processes under one, or under this one, and their titles; of the dead none."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):
                state, parent = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
                if state not in "ZX":
                    parents[int(entry.name)] = int(parent)
                elif int(parent) == os.getpid() and int(entry.name) not in _WAITED:
                    os.waitpid(int(entry.name), os.WNOHANG)
    found: dict[int, str] = {}
    wanted = {of or os.getpid()}
    while wanted:
        wanted = {pid for pid, parent in parents.items() if parent in wanted} - found.keys()
        for pid in wanted:
            with suppress(OSError):
                title = Path(f"/proc/{pid}/cmdline").read_bytes()
                found[pid] = title.replace(b"\0", b" ").decode(errors="replace").strip()
    return found


def marked(mark: str) -> dict[int, str]:
    """Processes of one driver that are alive, wherever they hang in the tree."""
    found: dict[int, str] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):
                if f"{_MARK}={mark}".encode() in (entry / "environ").read_bytes().split(b"\0"):
                    found[int(entry.name)] = (entry / "cmdline").read_text(errors="replace")
    return found


_WAITED: set[int] = set()  # children whose end is awaited by their Popen


class Driver:
    """``lossearch run`` or ``resume`` in a process of its own."""

    def __init__(self, folder: Path, study: Path | None = None) -> None:
        words = ["resume", str(folder)]
        if study is not None:
            words = ["run", str(study), "--output", str(folder)]
        self.mark = f"{os.getpid()}-{time.monotonic_ns()}"
        self.folder = folder
        self._said = tempfile.TemporaryFile()  # noqa: SIM115
        environment = {**os.environ, "OMP_NUM_THREADS": "1", _MARK: self.mark}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "lossearch", *words],
            stdin=subprocess.DEVNULL, stdout=self._said, stderr=self._said, env=environment,
        )  # fmt: skip
        _WAITED.add(self.process.pid)

    @property
    def said(self) -> str:
        self._said.seek(0)
        return self._said.read().decode(errors="replace")

    @property
    def over(self) -> bool:
        return self.process.poll() is not None

    def wait(self) -> int:
        """Its exit code; where it hangs it is killed, and the code is that of the signal."""
        try:
            return self.process.wait(LIMIT)
        except subprocess.TimeoutExpired:
            return self.kill()

    def kill(self) -> int:
        self.process.send_signal(signal.SIGKILL)
        return self.process.wait()

    def reach(self, rows: int, delay: float) -> bool:
        """Wait until the ledger has so many lines, and a while longer; False once it is over."""
        ledger = self.folder / "ledger.jsonl"
        deadline = time.monotonic() + LIMIT
        while time.monotonic() < deadline and not self.over:
            if rows <= 0 or (ledger.exists() and ledger.read_bytes().count(b"\n") >= rows):
                with suppress(subprocess.TimeoutExpired):
                    self.process.wait(delay)
                return not self.over
            time.sleep(0.005)
        return False

    def left(self, patience: float = 20.0) -> list[str]:
        """Processes that outlive it; these are then ended."""
        deadline = time.monotonic() + patience
        while alive := descendants() | marked(self.mark):
            if time.monotonic() > deadline:
                for pid in alive:
                    with suppress(OSError):
                        os.kill(pid, signal.SIGKILL)
                return [f"{pid} {title[:80]}" for pid, title in alive.items()]
            time.sleep(0.1)
        return []


# --- what must be true -------------------------------------------------------------------------


@dataclass
class Whole:
    """The study that nobody disturbed."""

    verdict: dict[str, Any]
    rows: list[dict[str, Any]]
    startup: float  # seconds until its first row


@dataclass
class Figures:
    """What happened, and what went wrong of it."""

    title: str
    counts: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    after: Counter[str] = field(default_factory=Counter)  # the last event before each fault

    def wrong(self, kind: str, where: str, what: Any) -> None:
        self.counts[kind] += 1
        self.problems.append(f"{where}: {kind}: {what}")
        print(self.problems[-1])

    def table(self) -> str:
        lines = [f"\n{self.title}", *(f"  {k:<44}{n:>6}" for k, n in self.counts.items())]
        after = ", ".join(f"{n} after {event}" for event, n in self.after.most_common())
        return "\n".join([*lines, f"  where: {after}"])


def write_study(path: Path, **changes: Any) -> Path:
    path.write_text(yaml.safe_dump({**STUDY, **changes}))
    return path


def whole_study(base: Path, **changes: Any) -> Whole:
    """Run it undisturbed; its MLflow store serves the others too."""
    study = write_study(base / "study.yaml", **changes)
    began = time.time()
    driver = Driver(base / "whole", study)
    assert driver.wait() == 0, driver.said
    assert not driver.left()
    rows = read_ledger(base / "whole" / "ledger.jsonl")
    verdict = json.loads((base / "whole" / "verdict.json").read_text())
    return Whole(verdict, rows, rows[0]["time"] - began)


def lines_of(folder: Path) -> list[bytes]:
    """The lines of a ledger that count."""
    with suppress(FileNotFoundError):
        return list(complete((folder / "ledger.jsonl").read_bytes().split(b"\n")[:-1]))
    return []


def event_of(lines: list[bytes]) -> str:
    return json.loads(lines[-1])["event"] if lines else "nothing"


def moments(draw: random.Random, rows: int, startup: float) -> Iterator[tuple[int, float]]:
    """Lines of the ledger to wait for, and seconds beyond.

    One in eight is while the program loads, one in eight in its last seconds.
    """
    while True:
        kind = draw.random()
        if kind < 1 / 8:
            yield 0, draw.uniform(0.0, startup)
        elif kind < 7 / 8:
            yield draw.randrange(1, rows), draw.expovariate(1 / 0.05)
        else:
            yield rows, draw.uniform(0.0, 1.0)


def check(
    figures: Figures, where: str, folder: Path, whole: Whole, *, equal: bool, before: list[bytes]
) -> None:
    """Nothing that had ended is lost or doubled, and the verdict is the undisturbed study's.

    Args:
        equal: Whether the verdict must be the same to the last bit.
        before: Lines that the ledger had before the fault.
    """
    if lines_of(folder)[: len(before)] != before:
        figures.wrong("lines lost or altered", where, folder)
    rows = read_ledger(folder / "ledger.jsonl")
    ends = Counter(r["trial"] for r in rows if r["event"] in ENDS)
    proposed = [r["trial"] for r in rows if r["event"] == "proposed"]
    proposed += [r["trial"] for r in rows if r["event"] == "rejected" and "role" in r]
    proposed.sort()
    if sorted(ends) != proposed or proposed != list(range(len(proposed))):
        figures.wrong("trials lost", where, (sorted(ends), proposed))
    fresh = Counter(
        (r["event"], r["trial"], r["seed"], r.get("part"))
        for r in rows if r["event"] in ("confirmed", "ablated")
    )  # fmt: skip
    epochs: dict[int, list[int]] = {}
    for row in rows:
        if row["event"] == "rung":
            epochs.setdefault(row["trial"], []).extend(int(r["epoch"]) for r in row["curve"])
    twice = [k for k, n in (*ends.items(), *fresh.items()) if n > 1]
    twice += [t for t, found in epochs.items() if found != list(range(1, len(found) + 1))]
    if twice:
        figures.wrong("trials, epochs or confirmations doubled", where, twice)
    verdict = json.loads((folder / "verdict.json").read_text())
    if equal and verdict != whole.verdict:
        figures.wrong("verdicts that differ", where, _difference(verdict, whole.verdict))
    if equal and _ends(rows) != _ends(whole.rows):
        differing = _ends(rows).items() ^ _ends(whole.rows).items()
        figures.wrong("trials that ended otherwise", where, sorted(differing))


def _ends(rows: list[dict[str, Any]]) -> dict[int, tuple[str, Any, Any]]:
    return {
        r["trial"]: (r["event"], r.get("reason"), r.get("score"))
        for r in rows
        if r["event"] in ENDS
    }


def _difference(one: Any, other: Any, where: str = "") -> str:
    """The first place where two documents differ."""
    if isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys():
        return next((d for k in one if (d := _difference(one[k], other[k], f"{where}.{k}"))), "")
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        pairs = enumerate(zip(one, other, strict=True))
        return next((d for i, (a, b) in pairs if (d := _difference(a, b, f"{where}[{i}]"))), "")
    return "" if one == other else f"{where}: {one!r} is not {other!r}"


def check_tracking(figures: Figures, where: str, folder: Path) -> None:
    """In MLflow each trial has one run, and none still runs."""
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{folder.parent / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("lossearch")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id], max_results=5000)
    running = [r.info.run_name for r in runs if r.info.status == "RUNNING"]
    if running:
        figures.wrong("MLflow runs left running", where, running)
    rows = read_ledger(folder / "ledger.jsonl")
    own = [r for r in runs if r.data.tags.get("lossearch.id") == study_id(rows[0])]
    if len(own) != 1:
        figures.wrong("studies lost or doubled in MLflow", where, len(own))
        return
    children = Counter(
        r.data.tags.get("lossearch.trial")
        for r in runs
        if r.data.tags.get("mlflow.parentRunId") == own[0].info.run_id
        and r.data.tags.get("lossearch.kind") == "trial"
    )
    if children != {str(r["trial"]): 1 for r in rows if "role" in r}:
        figures.wrong("trials lost or doubled in MLflow", where, children)

