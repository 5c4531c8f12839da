"""The verdict: finalists against the tuned baseline, on the same fresh seeds, on the test split.

Each seed gives the baseline and every finalist the same initial weights and data order, so their
test values are compared in pairs: a paired t test over the seeds, its p-value multiplied by the
number of finalists (Bonferroni), since the best of several is what gets reported.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy import stats

ALPHA = 0.05


@dataclass(frozen=True)
class Paired:
    """A paired comparison of two series of values.

    Attributes:
        difference: Mean of ``candidate - baseline``, in the metric's own units.
        low: Lower end of its 95 % interval (paired t).
        high: Upper end.
        p_value: Two-sided paired t test, not corrected.
    """

    difference: float
    low: float
    high: float
    p_value: float


def compare(candidate: Sequence[float], baseline: Sequence[float]) -> Paired:
    """Compare two objectives over the same seeds.

    Raises:
        ValueError: fewer than two pairs, or series of different lengths.
    """
    if len(candidate) != len(baseline) or len(candidate) < 2:
        raise ValueError("a paired comparison needs at least two pairs of values")
    differences = np.asarray(candidate, float) - np.asarray(baseline, float)
    mean, n = float(differences.mean()), len(differences)
    error = float(differences.std(ddof=1)) / math.sqrt(n)
    if error < 1e-12 * max(1.0, abs(mean)):
        # The same difference at every seed leaves t undefined: the sign test still holds.
        return Paired(mean, mean, mean, 1.0 if abs(mean) < 1e-12 else 2 * 0.5**n)
    half = float(stats.t.ppf(1 - ALPHA / 2, n - 1)) * error
    p_value = float(2 * stats.t.sf(abs(mean) / error, n - 1))
    return Paired(mean, mean - half, mean + half, p_value)


@dataclass(frozen=True)
class Finalist:
    """A confirmed objective: its validation and test values by seed."""

    trial: int
    label: str
    objective: dict[str, Any]
    training: dict[str, float]
    validation: Mapping[int, float]
    test: Mapping[int, float]
    measured: Mapping[int, Mapping[str, float]] = field(default_factory=dict)  # all test metrics

    def summary(self, seeds: Sequence[int]) -> dict[str, Any]:
        values = [self.test[s] for s in seeds]
        return {
            "trial": self.trial,
            "label": self.label,
            "objective": self.objective,
            "training": self.training,
            "values": values,
            "mean": float(np.mean(values)),
        }


def judge(
    baseline: Finalist, candidates: Sequence[Finalist], metrics: Mapping[str, bool]
) -> dict[str, Any]:
    """The content of ``verdict.json``, but for the study's counts.

    The winner is the candidate with the best mean *validation* value over the fresh seeds, so the
    test split takes no part in choosing it. It is recommended where its test difference is in the
    metric's direction and significant at 5 % after correction; else the baseline is. With several
    metrics it must be ahead in one of them, corrected for their number too, and significantly
    behind in none.

    Args:
        baseline: The tuned baseline.
        candidates: The finalists.
        metrics: Those that decide, the first one leading, and whether more of each is better.

    Raises:
        ValueError: fewer than two seeds on which the baseline and every candidate ended.
    """
    seeds = sorted(set(baseline.test).intersection(*(c.test for c in candidates)))
    if not candidates or len(seeds) < 2:
        raise ValueError("a verdict needs a candidate and two seeds that all finished")
    metric, maximize = next(iter(metrics.items()))
    base = [baseline.test[s] for s in seeds]
    tests = len(candidates) * len(metrics)
    rows: list[dict[str, Any]] = []
    for candidate in candidates:
        paired = compare([candidate.test[s] for s in seeds], base)
        rows.append(
            {
                **candidate.summary(seeds),
                "difference": paired.difference,
                "interval": [paired.low, paired.high],
                "p_value": min(1.0, paired.p_value * tests),
                "validation": float(np.mean([candidate.validation[s] for s in seeds])),
            }
        )
        if len(metrics) > 1:
            rows[-1]["metrics"] = {
                m: _against(candidate, baseline, m, seeds, tests) for m in metrics
            }
    sign = 1 if maximize else -1
    winner = max(rows, key=lambda r: sign * r["validation"])
    better = sign * winner["difference"] > 0 and winner["p_value"] < ALPHA
    if len(metrics) > 1:
        better = _trades_well(winner["metrics"], metrics)
    return {
        "metric": metric,
        "maximize": maximize,
        "recommend": "winner" if better else "baseline",
        "baseline": baseline.summary(seeds),
        "winner": {k: winner[k] for k in baseline.summary(seeds)},
        "difference": winner["difference"],
        "interval": winner["interval"],
        "p_value": winner["p_value"],
        "seeds": seeds,
        "candidates": rows,
        **({"metrics": winner["metrics"]} if len(metrics) > 1 else {}),
    }


def _against(
    candidate: Finalist, baseline: Finalist, metric: str, seeds: Sequence[int], tests: int
) -> dict[str, Any]:
    """One of several metrics, of a candidate and of the baseline."""
    sides = [[f.measured[s][metric] for s in seeds] for f in (candidate, baseline)]
    paired = compare(*sides)
    return {
        "mean": float(np.mean(sides[0])),
        "baseline": float(np.mean(sides[1])),
        "difference": paired.difference,
        "interval": [paired.low, paired.high],
        "p_value": min(1.0, paired.p_value * tests),
        "ahead": paired.p_value * tests < ALPHA,
        "differs": paired.p_value < ALPHA,  # uncorrected, to see harm early
    }


def _trades_well(found: Mapping[str, Mapping[str, Any]], metrics: Mapping[str, bool]) -> bool:
    """Ahead in one metric, and behind in none."""
    gains = {m: (1 if up else -1) * found[m]["difference"] for m, up in metrics.items()}
    ahead = any(gains[m] > 0 and found[m]["ahead"] for m in metrics)
    behind = any(gains[m] < 0 and found[m]["differs"] for m in metrics)
    return ahead and not behind
