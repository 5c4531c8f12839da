"""Parameters as numbers: what samplers compute with."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
    distribution_to_json,
    json_to_distribution,
)


class Unit:
    """A parameter's values as numbers: a range becomes [0, 1], choices become their indexes.

    A whole number has the middle of its share of [0, 1]; a logarithmic range is even in the
    logarithm.

    Attributes:
        choices: How many values a choice has; 0 for a range.
    """

    def __init__(self, distribution: BaseDistribution) -> None:
        self.distribution = distribution
        self.choices = 0
        if isinstance(distribution, CategoricalDistribution):
            self.choices = len(distribution.choices)
            return
        assert isinstance(distribution, (FloatDistribution, IntDistribution))
        self._whole = isinstance(distribution, IntDistribution)
        self._log = distribution.log
        half = 0.5 if self._whole else 0.0
        ends = (distribution.low - half, distribution.high + half)
        self._low, self._high = map(math.log, ends) if self._log else ends

    def of(self, value: Any) -> float:
        """The number of a value."""
        if self.choices:
            return self.distribution.to_internal_repr(value)
        at = math.log(value) if self._log else value
        width = self._high - self._low
        return min(max((at - self._low) / width, 0.0), 1.0) if width else 0.5

    def value(self, number: float) -> Any:
        """The value of a number, inside the range."""
        if self.choices:
            return self.distribution.to_external_repr(int(number))
        at = self._low + number * (self._high - self._low)
        found = math.exp(at) if self._log else at
        low, high = self.distribution.low, self.distribution.high  # type: ignore[attr-defined]
        return min(max(round(found) if self._whole else float(found), low), high)


@lru_cache(maxsize=4096)
def parsed(distribution: str) -> BaseDistribution:
    """A distribution as the ledger writes it."""
    return json_to_distribution(distribution)


@lru_cache(maxsize=4096)
def written(distribution: BaseDistribution) -> str:
    """A distribution for the ledger."""
    return distribution_to_json(distribution)
