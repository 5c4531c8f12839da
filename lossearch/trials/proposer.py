"""What to try next: Optuna by ask and tell, references first, an equal share for the baseline."""

from __future__ import annotations

import json
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import optuna
from optuna.distributions import distribution_to_json, json_to_distribution
from optuna.trial import FrozenTrial, TrialState, create_trial
from pydantic import BaseModel, ConfigDict, Field

from lossearch.space import Between, Space, Value
from lossearch.spec import ObjectiveSpec
from lossearch.trials.ledger import Role, Trial
from lossearch.trials.rungs import RungsConfig

# A baseline tuned at fewer points than this is a straw man.
MIN_BASELINE = 5


class SearchConfig(BaseModel):
    """The ``search:`` section of a study."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    trials: int = Field(50, ge=2, description="in all, the baseline's included")
    sampler: Literal["tpe", "gp", "cmaes", "random"] = "tpe"
    rungs: RungsConfig | None = RungsConfig()
    references: bool = Field(True, description="first each loss at its paper's defaults")


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
        self._studies = {
            "search": _study(config.sampler, maximize, seed),
            "baseline": _study(config.sampler, maximize, seed + 1),
        }
        self._asked: dict[int, optuna.Trial] = {}
        self._per_loss: Counter[str] = Counter()
        self._of_baseline = 0
        self.proposed = 0
        self._references = list(space.references()) if config.references else []

    @property
    def left(self) -> int:
        """How many proposals the budget still has."""
        return self.config.trials - self.proposed

    def next_role(self) -> Role:
        """Whose turn it is."""
        share = min(MIN_BASELINE, self.config.trials // 3)
        if self._of_baseline == 0 or self._of_baseline < max(self._per_loss.values(), default=0):
            return "baseline"
        if self._references and self._per_loss.total() < self.config.trials // 2:
            return "reference"
        return "baseline" if self._of_baseline < share else "search"

    def propose(self) -> tuple[Proposal, optuna.Trial]:
        """The next objective to try."""
        role = self.next_role()
        study = self._studies["baseline" if role == "baseline" else "search"]
        space = self.baseline if role == "baseline" else self.space
        defaults = {
            f"training.{k}": node.default
            for k, node in self.tuning.items()
            if isinstance(node, Between)
        }
        if role == "reference":
            _, params = self._references.pop(0)
            study.enqueue_trial({**params, **defaults})
        elif role == "baseline" and self._of_baseline == 0:
            first = next(iter(self.baseline.references()))[1]
            study.enqueue_trial({**first, **defaults})
        trial = study.ask()
        objective = space.suggest(trial)
        values = {k: node.suggest(trial, f"training.{k}") for k, node in self.tuning.items()}
        distributions = {k: distribution_to_json(d) for k, d in trial.distributions.items()}
        return Proposal(role, objective, values, dict(trial.params), distributions), trial

    def register(self, trial: Trial, asked: optuna.Trial | None = None) -> None:
        """Count a proposal that is in the ledger now."""
        self.proposed += 1
        if trial.role == "baseline":
            self._of_baseline += 1
        else:
            self._per_loss[_main_loss(trial.objective)] += 1
        if trial.role == "reference" and asked is None:
            self._references = self._references[1:]  # a resumed study has already proposed it
        if asked is not None:
            self._asked[trial.number] = asked

    def tell(self, trial: Trial) -> None:
        """Tell the sampler what became of a trial.

        A trial that waits at a rung counts as pruned there until it goes on and ends.
        """
        study = self._studies["baseline" if trial.role == "baseline" else "search"]
        asked = self._asked.pop(trial.number, None)
        frozen = _frozen(trial)
        if asked is None:
            if frozen is not None:
                study.add_trial(frozen)
            return
        for step, value in trial.rungs.items():
            asked.report(value, step)
        if frozen is None:
            study.tell(asked, state=TrialState.FAIL)
        elif frozen.state == TrialState.PRUNED:
            study.tell(asked, state=TrialState.PRUNED)
        else:
            study.tell(asked, trial.score)

    def restore(self, trials: Iterable[Trial]) -> None:
        """Rebuild the sampler's state from the ledger's trials."""
        for trial in trials:
            self.register(trial)
            if trial.status != "running" or trial.rungs:
                self.tell(trial)

    def importance(self) -> dict[str, float]:
        """How much each parameter of the space mattered for the score (fANOVA), most first."""
        study = self._studies["search"]
        complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        if len(complete) < 8:
            return {}
        try:
            found = optuna.importance.get_param_importances(study)
        except (RuntimeError, ValueError):  # no parameter is common to all trials
            return {}
        return {k: round(float(v), 4) for k, v in found.items()}


def _frozen(trial: Trial) -> FrozenTrial | None:
    """A ledger's trial as Optuna keeps it; a failed one teaches the sampler nothing."""
    complete = trial.status == "finished" and trial.score is not None
    if trial.status == "failed" or (not complete and not trial.rungs):
        return None
    return create_trial(
        state=TrialState.COMPLETE if complete else TrialState.PRUNED,
        value=trial.score if complete else trial.rungs[max(trial.rungs)],
        params=_typed(trial.params, trial.distributions),
        distributions={k: json_to_distribution(d) for k, d in trial.distributions.items()},
        intermediate_values=dict(trial.rungs),
    )


def _typed(params: Mapping[str, Any], distributions: Mapping[str, str]) -> dict[str, Any]:
    """JSON turns 1.0 into 1 in some writers; a float parameter stays a float."""
    floats = {k for k, d in distributions.items() if json.loads(d)["name"] == "FloatDistribution"}
    return {k: float(v) if k in floats else v for k, v in params.items()}


def _main_loss(objective: Mapping[str, Any]) -> str:
    return objective["terms"][0]["loss"]["name"]


def _study(sampler: str, maximize: bool, seed: int) -> optuna.Study:
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
    return optuna.create_study(sampler=made, direction=direction)
