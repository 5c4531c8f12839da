r"""How well a cheap stage ranks what a full stage ranks: Spearman's rho, with an interval.

The interval is found by inverting a test (Clopper and Pearson, Biometrika 26, 1934): it holds
every population value under which a rho at least as large, and one at least as small, as the
observed one has a chance of more than 2.5 %. The chances are those of samples from a bivariate
normal distribution with correlation r, whose population value is
:math:`\rho_S = \frac{6}{\pi} \arcsin \frac{r}{2}` (Kruskal, JASA 53, 1958). At r = 0 all orders
are equally likely, so the interval leaves out 0 where the exact permutation test rejects at 5 %.
A bootstrap and Fisher's z have nothing to go by with five pairs: both give a perfect order an
interval of width 0.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

LEAST = 5  # a perfect order of 4 comes by chance once in 24, more often than 2.5 %
WEAK = 0.5
_TAIL = 0.025
_EXACT = 8  # pairs whose orders are few enough to be drawn equally often
_DRAWS = math.factorial(_EXACT)
_STEPS = 12  # halvings of [-1, 1]


@dataclass(frozen=True)
class RankCorrelation:
    """The agreement of two stages on the same objectives.

    Attributes:
        count: Objectives that have a score in both stages.
        rho: Spearman's rank correlation; ``None`` where a stage scores all alike.
        low, high: The 95 % interval; ``None`` where there are too few.
    """

    count: int
    rho: float | None = None
    low: float | None = None
    high: float | None = None

    @property
    def sentence(self) -> str:
        """What a report says, plainly."""
        if self.count < LEAST:
            have = {0: "No objective has", 1: "One objective has"}
            return (
                f"{have.get(self.count, f'{self.count} objectives have')} a score in both stages: "
                "nothing can be said about how well the cheap stage ranks them. "
                f"{LEAST} are the least."
            )
        if self.rho is None or self.low is None or self.high is None:
            return (
                f"One of the stages gives all {self.count} objectives the same score: nothing can "
                "be said about how well the cheap stage ranks them."
            )
        if self.high < 0:
            verdict = "The cheap stage misleads: what is better there is worse in full training"
        elif self.low <= 0:
            verdict = "The cheap stage says little about the full one"
        elif self.rho < WEAK:
            verdict = "The cheap stage is a weak guide to the full one"
        else:
            verdict = "The cheap stage is a fair guide to the full one"
        text = (
            f"{verdict}: rank correlation {self.rho:.2f} (95 % interval {self.low:.2f} to "
            f"{self.high:.2f}) over the {self.count} objectives that went on."
        )
        if self.low > 0 and self.rho >= WEAK:
            return text
        return f"{text} They were the best of the cheap stage; among all it may rank better."


def rank_correlation(cheap: Sequence[float], full: Sequence[float]) -> RankCorrelation:
    """Spearman's rho of the scores of the same objectives in two stages.

    Args:
        cheap: Scores of the cheap stage, ``k`` finite values.
        full: Those of the full stage, in the same order and of the same metric.

    Raises:
        ValueError: they are not as many, or not finite.
    """
    if len(cheap) != len(full):
        raise ValueError(f"{len(cheap)} scores of one stage and {len(full)} of the other")
    if not all(map(math.isfinite, (*cheap, *full))):
        raise ValueError("a score is not finite; leave out what failed")
    count = len(cheap)
    if count < 2 or len(set(cheap)) == 1 or len(set(full)) == 1:
        return RankCorrelation(count)
    rho = float(stats.spearmanr(cheap, full).statistic)  # pyright: ignore
    if count < LEAST:
        return RankCorrelation(count, rho)
    return RankCorrelation(count, rho, *interval(rho, count))


def interval(rho: float, count: int) -> tuple[float, float]:
    """The 95 % interval of the population value, for so many pairs without ties."""
    draw = np.random.default_rng(0)
    x = np.sort(draw.standard_normal((_DRAWS, count)), axis=1)
    noise = draw.standard_normal((_DRAWS, count))
    if count <= _EXACT:
        orders = np.array(list(itertools.permutations(range(count))))
        noise = np.take_along_axis(np.sort(noise), np.resize(orders, noise.shape), axis=1)
    places = np.arange(count)

    def chance(r: float, sign: int) -> float:
        """That a sample's rho is at least the observed one, or, for sign -1, at most."""
        order = np.argsort(r * x + math.sqrt(1 - r * r) * noise, axis=1)
        squares = np.square(order - places).sum(axis=1)
        rhos = 1 - 6 * squares / (count * (count * count - 1))
        return float(np.mean(sign * rhos >= sign * rho - 1e-6))

    def limit(sign: int) -> float:
        """Where the chance crosses the tail, coming from the far side."""
        outside, inside = -1.0 * sign, 1.0 * sign
        if chance(outside, sign) > _TAIL:
            return outside
        for _ in range(_STEPS):
            middle = (outside + inside) / 2
            if chance(middle, sign) > _TAIL:
                inside = middle
            else:
                outside = middle
        return (outside + inside) / 2

    low, high = (6 / math.pi * math.asin(limit(sign) / 2) for sign in (1, -1))
    return low, high
