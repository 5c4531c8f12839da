"""Several metrics at once: which trials no other one beats, and an order of all of them.

The order is that of NSGA-II (Deb et al. 2002, doi:10.1109/4235.996017): by the front that a point
lies on, and within a front those first that stand alone. With one metric it is the plain order.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from lossearch.trials.ledger import Trial

Directions = Sequence[bool]


def fronts(points: np.ndarray, maximize: Directions) -> Iterator[np.ndarray]:
    """The fronts, the best first: the rows that no other row beats, then those of the rest, ...

    A point beats another where it is nowhere worse and somewhere better: equal points share a
    front.

    Args:
        points: Values, ``(points, metrics)``, finite.
        maximize: For each metric whether more is better.
    """
    costs = _costs(points, maximize)
    left = np.lexsort(costs.T[::-1])  # what comes later in this order beats nothing before it
    while len(left):
        mine = _unbeaten(costs[left])
        yield left[mine]
        left = np.delete(left, mine)


def _unbeaten(costs: np.ndarray) -> np.ndarray:
    """The rows of sorted costs that no other one beats."""
    rows, i = np.arange(len(costs)), 0
    while i < len(rows):
        mine = costs[rows[i]]
        keep = (costs[rows] < mine).any(1) | (costs[rows] == mine).all(1)
        keep[: i + 1] = True  # these are known to be unbeaten
        rows = rows[keep]
        i += 1
    return rows


def crowding(points: np.ndarray) -> np.ndarray:
    """How far each point of a front is from its neighbours, the ends infinitely far.

    The sum over the metrics of the gap between the next lower and the next higher value, as a
    share of the front's whole range.
    """
    found = np.zeros(len(points))
    for column in np.asarray(points, float).T:
        by_value = np.argsort(column, kind="stable")
        ordered = column[by_value]
        width = ordered[-1] - ordered[0]
        found[by_value[[0, -1]]] = np.inf
        if width > 0:
            found[by_value[1:-1]] += (ordered[2:] - ordered[:-2]) / width
    return found


def order(points: np.ndarray, maximize: Directions, best: int | None = None) -> np.ndarray:
    """The rows from the best to the worst, earlier rows first where they tie.

    Args:
        points: Values, ``(points, metrics)``, finite.
        maximize: For each metric whether more is better.
        best: How many are asked for; all of them by default.
    """
    points = np.asarray(points, float)
    best = len(points) if best is None else best
    if len(maximize) == 1:
        return np.argsort(_costs(points, maximize)[:, 0], kind="stable")[:best]
    found: list[int] = []
    for front in fronts(points, maximize):
        if len(found) >= best:
            break
        front = np.sort(front)
        found += front[np.argsort(-crowding(points[front]), kind="stable")].tolist()
    return np.asarray(found[:best], int)


def front(trials: Iterable[Trial], maximize: Directions) -> list[Trial]:
    """The finished trials that no other finished one beats, in the order of their numbers."""
    scored = [(t, t.values()) for t in trials if t.status == "finished"]
    whole = [(t, values) for t, values in scored if len(values) == len(maximize)]
    if not whole:
        return []
    rows = next(fronts(np.array([values for _, values in whole]), maximize))
    return sorted((whole[i][0] for i in rows), key=lambda t: t.number)


def _costs(points: np.ndarray, maximize: Directions) -> np.ndarray:
    return np.asarray(points, float) * np.where(np.asarray(maximize, bool), -1.0, 1.0)
