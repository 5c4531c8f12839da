"""Densities from observations: what TPE compares the good and the bad by."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
from scipy.special import ndtr, ndtri

from lossearch.trials.units import Unit


class Parzen:
    """A mixture of kernels: one at each observation, and a wide one as the prior.

    A kernel is a product: for a number a normal truncated to [0, 1] with the distance to the
    farther neighbour as its width, for a choice the observed one with most of the weight. The 25
    latest observations weigh 1, earlier ones linearly less.

    Args:
        observed: ``(observations, parameters)``, numbers in [0, 1] and indexes of choices, in the
            order of time.
        units: What each parameter is.
        ageing: Whether earlier observations weigh less.
    """

    def __init__(
        self, observed: np.ndarray, units: Sequence[Unit], *, ageing: bool = True
    ) -> None:
        n = len(observed)
        weights = np.append(_weights(n) if ageing else np.ones(n), 1.0)
        self._log_weights = np.log(weights / weights.sum())
        self._parts = [
            _Choice(observed[:, i].astype(int), unit.choices)
            if unit.choices
            else _Number(observed[:, i])
            for i, unit in enumerate(units)
        ]

    def draw(self, count: int, generator: np.random.Generator) -> np.ndarray:
        kernels = generator.choice(len(self._log_weights), count, p=np.exp(self._log_weights))
        return np.stack([p.draw(kernels, generator) for p in self._parts], 1)

    def log_density(self, points: np.ndarray) -> np.ndarray:
        return _log_sum(self._log_weights + sum(self._each(points)))

    def log_marginals(self, points: np.ndarray) -> np.ndarray:
        """The density where each parameter is independent of the others."""
        each = [_log_sum(self._log_weights + logs) for logs in self._each(points)]
        return np.sum(each, axis=0)

    def _each(self, points: np.ndarray) -> Iterator[np.ndarray]:
        """Of each parameter the logarithm of each kernel, ``(points, kernels)``."""
        return (p.log_density(points[:, i, None]) for i, p in enumerate(self._parts))


class _Number:
    def __init__(self, observed: np.ndarray) -> None:
        self.centre, self.width = np.append(observed, 0.5), np.append(_widths(observed), 1.0)
        self.low, self.high = -self.centre / self.width, (1 - self.centre) / self.width
        self.mass = ndtr(self.high) - ndtr(self.low)

    def draw(self, kernels: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        at = ndtr(self.low[kernels]) + generator.random(len(kernels)) * self.mass[kernels]
        return np.clip(self.centre[kernels] + self.width[kernels] * ndtri(at), 0.0, 1.0)

    def log_density(self, points: np.ndarray) -> np.ndarray:
        off = (points - self.centre) / self.width
        return -0.5 * off**2 - np.log(self.width * self.mass * math.sqrt(2 * math.pi))


class _Choice:
    def __init__(self, observed: np.ndarray, choices: int) -> None:
        n = len(observed) + 1
        table = np.full((n, choices), 1 / n)
        table[np.arange(n - 1), observed] += 1
        self.table = table / table.sum(1, keepdims=True)

    def draw(self, kernels: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        reached = self.table[kernels].cumsum(1)
        return (generator.random((len(kernels), 1)) * reached[:, -1:] > reached).sum(1)

    def log_density(self, points: np.ndarray) -> np.ndarray:
        return np.log(self.table.T[points[:, 0].astype(int)])


def _log_sum(logs: np.ndarray) -> np.ndarray:
    top = logs.max(1, keepdims=True)
    return np.log(np.exp(logs - top).sum(1)) + top[:, 0]


def _widths(observed: np.ndarray) -> np.ndarray:
    n = len(observed)
    by_value = np.argsort(observed, kind="stable")
    ends = np.concatenate([[0.0], observed[by_value], [1.0]])
    gaps = np.diff(ends)
    found = np.maximum(gaps[:-1], gaps[1:])
    if n > 1:  # the ends of the range are no neighbours
        found[0], found[-1] = gaps[1], gaps[-2]
    widths = np.empty(n)
    widths[by_value] = found
    return np.clip(widths, 1 / min(100.0, n + 2.0), 1.0)


def _weights(n: int) -> np.ndarray:
    old = max(n - 25, 0)
    return np.concatenate([np.linspace(1 / n, 1.0, old) if old else [], np.ones(n - old)])
