"""What to try next: by ask and tell, references first, an equal share for the baseline."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import optuna
from pydantic import BaseModel, ConfigDict, Field, model_validator

from lossearch.space import Between, Space, Value
from lossearch.spec import ObjectiveSpec
from lossearch.trials.ledger import Role, Trial
from lossearch.trials.rungs import RungsConfig
from lossearch.trials.samplers import History, frozen, new_study
from lossearch.trials.tpe import FINISHED
from lossearch.trials.units import written

# A baseline tuned at fewer points than this is a straw man.
MIN_BASELINE = 5
# Trials where another budget than their number ends the search.
MANY = 10_000


class SearchConfig(BaseModel):
    """The ``search:`` section of a study: it ends with the first of its budgets."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    trials: int = Field(
        default=50,
        ge=2,
        le=100_000,
        description="in all, the baseline's included; 10,000 where epochs or hours are given",
    )
    epochs: int | None = Field(
        default=None, ge=1, le=10**12, description="trained in all, in the search"
    )
    hours: float | None = Field(
        default=None, gt=0, le=10**6, description="of the search, by the clock"
    )
    gpu_hours: float | None = Field(default=None, gt=0, description="of training, on all devices")
    patience: int | None = Field(default=None, ge=1, description="trials without a new best")
    sampler: Literal["tpe", "gp", "cmaes", "nsga2", "evolution", "random"] = "tpe"
    rungs: RungsConfig | None = RungsConfig()
    references: bool = Field(default=True, description="first each loss at its paper's defaults")
    given: tuple[str | dict[str, Any], ...] = Field(
        default=(), description="objectives to try before all others; a loss's name will do"
    )
    warm_start: tuple[str, ...] = Field(
        default=(), description="folders of earlier studies to learn from"
    )

    @model_validator(mode="before")
    @classmethod
    def _many_trials(cls, value: Any) -> Any:
        budgets = ("epochs", "hours", "gpu_hours")
        if isinstance(value, dict) and any(value.get(k) is not None for k in budgets):
            return {"trials": MANY, **value}
        return value


@dataclass(frozen=True)
class Proposal:
    """An objective to try, with its training hyperparameters.

    Attributes:
        sampler: What the sampler keeps with the trial, for the ledger.
    """

    role: Role
    objective: ObjectiveSpec
    training: dict[str, float]
    params: dict[str, Any]
    distributions: dict[str, str]
    sampler: dict[str, Any] = field(default_factory=dict)


class Proposer:
    """Proposes trials, and learns from what the ledger says became of them.

    The baseline has a history of its own, over the training hyperparameters alone. It gets a turn
    whenever some loss has had more trials than it, so that no objective is tuned longer than the
    baseline.

    Each proposal depends on the ledger's trials and a seed of its own alone: so a resumed study
    proposes what the uninterrupted one would have, and trials that are under way are kept away
    from. For several at once, propose and :meth:`register` one after the other.

    Args:
        space: What is searched.
        baseline: The baseline as a space.
        tuning: The training hyperparameters, with their ranges.
        config: How to search.
        maximize: Whether more is better; one for each metric where several decide.
        seed: The study's.
        given: Objectives to try before all others.
        warm: Trials of earlier studies, at points of this space or of the baseline's, to learn
            from; no trials of this study.
    """

    def __init__(
        self,
        space: Space,
        baseline: Space,
        tuning: Mapping[str, Between | Value],
        config: SearchConfig,
        *,
        maximize: bool | Sequence[bool],
        seed: int,
        given: Sequence[ObjectiveSpec] = (),
        warm: Sequence[Trial] = (),
    ) -> None:
        self.space, self.baseline = space, baseline
        self.tuning, self.config, self.seed = tuning, config, seed
        self.maximize = (maximize,) if isinstance(maximize, bool) else tuple(maximize)
        self._history = History(config.sampler, self.maximize, config.trials)
        self._baselines = History(config.sampler, self.maximize, config.trials)
        self._trials: list[Trial] = []  # the ledger's own, which change as they run
        self._own, self._per_loss = 0, Counter[str]()  # trials of the baseline and of each loss
        self._given = list(given)
        self._references = list(space.references()) if config.references else []
        for trial in warm:
            (self._baselines if trial.role == "baseline" else self._history).add(trial, trial)

    @property
    def left(self) -> int:
        """How many proposals the budget of trials still has."""
        return self.config.trials - len(self._trials)

    def next_role(self) -> Role:
        """Whose turn it is."""
        own, most = self._own, max(self._per_loss.values(), default=0)
        # the last trial of all could only put a loss ahead
        if own == 0 or own < most or (self.left == 1 and own == most):
            return "baseline"
        if self._given:
            return "given"
        if self._references and self._per_loss.total() < self.config.trials // 2:
            return "reference"
        share = min(MIN_BASELINE, self.config.trials // 3)
        return "baseline" if own < share else "search"

    def propose(self) -> Proposal:
        """The next objective to try; :meth:`register` it once it is in the ledger."""
        role = self.next_role()
        space, history = self.space, self._history
        params: dict[str, Any] | None = None
        if role == "given":
            params = space.locate(self._given[0])
            if params is None:  # outside the space, it is tried as it is
                return Proposal(role, self._given[0], self._defaults, {}, {})
        elif role == "reference":
            params = self._references[0][1]
        elif role == "baseline":
            space, history = self.baseline, self._baselines
            if not any(t.role == "baseline" for t in self._trials):
                params = next(iter(space.references()))[1]
        if params is not None:
            tuned = [k for k, node in self.tuning.items() if isinstance(node, Between)]
            params = {**params, **{f"training.{k}": self._defaults[k] for k in tuned}}
        seeds = np.random.SeedSequence([self.seed, len(self._trials)])
        study = history.study(int(seeds.generate_state(1)[0]))
        if params is not None:
            study.enqueue_trial(params)
        trial = study.ask()
        objective = space.suggest(trial)
        values = {k: node.suggest(trial, f"training.{k}") for k, node in self.tuning.items()}
        asked = study.get_trials(deepcopy=False)[-1]
        distributions = {k: written(d) for k, d in asked.distributions.items()}
        notes = {k: v for k, v in asked.system_attrs.items() if k != "fixed_params"}
        return Proposal(role, objective, values, dict(asked.params), distributions, notes)

    def ahead(self, count: int) -> list[Proposal]:
        """The next proposals, as they come if each is let through; within the budget."""
        own = self._copied() if count > 1 else self
        found: list[Proposal] = []
        for _ in range(min(count, self.left)):
            found.append(each := own.propose())
            if own is not self:
                number, document = len(own._trials), each.objective.document()
                own.register(
                    Trial(number, each.role, document, "", each.training, each.params,
                          each.distributions, sampler=each.sampler)
                )  # fmt: skip
        return found

    def _copied(self) -> Proposer:
        """Another that can go on without this one's hearing of it."""
        own = copy.copy(self)
        own._history, own._baselines = self._history.copied(), self._baselines.copied()
        own._trials, own._per_loss = list(self._trials), self._per_loss.copy()
        return own

    @property
    def _defaults(self) -> dict[str, Any]:
        return {
            k: node.default if isinstance(node, Between) else node.value
            for k, node in self.tuning.items()
        }

    def register(self, trial: Trial) -> None:
        """Count a trial of the ledger, and learn from it what will become of it.

        Only whether it was rejected must be known by now.
        """
        self._trials.append(trial)
        if trial.status != "rejected":
            self._per_loss[_main_loss(trial)] += trial.role != "baseline"
            self._own += trial.role == "baseline"
        # what repeats a trial has its fate: the sampler learns its score at these parameters too
        fate = trial if trial.equals is None else self._trials[trial.equals]
        (self._baselines if trial.role == "baseline" else self._history).add(trial, fate)
        if trial.role == "reference":
            self._references = self._references[1:]
        elif trial.role == "given":
            self._given = self._given[1:]

    def restore(self, trials: Iterable[Trial]) -> None:
        """Take up the trials of a ledger, in order."""
        for trial in trials:
            self.register(trial)


def importance(trials: Iterable[Trial], *, maximize: bool | Sequence[bool]) -> dict[str, float]:
    """How much each parameter of the space mattered for the score (fANOVA), most first.

    Where several metrics decide, the first of them. Optuna's own 64 trees grow a leaf for each
    trial, and take a minute for 2,000; few and shallow ones give the same shares in a second
    (``docs/performance.md``).
    """
    first = maximize if isinstance(maximize, bool) else maximize[0]
    complete = [t for t in trials if t.role != "baseline" and t.status == "finished"]
    if len(complete) < 8:
        return {}
    study = new_study("random", (first,), 0)
    study.add_trials(frozen(t, (FINISHED, (t.score,))) for t in complete if t.score is not None)
    try:
        evaluator = optuna.importance.FanovaImportanceEvaluator(n_trees=16, max_depth=6, seed=0)
        found = optuna.importance.get_param_importances(study, evaluator=evaluator)
    except (RuntimeError, ValueError):  # no parameter is common to all trials
        return {}
    return {k: round(float(v), 4) for k, v in found.items()}


def _main_loss(trial: Trial) -> str:
    return trial.objective["terms"][0]["loss"]["name"]
