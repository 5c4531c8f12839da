"""What a search begins with: objectives to try first, and what earlier studies found."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence, Set
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from optuna.distributions import distribution_to_json
from optuna.trial import FixedTrial

from lossearch.errors import SpecError, StudyError
from lossearch.feasibility import read_objective
from lossearch.registry import Registry
from lossearch.space import Between, Space, Value
from lossearch.spec import ObjectiveSpec
from lossearch.trials.ledger import State, Trial, read_ledger, replay

BEST = 3  # objectives that a study on other data gives, of different structure


@dataclass(frozen=True)
class Conditions:
    """Under what a score was found: only scores found alike can be compared.

    Attributes:
        task: ``multiclass``, ...
        data: The data's fingerprint.
        model: The model's document, or its text where it was given from Python.
        epochs: Of a whole training.
        metrics: The documents of the metrics that decide.
        measured: Those of all that were measured.
    """

    task: str
    data: str
    model: Any
    epochs: int
    metrics: tuple[Any, ...]
    measured: tuple[Any, ...]

    @classmethod
    def of(cls, study: Mapping[str, Any]) -> Conditions:
        """Those of a ledger's ``study`` row."""
        config = study["config"]
        deciding = config["metric"]
        deciding = deciding if isinstance(deciding, (list, tuple)) else [deciding]
        return cls(
            study["data"]["task"],
            study["data"]["fingerprint"],
            study["model"],
            config["training"]["epochs"],
            tuple(deciding),
            (*deciding, *config.get("metrics", ())),
        )

    def fit(self, earlier: Conditions) -> bool:
        """Whether an earlier study's scores can stand beside those of this one."""
        alike = (self.task, self.data, self.model, self.epochs)
        same = alike == (earlier.task, earlier.data, earlier.model, earlier.epochs)
        return same and all(m in earlier.measured for m in self.metrics)


@dataclass
class WarmStart:
    """What earlier studies give to a search.

    Attributes:
        trials: To learn from, at points of this study's space or its baseline's.
        given: Objectives to try first: the best ones of studies whose scores cannot be compared.
        told: For each folder, how many trials are learned from and how many are tried.
    """

    trials: list[Trial] = field(default_factory=list)
    given: list[ObjectiveSpec] = field(default_factory=list)
    told: list[dict[str, Any]] = field(default_factory=list)

    def document(self) -> dict[str, Any]:
        """Plain data for the ledger's ``study`` row: a resumed study needs no folder any more."""
        return {
            "trials": [asdict(t) for t in self.trials],
            "given": [s.document() for s in self.given],
            "told": self.told,
        }

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> WarmStart:
        return cls(
            [Trial(**t) for t in document["trials"]],
            [ObjectiveSpec.parse(s) for s in document["given"]],
            list(document["told"]),
        )


def read_warm_start(
    folders: Sequence[str],
    here: Conditions,
    *,
    space: Space,
    baseline: Space,
    tuning: Mapping[str, Between | Value],
) -> WarmStart:
    """Take from earlier studies what this one can use.

    Finished trials that were found under the same conditions (``here``'s metrics may have been
    measured only) and lie in the space are there to learn from. Of other studies of the task, the
    best objectives that lie in the space are there to be tried.

    Raises:
        StudyError: a folder holds no study, or one of another task.
    """
    warm = WarmStart()
    for folder in folders:
        state = read_earlier(folder)
        earlier = Conditions.of(state.study)
        if earlier.task != here.task:
            raise StudyError(
                f"search.warm_start: the study in {folder} is {earlier.task}, this one is "
                f"{here.task}; take a study of the same task"
            )
        trials: list[Trial] = []
        given: list[ObjectiveSpec] = []
        if here.fit(earlier):
            names = [_name(m) for m in here.metrics]
            for trial in state.finished():
                known = {_name(earlier.metrics[0]): trial.score, **trial.metrics, **trial.scores}
                scores = {n: v for n in names if (v := known.get(n)) is not None}
                placed = _placed(trial, space, baseline, tuning)
                if placed is not None and len(scores) == len(names):
                    placed.score = scores[names[0]]
                    placed.scores = scores if len(names) > 1 else {}
                    trials.append(placed)
        else:
            given = [s for s in _best(state, space) if s.key not in {g.key for g in warm.given}]
        warm.trials += trials
        warm.given += given
        warm.told.append({"folder": folder, "learned": len(trials), "tried": len(given)})
    return warm


def read_given(
    documents: Sequence[Any],
    task: str,
    *,
    registry: Registry,
    available: Set[str],
    facts: dict[str, Any],
) -> list[ObjectiveSpec]:
    """The objectives of ``search.given``, each checked.

    Raises:
        StudyError: one is no objective, or cannot be trained in this study.
    """
    found: list[ObjectiveSpec] = []
    for number, document in enumerate(documents):
        where = f"search.given.{number}"
        if isinstance(document, str):
            document = {"terms": [{"loss": document}]}
        try:
            spec = read_objective(
                document, where, task, registry=registry, available=available, facts=facts
            )
        except SpecError as error:
            raise StudyError(str(error)) from None
        found.append(spec)
    return found


def read_earlier(folder: str) -> State:
    """What an earlier study's ledger says.

    Raises:
        StudyError: the folder holds no study.
    """
    try:
        state = replay(read_ledger(Path(folder).expanduser() / "ledger.jsonl"))
    except StudyError as error:
        raise StudyError(f"search.warm_start: {error}") from None
    if not state.study:
        raise StudyError(f"search.warm_start: the study in {folder} was stopped before it began")
    return state


def _name(metric: Any) -> str:
    return metric if isinstance(metric, str) else metric["name"]


def _placed(
    trial: Trial, space: Space, baseline: Space, tuning: Mapping[str, Between | Value]
) -> Trial | None:
    """An earlier trial as a point of this study's space, or ``None`` where it is none."""
    if not _tuned(trial.tuned, tuning):
        return None
    spec = ObjectiveSpec.parse(trial.objective).model_copy(update={"scale": 1.0})
    own = trial.role == "baseline"
    where = baseline if own else space
    params = where.locate(spec)
    if params is None:
        return None
    for name, node in tuning.items():
        if isinstance(node, Between):
            params[f"training.{name}"] = trial.tuned[name]
    point = FixedTrial(params)
    where.suggest(point)
    for name, node in tuning.items():
        node.suggest(point, f"training.{name}")
    return Trial(
        -1,
        "baseline" if own else "search",
        spec.document(),
        spec.label(),
        trial.tuned,
        params,
        {k: distribution_to_json(d) for k, d in point.distributions.items()},
        status="finished",
        epoch=trial.epoch,
    )


def _tuned(values: Mapping[str, Any], tuning: Mapping[str, Between | Value]) -> bool:
    """Whether training hyperparameters are within what this study tunes."""
    for name, node in tuning.items():
        value = values.get(name)
        if value is None:
            return False
        if isinstance(node, Between):
            if not node.low <= value <= node.high:
                return False
        elif not math.isclose(value, node.value):
            return False
    return True


def _best(state: State, space: Space) -> list[ObjectiveSpec]:
    """The best finished objectives of a study that lie in the space, one of each structure."""
    maximize = state.study["maximize"]
    first = maximize if isinstance(maximize, bool) else maximize[0]
    trials = [t for t in state.finished() if t.role != "baseline"]
    chosen: dict[str, ObjectiveSpec] = {}
    for trial in sorted(trials, key=lambda t: t.score or 0.0, reverse=first):
        spec = ObjectiveSpec.parse(trial.objective).model_copy(update={"scale": 1.0})
        if spec.structure not in chosen and space.locate(spec) is not None:
            chosen[spec.structure] = spec
    return list(chosen.values())[:BEST]
