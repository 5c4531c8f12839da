"""Successive halving over everything that has reached a rung (ASHA, arXiv:1810.05934).

A trial pauses at each rung; it goes on where it is among the best ``1/factor`` of all that have
reached it. What never gets on is pruned when the search ends.
"""

from __future__ import annotations

from collections.abc import Iterable, Set
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict, Field

from lossearch.trials.ledger import Trial


class RungsConfig(BaseModel):
    """The ``rungs:`` of a search: the first rung, and the share that each lets through."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    min_epochs: int = Field(default=3, ge=1)
    factor: int = Field(default=3, ge=2)


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

    def promotable(
        self, trials: Iterable[Trial], maximize: bool, busy: Set[int] = frozenset()
    ) -> Trial | None:
        """The best paused trial that may go on, from the highest rung down; none of ``busy``."""
        trials = list(trials)
        for level in reversed(self.levels[:-1]):
            reached = sorted(
                (t for t in trials if level in t.rungs),
                key=lambda t: t.rungs[level],
                reverse=maximize,
            )
            for trial in reached[: len(reached) // self.factor]:
                waits = trial.status == "running" and trial.epoch == level
                if waits and trial.number not in busy:
                    return trial
        return None
