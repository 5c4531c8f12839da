"""Budgets: what is spent, by hand, through kills and resumes, and who may go on."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from lossearch.trials.budget import Spent, spent, stop
from lossearch.trials.ledger import State, replay
from lossearch.trials.proposer import MANY, SearchConfig

HOUR = 3600.0


def proposed(trial: int, time: float, role: str = "search") -> dict[str, Any]:
    return {"event": "proposed", "trial": trial, "role": role, "objective": {}, "label": "",
            "training": {}, "time": time}  # fmt: skip


def rung(trial: int, epoch: int, score: float, time: float, **more: Any) -> dict[str, Any]:
    return {"event": "rung", "trial": trial, "epoch": epoch, "score": score, "seconds": 360.0,
            "curve": [], "time": time, **more}  # fmt: skip


def finished(trial: int, score: float, time: float, **more: Any) -> dict[str, Any]:
    return {"event": "finished", "trial": trial, "score": score, "epochs": 9, "seconds": 720.0,
            "time": time, **more}  # fmt: skip


def test_epochs_and_gpu_hours_are_those_of_the_trials_not_of_the_confirmation() -> None:
    state = replay(
        [
            {"event": "study", "time": 0.0},
            proposed(0, 1.0, "baseline"),
            rung(0, 3, 0.5, 2.0),
            rung(0, 9, 0.6, 3.0),
            finished(0, 0.6, 3.0),
            proposed(1, 4.0),
            rung(1, 3, 0.5, 5.0),
            {**proposed(2, 6.0), "event": "rejected", "reason": "no_gradient"},
            proposed(3, 7.0),
            {"event": "failed", "trial": 3, "reason": "diverged", "epoch": 2, "time": 8.0},
            {"event": "confirmed", "trial": 0, "seed": 7, "validation": 0.6, "test": {},
             "seconds": 5000.0, "time": 9.0},
        ]
    )  # fmt: skip
    used = spent(state, (True,), devices=0.5)
    assert (used.trials, used.epochs) == (4, 9 + 3 + 2)
    assert used.gpu_hours == pytest.approx(3 * 360 / HOUR / 2)
    assert used.hours == pytest.approx(9 / HOUR)


def test_the_clock_stands_between_a_stop_or_a_kill_and_the_resume() -> None:
    rows: list[dict[str, Any]] = [
        {"event": "study", "time": 1e9},
        proposed(0, 1e9 + HOUR),
        {"event": "ended", "status": "interrupted", "time": 1e9 + 2 * HOUR},
        {"event": "resumed", "time": 1e9 + 50 * HOUR},
        proposed(1, 1e9 + 51 * HOUR),  # killed: no row says that it ended
        {"event": "resumed", "time": 1e9 + 90 * HOUR},
        proposed(2, 1e9 + 90.5 * HOUR),
    ]
    state = replay(rows)
    assert spent(state, (True,)).hours == pytest.approx(3.5)
    later = spent(state, (True,), now=1e9 + 91 * HOUR)  # no row for half an hour
    assert later.hours == pytest.approx(4.0)
    assert spent(state, (True,), now=0.0).hours == pytest.approx(3.5)  # a clock set back
    assert spent(State(), (True,)) == Spent(0, 0, 0.0, 0.0, 0)


def idle(*rows: dict[str, Any], maximize: tuple[bool, ...] = (True,)) -> int:
    return spent(replay([{"event": "study", "time": 0.0}, *rows]), maximize).idle


def test_patience_counts_the_trials_after_the_best() -> None:
    best = [proposed(0, 1.0), finished(0, 0.5, 1.0)]
    assert idle() == idle(proposed(0, 1.0)) == idle(*best) == 0
    worse = [proposed(1, 2.0), finished(1, 0.4, 2.0), proposed(2, 2.0), rung(2, 3, 0.9, 2.0)]
    assert idle(*best, *worse) == 2
    assert idle(*best, *worse, proposed(3, 3.0)) == 2  # it has not shown anything yet
    tie = [proposed(3, 3.0), finished(3, 0.5, 3.0)]
    assert idle(*best, *worse, *tie) == 3
    better = [proposed(4, 4.0), finished(4, 0.6, 4.0)]
    assert idle(*best, *worse, *tie, *better) == 0
    own = [proposed(5, 5.0, "baseline"), finished(5, 0.9, 5.0)]
    assert idle(*best, *worse, *tie, *better, *own) == 0
    assert idle(*best, *worse, *tie, *better, maximize=(False,)) == 3  # trial 1 has the least


def test_with_several_metrics_a_new_best_is_one_that_none_beats() -> None:
    def row(trial: int, accuracy: float, ece: float) -> list[dict[str, Any]]:
        scores = {"accuracy": accuracy, "ece": ece}
        return [proposed(trial, 1.0), finished(trial, accuracy, 1.0, scores=scores)]

    first, beaten, other = row(0, 0.5, 0.2), row(1, 0.4, 0.3), row(2, 0.4, 0.1)
    both = (True, False)
    assert idle(*first, *beaten, maximize=both) == 1
    assert idle(*first, *beaten, *other, maximize=both) == 0
    assert idle(*first, *beaten, *other, *row(3, 0.5, 0.2), maximize=both) == 1


USED = Spent(trials=20, epochs=300, hours=2.5, gpu_hours=1.25, idle=9)


@pytest.mark.parametrize(
    ("config", "reason", "at_once"),
    [
        ({"trials": 20}, "the budget of 20 trials is spent", False),
        ({"epochs": 300}, "the budget of 300 epochs is spent", True),
        ({"hours": 2.5}, "the budget of 2.5 hours is spent", True),
        ({"gpu_hours": 1}, "the budget of 1 GPU hours is spent", True),
        ({"patience": 9}, "9 trials brought no new best", False),
        ({"patience": 9, "epochs": 10}, "the budget of 10 epochs is spent", True),
    ],
)
def test_what_stops_a_search(config: dict[str, Any], reason: str, at_once: bool) -> None:
    found = stop(SearchConfig(**config), USED)
    assert found is not None and (found.reason, found.at_once) == (reason, at_once)


def test_what_does_not() -> None:
    roomy = SearchConfig(trials=21, epochs=301, hours=2.6, gpu_hours=1.3, patience=10)
    assert stop(roomy, USED) is None
    assert SearchConfig().trials == SearchConfig(patience=5).trials == 50
    assert SearchConfig(hours=1).trials == MANY  # the hours are meant to end it
    assert SearchConfig(hours=1, trials=7).trials == 7
    again = SearchConfig(**SearchConfig(epochs=9).model_dump())
    assert again == SearchConfig(epochs=9)


@pytest.mark.parametrize("bad", [{"epochs": 0}, {"hours": 0}, {"patience": 0}, {"gpu_hours": -1}])
def test_illegal_budgets(bad: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        SearchConfig(**bad)
