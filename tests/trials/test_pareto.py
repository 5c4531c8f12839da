"""Fronts and crowding, against a plain double loop and numbers worked by hand."""

from __future__ import annotations

import numpy as np
import pytest

from lossearch.trials.ledger import Trial
from lossearch.trials.pareto import crowding, front, fronts, order


def peeled(costs: np.ndarray) -> list[set[int]]:
    """The fronts, by comparing each pair."""
    left, found = set(range(len(costs))), []
    while left:
        mine = {
            i
            for i in left
            if not any((costs[j] <= costs[i]).all() and (costs[j] < costs[i]).any() for j in left)
        }
        found.append(mine)
        left -= mine
    return found


@pytest.mark.parametrize("seed", range(30))
@pytest.mark.parametrize("metrics", [1, 2, 3])
def test_fronts_are_those_of_a_double_loop(seed: int, metrics: int) -> None:
    draw = np.random.default_rng(seed)
    # few different values, so that points tie in one metric or in all
    points = draw.integers(0, 5, (int(draw.integers(1, 40)), metrics)).astype(float)
    maximize = draw.integers(0, 2, metrics).astype(bool).tolist()
    costs = points * np.where(maximize, -1, 1)
    assert [set(f.tolist()) for f in fronts(points, maximize)] == peeled(costs)


def test_crowding_by_hand() -> None:
    # along the first metric gaps of 1, 2 and 3 of 6; along the second of 5, 3 and 2 of 10
    points = np.array([[0.0, 10.0], [1.0, 5.0], [3.0, 2.0], [6.0, 0.0]])
    found = crowding(points)
    assert found[[0, 3]].tolist() == [np.inf, np.inf]
    assert found[1:3] == pytest.approx([3 / 6 + 8 / 10, 5 / 6 + 5 / 10])
    assert crowding(np.ones((3, 2))).tolist() == [np.inf, 0, np.inf]  # nothing to tell them apart
    assert crowding(np.array([[1.0, 2.0]])).tolist() == [np.inf]


def test_the_order_is_by_front_then_by_crowding_then_by_age() -> None:
    points = np.array([[0, 0], [3, 1], [2, 2], [1, 3], [2, 2], [0, 1]], float)
    # maximised: (3,1) (2,2) (1,3) (2,2) are the first front, (0,1) the second, (0,0) the third
    found = order(points, (True, True)).tolist()
    assert found[:2] == [1, 3] and set(found[2:4]) == {2, 4} and found[4:] == [5, 0]
    assert order(points, (True, True), 3).tolist() == found[:3]
    assert order(points, (False, False))[0] == 0


@pytest.mark.parametrize("maximize", [True, False])
def test_one_metric_is_a_plain_stable_sort(maximize: bool) -> None:
    points = np.array([[0.3], [0.1], [0.3], [0.2], [0.1]])
    expected = [0, 2, 3, 1, 4] if maximize else [1, 4, 3, 0, 2]
    assert order(points, (maximize,)).tolist() == expected
    assert order(points, (maximize,), 2).tolist() == expected[:2]
    assert order(np.empty((0, 2)), (True, True)).tolist() == []


def trial(number: int, status: str = "finished", **scores: float | None) -> Trial:
    made = Trial(number, "search", {}, "", {}, scores=scores)  # type: ignore[arg-type]
    made.status, made.score = status, next(iter(scores.values()))  # type: ignore[assignment]
    return made


def test_the_front_of_trials_leaves_out_what_has_not_finished_whole() -> None:
    trials = [
        trial(4, accuracy=0.9, ece=0.2),
        trial(1, accuracy=0.8, ece=0.1),
        trial(2, accuracy=0.8, ece=0.2),  # beaten by both
        trial(3, accuracy=0.99, ece=None),
        trial(5, "pruned", accuracy=0.99, ece=0.0),
    ]
    assert [t.number for t in front(trials, (True, False))] == [1, 4]
    assert front(trials[3:], (True, False)) == []
    single = [Trial(n, "search", {}, "", {}, status="finished", score=s)
              for n, s in enumerate([0.1, 0.5, 0.5])]  # fmt: skip
    assert [t.number for t in front(single, (True,))] == [1, 2]
