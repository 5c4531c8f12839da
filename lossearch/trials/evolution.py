"""Regularised evolution over objectives (Real et al. 2019, arXiv:1802.01548, algorithm 1).

The population is the latest trials that have a score: the oldest dies, however good it is. Of a
few members, drawn at random, the best has a child, which differs from it in one thing: a number
moves, or a choice changes, and so a component is swapped or an optional part comes or goes. What
a new component brings with it, its parent never had; it is drawn at random.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial

from lossearch.trials.independent import IndependentSampler
from lossearch.trials.pareto import order
from lossearch.trials.units import Unit

LEAST, MOST = 10, 100  # members of a population; the paper has 100
STEP = 0.2  # of a range: the standard deviation of a move


@dataclass(frozen=True)
class Member:
    """A trial with a score: what it was, how far it got, and what decides there."""

    params: Mapping[str, Any]
    distributions: Mapping[str, BaseDistribution]
    level: float
    values: Sequence[float]


def population_size(trials: int) -> int:
    """A fifth of the search, so that it has some generations; 100 at most."""
    return min(max(trials // 5, LEAST), MOST)


class EvolutionSampler(IndependentSampler):
    """Proposes a child of the population; at random until the population is there.

    Args:
        living: The latest members, the oldest first.
        size: How many make a population; a quarter of them are drawn for each tournament, as in
            the paper.
        maximize: For each metric that decides, whether more is better.
        seed: What the choices depend on, beside the members.
    """

    def __init__(
        self, living: Sequence[Member], size: int, maximize: Sequence[bool], seed: int
    ) -> None:
        super().__init__(seed)
        self._generator = np.random.default_rng(seed)
        self._kept: dict[str, Any] = {}
        self._distributions: Mapping[str, BaseDistribution] = {}
        if len(living) < size:
            return
        drawn = self._generator.choice(size, max(2, size // 4), replace=False)
        parent = _best([living[-size:][i] for i in np.sort(drawn)], maximize)
        self._kept, self._distributions = dict(parent.params), parent.distributions
        free = sorted(n for n, d in parent.distributions.items() if not d.single())
        if free:
            name = free[self._generator.integers(len(free))]
            self._kept[name] = self._mutated(self._kept[name], parent.distributions[name])

    def sample_independent(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        # what a swapped component leaves behind is never asked for
        if self._distributions.get(param_name) == param_distribution:
            return self._kept[param_name]
        return super().sample_independent(study, trial, param_name, param_distribution)

    def _mutated(self, value: Any, distribution: BaseDistribution) -> Any:
        unit, draw = Unit(distribution), self._generator
        if unit.choices:
            others = [i for i in range(unit.choices) if i != int(unit.of(value))]
            return unit.value(others[draw.integers(len(others))])
        while True:
            at = unit.of(value) + draw.normal(0.0, STEP)
            found = unit.value(abs(at) if at < 1 else 2 - at)  # reflected at the ends
            if found != value:
                return found


def _best(members: Sequence[Member], maximize: Sequence[bool]) -> Member:
    """The first of those that got farthest: scores of different epochs are never compared."""
    farthest = max(m.level for m in members)
    peers = [m for m in members if m.level == farthest]
    return peers[order(np.array([m.values for m in peers]), maximize, 1)[0]]
