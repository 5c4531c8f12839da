"""What a tracker shows of a ledger: flat parameters, tags one can filter by, points of a curve."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from lossearch.documents import without_password
from lossearch.trials.ledger import Row, State, Trial

Point = tuple[str, float, int]  # metric, value, step

STATUS = {
    "running": "RUNNING",
    "finished": "FINISHED",
    "pruned": "KILLED",
    "rejected": "KILLED",
    "failed": "FAILED",
    "complete": "FINISHED",
    "interrupted": "KILLED",
}
_OF_THE_STUDY = ("study", "resumed", "ended", "verdict")


def study_id(row: Row) -> str:
    """A short name that this study alone has, from its ``study`` row."""
    return hashlib.sha256(f"{row.get('name')} {row['time']!r}".encode()).hexdigest()[:16]


def flatten(value: Any, prefix: str = "") -> dict[str, str]:
    """Nested data as dotted keys: ``{"terms": [{"weight": 1}]}`` is ``{"terms.0.weight": "1"}``.

    What is null or empty is left out.
    """
    if isinstance(value, Mapping):
        items: Iterator[tuple[Any, Any]] = iter(value.items())
    elif isinstance(value, (list, tuple)) and any(isinstance(v, (Mapping, list)) for v in value):
        items = enumerate(value)
    elif value is None or value == [] or value == ():
        return {}
    else:
        return {safe_key(prefix): without_password(str(value))}
    flat: dict[str, str] = {}
    for key, inner in items:
        flat |= flatten(inner, f"{prefix}.{key}" if prefix else str(key))
    return flat


def safe_key(key: str) -> str:
    """A key with only the characters that trackers allow."""
    return re.sub(r"[^\w./ :-]", "_", key)[:250]


def components(objective: Mapping[str, Any]) -> dict[str, list[str]]:
    """Component names by kind: ``{"loss": ["focal", "dice"], "balancer": ["fixed"]}``."""
    found: dict[str, list[str]] = {}
    for part in [*(objective.get("terms") or []), objective]:
        for kind, value in part.items():
            name = value.get("name") if isinstance(value, Mapping) else None
            if isinstance(name, str):
                found.setdefault(kind, []).append(name)
    return found


def study_tags(state: State) -> dict[str, str]:
    """Tags of the study's own run."""
    row = state.study
    tags = {
        "lossearch.kind": "study",
        "lossearch.id": study_id(row),
        "lossearch.study": str(row.get("name", "study")),
        "lossearch.status": state.ended or "running",
    }
    data = row.get("data") or {}
    for key in ("name", "fingerprint"):
        if data.get(key):
            tags[f"lossearch.data.{key}"] = str(data[key])
    tags |= {f"lossearch.version.{k}": v for k, v in flatten(row.get("versions") or {}).items()}
    if state.verdict:
        tags["lossearch.recommend"] = str(state.verdict.get("recommend") or "nothing")
        if state.verdict.get("text"):
            tags["mlflow.note.content"] = str(state.verdict["text"])
    return tags


def trial_tags(trial: Trial, study: Row) -> dict[str, str]:
    """Tags of a trial's run: everything by which a person would filter a table of trials."""
    tags = {
        "lossearch.kind": "trial",
        "lossearch.study": str(study.get("name", "study")),
        "lossearch.trial": str(trial.number),
        "lossearch.role": trial.role,
        "lossearch.status": trial.status,
        "lossearch.fidelity": str(trial.epoch),
    }
    tags |= {f"lossearch.{k}": "+".join(v) for k, v in components(trial.objective).items()}
    if trial.reason:
        tags["lossearch.reason"] = trial.reason
        tags["mlflow.note.content"] = f"{trial.reason}: {trial.detail}".removesuffix(": ")
    return tags


def trial_params(trial: Trial) -> dict[str, str]:
    """An objective and its training hyperparameters as flat parameters."""
    return flatten(trial.objective) | flatten({"training": trial.training})


def curve_points(curve: list[dict[str, Any]]) -> Iterator[Point]:
    """The points of a curve, one step an epoch; a value that is not finite has no point."""
    for row in curve:
        for name, value in row.items():
            if name != "epoch":
                yield from point(name, value, int(row["epoch"]))


def point(name: str, value: Any, step: int) -> Iterator[Point]:
    """One point, or none where ``value`` is not a finite number."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if number and math.isfinite(value):
        yield safe_key(name), float(value), step


def progress_points(state: State, trial: Trial) -> Iterator[Point]:
    """How far the study is when ``trial`` has ended; the step is the number of ended trials."""
    counts = state.counts()
    ended = len(state.trials) - counts["running"]
    yield f"trials.{trial.status}", float(counts[trial.status]), ended
    scores = [t.score for t in state.finished() if t.score is not None]
    if trial.status == "finished" and scores:
        best = max(scores) if state.study.get("maximize", True) else min(scores)
        yield from point("best_score", best, ended)


@dataclass
class Update:
    """What some ledger rows add to one run: a study's, a trial's, or one on a fresh seed."""

    name: str
    started: float
    tags: dict[str, str] = field(default_factory=dict)
    params: dict[str, str] = field(default_factory=dict)
    metrics: list[tuple[Point, float]] = field(default_factory=list)  # with the time of the row
    objective: dict[str, Any] | None = None
    status: str = "RUNNING"
    ended: float | None = None

    def add(self, points: Iterable[Point], time: float) -> None:
        self.metrics += [(p, time) for p in points]

    def end(self, status: str, time: float) -> None:
        self.status, self.ended = STATUS[status], time


def run_key(tags: Mapping[str, str]) -> str:
    """Which of a study's runs has these tags."""
    named = {k: tags.get(f"lossearch.{k}") for k in ("trial", "seed", "without")}
    return " ".join(f"{k} {v}" for k, v in named.items() if v is not None)


def collect(state: State, row: Row, updates: dict[str, Update]) -> None:
    """Add to ``updates`` what ``row``, which ``state`` has in it already, means for each run."""
    event, time = row["event"], row["time"]
    study = updates.get("study") or Update(str(state.study.get("name", "study")), time)
    study.tags |= study_tags(state)
    if event == "study":
        study.params |= flatten(row.get("config") or {})
    elif event == "verdict":
        for key in ("difference", "p_value"):
            study.add(point(f"verdict.{key}", row.get(key), 0), time)
    elif event in ("confirmed", "ablated"):
        _on_fresh_seed(state, row, updates)
    elif "trial" in row:
        trial = state.trials[row["trial"]]
        _trial(trial, state, row, updates)
        if trial.status != "running":
            study.add(progress_points(state, trial), time)
    if state.ended:
        study.end(state.ended, time)
    else:
        study.status, study.ended = "RUNNING", None
    if event in _OF_THE_STUDY or study.metrics:
        updates["study"] = study


def _trial(trial: Trial, state: State, row: Row, updates: dict[str, Update]) -> None:
    key = f"trial {trial.number}"
    update = updates.setdefault(key, Update(trial.label, trial.started))
    update.tags |= trial_tags(trial, state.study)
    event, time = row["event"], row["time"]
    if event in ("proposed", "rejected"):
        update.params |= trial_params(trial)
        update.objective = trial.objective
    if event == "rung":
        update.add(curve_points(row["curve"]), time)
        update.add(point("score", row["score"], trial.epoch), time)
    for name, value in trial.metrics.items():
        update.add(point(name, value, trial.epoch), time)
    if trial.status == "running":
        update.status, update.ended = "RUNNING", None
    else:
        if trial.rungs.get(trial.epoch) != trial.score:
            update.add(point("score", trial.score, trial.epoch), time)
        update.add(point("epochs", trial.epoch, trial.epoch), time)
        update.add(point("seconds", trial.seconds, trial.epoch), time)
        update.end(trial.status, time)


def _on_fresh_seed(state: State, row: Row, updates: dict[str, Update]) -> None:
    """A confirmation, or an ablation: the same of the trial without a part."""
    trial, seed, time = state.trials[row["trial"]], row["seed"], row["time"]
    trial = replace(trial, training=trial.final)
    kind, label = "confirmation", trial.label
    without: dict[str, str] = {}
    if row["event"] == "ablated":
        kind, label = "ablation", f"{trial.label} without {row['part']}"
        trial = replace(trial, objective=row["objective"])
        without["lossearch.without"] = row["part"]
    update = Update(f"{label}, seed {seed}", time - row.get("seconds", 0.0))
    update.tags = trial_tags(trial, state.study) | without
    update.tags |= {
        "lossearch.kind": kind,
        "lossearch.role": kind,
        "lossearch.seed": str(seed),
        "lossearch.status": "failed" if row.get("reason") else "finished",
    }
    if row.get("reason"):
        update.tags["lossearch.reason"] = row["reason"]
        update.tags["mlflow.note.content"] = f"{row['reason']}: {row.get('detail', '')}"
    update.params = trial_params(trial) | {"seed": str(seed)}
    update.objective = trial.objective
    epochs = [int(r["epoch"]) for r in row.get("curve", [])]
    last = max(epochs, default=trial.epoch)
    update.add(curve_points(row.get("curve", [])), time)
    update.add(point("validation", row["validation"], last), time)
    for name, value in (row["test"] or {}).items():
        update.add(point(f"test.{name}", value, last), time)
    update.end(update.tags["lossearch.status"], time)
    updates[run_key(update.tags)] = update
