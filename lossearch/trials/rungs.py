"""Successive halving over everything that has reached a rung (ASHA, arXiv:1810.05934).

A trial pauses at each rung; it goes on where it is among the best ``1/factor`` of all that have
reached it. What never gets on is pruned when the search ends. Where several metrics decide, the
best are those of :func:`lossearch.trials.pareto.order` (as in MO-ASHA, arXiv:2106.12639).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence, Set
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from lossearch.trials.ledger import Trial
from lossearch.trials.pareto import order


class RungsConfig(BaseModel):
    """The ``rungs:`` of a search: the first rung, and the share that each lets through."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    min_epochs: int = Field(default=3, ge=1, le=10**6)
    factor: int = Field(default=3, ge=2, le=1000)


@dataclass(frozen=True)
class Rungs:
    """The ladder of a study: epochs at which trials are compared, the last one the end."""

    levels: tuple[int, ...]
    factor: int

    @classmethod
    def make(cls, config: RungsConfig | None, epochs: int) -> Rungs:
        """``min_epochs * factor^i`` below ``epochs``, then ``epochs`` itself."""
        levels: list[int] = []
        if config is not None:
            level = config.min_epochs
            while level < epochs:
                levels.append(level)
                level *= config.factor
        return cls((*levels, epochs), config.factor if config else 1)

    def after(self, epoch: int) -> int:
        """The next level above an epoch."""
        return next((level for level in self.levels if level > epoch), self.levels[-1])

    def promotions(
        self,
        trials: Iterable[Trial],
        maximize: bool | Sequence[bool],
        busy: Set[int] = frozenset(),
    ) -> Iterator[Trial]:
        """All paused trials that may go on, the highest rung's first, the best of a rung first.

        Args:
            trials: All of the study, in any order.
            maximize: For each metric that decides, whether more is better.
            busy: Numbers of those that run now, and so are not paused.
        """
        trials = list(trials)
        directions = (maximize,) if isinstance(maximize, bool) else tuple(maximize)
        for level in reversed(self.levels[:-1]):
            reached = [t for t in trials if level in t.rungs]
            share = len(reached) // self.factor
            # one whose second metric is not a number has reached the rung, and stays there
            whole = [t for t in reached if len(t.values(level)) == len(directions)]
            if not share or not whole:
                continue
            values = tuple(t.values(level) for t in whole)
            for i in _order(values, directions, share):
                trial = whole[i]
                waits = trial.status == "running" and trial.epoch == level
                if waits and trial.number not in busy:
                    yield trial


@lru_cache(maxsize=16)  # asked again and again between two results
def _order(
    values: tuple[tuple[float, ...], ...], maximize: tuple[bool, ...], best: int
) -> tuple[int, ...]:
    return tuple(order(np.array(values), maximize, best).tolist())
