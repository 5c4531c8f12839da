"""What to try next: Optuna by ask and tell, references first, an equal share for the baseline."""

from __future__ import annotations

import json
import warnings
from collections import Counter
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Any, Literal

import numpy as np
import optuna
from optuna.distributions import distribution_to_json, json_to_distribution
from optuna.storages import InMemoryStorage
from optuna.trial import FrozenTrial, TrialState, create_trial
from pydantic import BaseModel, ConfigDict, Field

from lossearch.errors import StudyError
from lossearch.space import Between, Space, Value
from lossearch.spec import ObjectiveSpec
from lossearch.trials.ledger import Role, Trial
from lossearch.trials.rungs import RungsConfig

# A baseline tuned at fewer points than this is a straw man.
MIN_BASELINE = 5


class SearchConfig(BaseModel):
    """The ``search:`` section of a study."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    trials: int = Field(default=50, ge=2, description="in all, the baseline's included")
    sampler: Literal["tpe", "gp", "cmaes", "random"] = "tpe"
    rungs: RungsConfig | None = RungsConfig()
    references: bool = Field(default=True, description="first each loss at its paper's defaults")


@dataclass(frozen=True)
class Proposal:
    """An objective to try, with its training hyperparameters."""

    role: Role
    objective: ObjectiveSpec
    training: dict[str, float]
    params: dict[str, Any]
    distributions: dict[str, str]


class Proposer:
    """Proposes trials, and learns from what the ledger says became of them.

    The baseline has an Optuna study of its own, over the training hyperparameters alone. It gets
    a turn whenever some loss has had more trials than it, so that no objective is tuned longer
    than the baseline.

    Each proposal is made by a new Optuna study that holds the ledger's trials, with a seed of its
    own: so a resumed study proposes what the uninterrupted one would have.
    """

    def __init__(
        self,
        space: Space,
        baseline: Space,
        tuning: Mapping[str, Between | Value],
        config: SearchConfig,
        *,
        maximize: bool,
        seed: int,
    ) -> None:
        self.space, self.baseline = space, baseline
        self.tuning, self.config = tuning, config
        self.maximize, self.seed = maximize, seed
        self._trials: list[Trial] = []  # the ledger's own, which change as they run
        self._attributes: dict[int, dict[str, Any]] = {}  # what CMA-ES keeps with its trials
        self._frozen: dict[int, tuple[Any, FrozenTrial]] = {}
        self._references = list(space.references()) if config.references else []

    @property
    def left(self) -> int:
        """How many proposals the budget still has."""
        return self.config.trials - len(self._trials)

    def next_role(self) -> Role:
        """Whose turn it is."""
        trained = [t for t in self._trials if t.status != "rejected"]
        per_loss = Counter(_main_loss(t) for t in trained if t.role != "baseline")
        own, most = len(trained) - per_loss.total(), max(per_loss.values(), default=0)
        # the last trial of all could only put a loss ahead
        if own == 0 or own < most or (self.left == 1 and own == most):
            return "baseline"
        if self._references and per_loss.total() < self.config.trials // 2:
            return "reference"
        share = min(MIN_BASELINE, self.config.trials // 3)
        return "baseline" if own < share else "search"

    def propose(self) -> Proposal:
        """The next objective to try; :meth:`register` it once it is in the ledger."""
        role = self.next_role()
        space = self.baseline if role == "baseline" else self.space
        study = self._study(role == "baseline")
        defaults = {
            f"training.{k}": node.default
            for k, node in self.tuning.items()
            if isinstance(node, Between)
        }
        if role == "reference":
            study.enqueue_trial({**self._references[0][1], **defaults})
        elif role == "baseline" and not study.get_trials(deepcopy=False):
            first = next(iter(self.baseline.references()))[1]
            study.enqueue_trial({**first, **defaults})
        trial = study.ask()
        objective = space.suggest(trial)
        values = {k: node.suggest(trial, f"training.{k}") for k, node in self.tuning.items()}
        distributions = {k: distribution_to_json(d) for k, d in trial.distributions.items()}
        self._attributes[len(self._trials)] = study.get_trials(deepcopy=False)[-1].system_attrs
        return Proposal(role, objective, values, dict(trial.params), distributions)

    def register(self, trial: Trial) -> None:
        """Count a trial of the ledger, and learn from it what will become of it."""
        self._trials.append(trial)
        if trial.role == "reference":
            self._references = self._references[1:]

    def restore(self, trials: Iterable[Trial]) -> None:
        """Take up the trials of a ledger, in order."""
        for trial in trials:
            self.register(trial)

    def _study(self, baseline: bool) -> optuna.Study:
        """All that is known by now, as the sampler reads it."""
        seeds = np.random.SeedSequence([self.seed, len(self._trials)])
        known = [
            self._known(number, trial)
            for number, trial in enumerate(self._trials)
            if (trial.role == "baseline") == baseline
        ]
        seed = int(seeds.generate_state(1)[0])
        return _study(self.config.sampler, self.maximize, seed, _LedgerStorage(known))

    def _known(self, number: int, trial: Trial) -> FrozenTrial:
        """A trial as Optuna keeps it, made anew only when something has become of it."""
        # what repeats a trial has its fate: the sampler learns its score at these parameters too
        fate = trial if trial.equals is None else self._trials[trial.equals]
        stage = (fate.status, len(fate.rungs))
        cached = self._frozen.get(number)
        if cached is None or cached[0] != stage:
            own = {"params": trial.params, "distributions": trial.distributions}
            frozen = _frozen(replace(fate, **own), self._attributes.get(number))
            frozen.number = number + 1  # the trial that is asked for has the number 0
            cached = self._frozen[number] = (stage, frozen)
        return cached[1]


class _LedgerStorage(InMemoryStorage):
    """Optuna's view of the ledger: its trials as they stand, and the one being asked for.

    Optuna's own storages copy every trial on its way in: at trial 5,000 seconds for a proposal.
    """

    def __init__(self, known: list[FrozenTrial]) -> None:
        super().__init__()
        self._ledger = known

    def get_all_trials(
        self,
        study_id: int,
        deepcopy: bool = True,
        states: Container[TrialState] | None = None,
    ) -> list[FrozenTrial]:
        asked = super().get_all_trials(study_id, deepcopy, states)
        return [t for t in self._ledger if states is None or t.state in states] + asked


def importance(trials: Iterable[Trial], *, maximize: bool) -> dict[str, float]:
    """How much each parameter of the space mattered for the score (fANOVA), most first."""
    complete = [t for t in trials if t.role != "baseline" and t.status == "finished"]
    if len(complete) < 8:
        return {}
    study = _study("random", maximize, 0)
    study.add_trials(_frozen(trial) for trial in complete)
    try:
        evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
        found = optuna.importance.get_param_importances(study, evaluator=evaluator)
    except (RuntimeError, ValueError):  # no parameter is common to all trials
        return {}
    return {k: round(float(v), 4) for k, v in found.items()}


def _frozen(trial: Trial, attributes: Mapping[str, Any] | None = None) -> FrozenTrial:
    """A ledger's trial as Optuna keeps it.

    One that waits at a rung counts as pruned there; a failed or rejected one teaches the sampler
    nothing.
    """
    value: float | None = None
    if trial.status == "finished" and trial.score is not None:
        state, value = TrialState.COMPLETE, trial.score
    elif trial.status in ("finished", "failed", "rejected"):
        state = TrialState.FAIL
    elif trial.rungs:
        state, value = TrialState.PRUNED, trial.rungs[max(trial.rungs)]
    else:
        state = TrialState.FAIL if trial.status == "pruned" else TrialState.RUNNING
    return create_trial(
        state=state,
        value=value,
        params=_typed(trial.params, trial.distributions),
        distributions={k: json_to_distribution(d) for k, d in trial.distributions.items()},
        system_attrs=dict(attributes or {}),
        intermediate_values=dict(trial.rungs),
    )


def _typed(params: Mapping[str, Any], distributions: Mapping[str, str]) -> dict[str, Any]:
    """JSON turns 1.0 into 1 in some writers; a float parameter stays a float."""
    floats = {k for k, d in distributions.items() if json.loads(d)["name"] == "FloatDistribution"}
    return {k: float(v) if k in floats else v for k, v in params.items()}


def _main_loss(trial: Trial) -> str:
    return trial.objective["terms"][0]["loss"]["name"]


def _study(
    sampler: str, maximize: bool, seed: int, storage: InMemoryStorage | None = None
) -> optuna.Study:
    if sampler == "cmaes" and find_spec("cmaes") is None:
        raise StudyError("search.sampler = cmaes needs the package cmaes; pip install cmaes")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        made: optuna.samplers.BaseSampler
        if sampler == "tpe":
            # Optuna 5 samples conditional spaces independently unless told to group them.
            made = optuna.samplers.TPESampler(
                multivariate=True, group=True, constant_liar=True, seed=seed
            )
        elif sampler == "gp":
            made = optuna.samplers.GPSampler(seed=seed)
        elif sampler == "cmaes":
            made = optuna.samplers.CmaEsSampler(seed=seed, warn_independent_sampling=False)
        else:
            made = optuna.samplers.RandomSampler(seed=seed)
    direction = "maximize" if maximize else "minimize"
    return optuna.create_study(sampler=made, direction=direction, storage=storage)
