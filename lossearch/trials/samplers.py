"""The trials of a ledger as samplers read them."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Literal

import numpy as np
import optuna
from optuna.distributions import FloatDistribution
from optuna.samplers import BaseSampler
from optuna.storages import InMemoryStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial

from lossearch.errors import StudyError
from lossearch.trials.evolution import EvolutionSampler, Member, population_size
from lossearch.trials.ledger import Trial
from lossearch.trials.pareto import order
from lossearch.trials.tpe import (
    FINISHED,
    PENDING,
    REFUSED,
    UNKNOWN,
    Knowledge,
    TreeSampler,
)
from lossearch.trials.units import parsed

Kind = Literal["tpe", "gp", "cmaes", "nsga2", "evolution", "random"]


class History:
    """What is known of the trials of one space, and a study that makes the next proposal of it.

    ============  ===========================================================================
    finished      has its values
    paused,       has its values at the last rung that it reached, to be compared only with those
    pruned        of that rung
    rejected,     ``tpe`` keeps away from it; the others leave it out, as Optuna's must
    failed
    running       ``tpe`` and ``gp`` keep away from it until it has reached a rung
    ============  ===========================================================================

    Optuna has no pruning with several metrics, and its genetic sampler knows none at all; values
    of an early epoch must not pass for final ones. So ``tpe``, ``evolution`` and ``nsga2`` go by
    an order: who got further comes first, and trials of one rung are in the order of
    :func:`~lossearch.trials.pareto.order`. ``nsga2`` is told each trial's place in it, which is
    what NSGA-II selects by. ``gp`` gets the values of those that finished, and no others.
    """

    def __init__(self, sampler: Kind, maximize: Sequence[bool], trials: int) -> None:
        self.sampler: Kind = sampler
        self.maximize = tuple(maximize)
        self._size = population_size(trials)
        self._known: list[_Known] = []
        # what something may still become of: its row, the trial to watch, its epoch by now
        self._open: list[tuple[int, Trial, int]] = []
        self._arrays = Knowledge(self.maximize)
        if sampler == "cmaes":
            if find_spec("cmaes") is None:
                raise StudyError(
                    "search.sampler = cmaes needs the package cmaes; pip install cmaes"
                )
            if len(self.maximize) > 1:
                raise StudyError(
                    "search.sampler = cmaes searches for one metric, not several; take tpe, "
                    "nsga2, evolution or gp"
                )

    def add(self, trial: Trial, fate: Trial) -> None:
        """Take up a trial, and the one that has its fate: itself, or the one that it repeats."""
        self._open.append((len(self._known), fate, -1))
        self._known.append(_Known(trial, fate))
        if self.sampler == "tpe":
            distributions = {k: parsed(d) for k, d in trial.distributions.items()}
            self._arrays.add(trial.params, distributions)

    def copied(self) -> History:
        """Another that knows the same, and can be told more without this one's hearing of it."""
        self._catch_up()  # once, and not again in each copy
        own = copy.copy(self)
        own._known, own._open = list(self._known), list(self._open)
        own._arrays = self._arrays.copied()
        return own

    def study(self, seed: int) -> optuna.Study:
        """A study to ask for the next trial; it knows all that the ledger knows by now."""
        self._catch_up()
        made: BaseSampler | None = None
        seen: list[FrozenTrial] = []
        if self.sampler == "tpe":
            made = TreeSampler(self._arrays, seed)
        elif self.sampler == "evolution":
            made = EvolutionSampler(self._living(), self._size, self.maximize, seed)
        elif self.sampler == "nsga2":
            self._rank()
            made = optuna.samplers.NSGAIISampler(population_size=self._size, seed=seed)
        if made is None or self.sampler == "nsga2":
            seen = [k.frozen for k in self._known if k.frozen is not None]
        directions = (False,) if self.sampler == "nsga2" else self.maximize
        return new_study(self.sampler, directions, seed, _LedgerStorage(seen), made)

    def _catch_up(self) -> None:
        """Look at what has changed since the last proposal; most of thousands has not."""
        changed = [
            i
            for i, (_, trial, epoch) in enumerate(self._open)
            if trial.epoch != epoch or trial.status != "running"
        ]
        over: set[int] = set()
        for i in changed:
            row, trial, _ = self._open[i]
            self._tell(row)
            self._open[i] = (row, trial, trial.epoch)
            if trial.status != "running":
                over.add(i)
        if over:
            self._open = [each for i, each in enumerate(self._open) if i not in over]

    def _tell(self, row: int) -> None:
        known = self._known[row]
        reached = fate(known.fate, len(self.maximize))
        if self.sampler == "tpe":
            self._arrays.change(row, known.trial.params)
            self._arrays.tell(row, *reached)
        elif self.sampler not in ("evolution", "random"):
            made = known.frozen = frozen(known.fate, reached, known.trial)
            made.number = row + 1  # the one that is asked for has the number 0

    def _rank(self) -> None:
        """Tell each trial's place among all, the best first."""
        levels: dict[float, list[tuple[_Known, tuple[float, ...]]]] = {}
        for known in self._known:
            level, values = fate(known.fate, len(self.maximize))
            if level > PENDING:
                levels.setdefault(level, []).append((known, values))
        place = 0
        for level in sorted(levels, reverse=True):
            peers = levels[level]
            for i in order(np.array([values for _, values in peers]), self.maximize):
                made = peers[i][0].frozen
                assert made is not None
                made.state, made.values, place = TrialState.COMPLETE, [float(place)], place + 1

    def _living(self) -> list[Member]:
        """The population: the latest trials that have a score."""
        found: list[Member] = []
        for known in reversed(self._known):
            level, values = fate(known.fate, len(self.maximize))
            if level > PENDING and known.trial.params:
                found.append(
                    Member(
                        known.trial.params,
                        {k: parsed(d) for k, d in known.trial.distributions.items()},
                        level,
                        values,
                    )
                )
            if len(found) == self._size:
                break
        return found[::-1]


@dataclass
class _Known:
    trial: Trial
    fate: Trial
    frozen: FrozenTrial | None = None


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


def fate(trial: Trial, metrics: int) -> tuple[float, tuple[float, ...]]:
    """How far a trial got (an epoch, or a constant of ``tpe``), and its values there."""
    values: tuple[float, ...] = ()
    if trial.status == "rejected":
        return REFUSED, values
    if trial.status == "failed":
        return REFUSED, values
    if trial.status == "finished":
        level, values = FINISHED, trial.values()
    elif trial.rungs:
        level = float(max(trial.rungs))
        values = trial.values(max(trial.rungs))
    else:
        return (PENDING if trial.status == "running" else UNKNOWN), values
    # where a metric is not a number, nothing can be learned but to keep away
    return (level, values) if len(values) == metrics else (REFUSED, ())


def frozen(
    trial: Trial, known: tuple[float, tuple[float, ...]], asked: Trial | None = None
) -> FrozenTrial:
    """A ledger's trial as Optuna keeps it.

    One that waits at a rung counts as pruned there; a failed or rejected one teaches Optuna's
    samplers nothing.

    Args:
        trial: The trial.
        known: Its :func:`fate`.
        asked: The trial whose parameters these were, where ``trial`` is one that it repeats.
    """
    asked = asked or trial
    level, values = known
    rungs = trial.rungs if len(values) == 1 else {}
    state = TrialState.FAIL
    if level == FINISHED:
        state = TrialState.COMPLETE
    elif level > PENDING:
        state = TrialState.PRUNED
    elif trial.status == "running":
        state = TrialState.RUNNING
    return create_trial(
        state=state,
        values=values if state is TrialState.COMPLETE or rungs else None,
        params=_typed(asked.params, asked.distributions),
        distributions={k: parsed(d) for k, d in asked.distributions.items()},
        system_attrs=asked.sampler,
        intermediate_values=dict(rungs),
    )


def _typed(params: Mapping[str, Any], distributions: Mapping[str, str]) -> dict[str, Any]:
    """JSON turns 1.0 into 1 in some writers; a float parameter stays a float."""
    floats = {k for k, d in distributions.items() if isinstance(parsed(d), FloatDistribution)}
    return {k: float(v) if k in floats else v for k, v in params.items()}


def new_study(
    sampler: Kind,
    maximize: Sequence[bool],
    seed: int,
    storage: InMemoryStorage | None = None,
    made: BaseSampler | None = None,
) -> optuna.Study:
    """A study of Optuna's, without a word on the screen."""
    if optuna.logging.get_verbosity() < optuna.logging.WARNING:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        if made is None and sampler == "gp":
            made = optuna.samplers.GPSampler(seed=seed)
        elif made is None and sampler == "cmaes":
            made = optuna.samplers.CmaEsSampler(seed=seed, warn_independent_sampling=False)
        elif made is None:
            made = optuna.samplers.RandomSampler(seed=seed)
    directions = [StudyDirection.MAXIMIZE if m else StudyDirection.MINIMIZE for m in maximize]
    return optuna.create_study(sampler=made, directions=directions, storage=storage)
