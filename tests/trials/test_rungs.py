"""Successive halving: the levels, and who goes on, against a table worked by hand."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
from pydantic import ValidationError

from lossearch.trials.ledger import Trial
from lossearch.trials.rungs import Rungs, RungsConfig


def waiting(number: int, rungs: dict[int, float], **changes: Any) -> Trial:
    trial = Trial(number, "search", {}, "", {}, rungs=rungs, epoch=max(rungs, default=0))
    for key, value in changes.items():
        setattr(trial, key, value)
    return trial


def promotable(rungs: Rungs, trials: Iterable[Trial], maximize: bool, **busy: Any) -> Trial | None:
    """The next that may go on."""
    return next(rungs.promotions(trials, maximize, **busy), None)


@pytest.mark.parametrize(
    ("config", "epochs", "levels"),
    [
        (RungsConfig(min_epochs=3, factor=3), 20, (3, 9, 20)),
        (RungsConfig(min_epochs=1, factor=2), 8, (1, 2, 4, 8)),
        (RungsConfig(min_epochs=3, factor=3), 9, (3, 9)),
        (RungsConfig(min_epochs=5, factor=3), 5, (5,)),
        (RungsConfig(min_epochs=30, factor=3), 20, (20,)),
        (None, 20, (20,)),
    ],
)
def test_levels(config: RungsConfig | None, epochs: int, levels: tuple[int, ...]) -> None:
    rungs = Rungs.make(config, epochs)
    assert rungs.levels == levels
    assert [rungs.after(e) for e in (0, *levels)] == [*levels, levels[-1]]


def test_a_share_of_one_factor_th_of_all_that_reached_a_rung_goes_on() -> None:
    rungs = Rungs((1, 3, 9), 3)
    trials: list[Trial] = []
    # after each arrival at rung 1: its score, and who may go on then
    for number, (score, promoted) in enumerate(
        [(0.5, None), (0.6, None), (0.4, 1), (0.9, 3), (0.1, 3), (0.7, 3)]
    ):
        trials.append(waiting(number, {1: score}))
        found = promotable(rungs, trials, maximize=True)
        assert (found.number if found else None) == promoted, number
    # of six the two best may: 0.9 and 0.7; with 3 gone on, it is 5's turn
    trials[3].rungs[3], trials[3].epoch = 0.95, 3
    found = promotable(rungs, trials, maximize=True)
    assert found is not None and found.number == 5
    trials[5].rungs[3], trials[5].epoch = 0.2, 3
    assert promotable(rungs, trials, maximize=True) is None
    # a third at rung 3: the best of it goes on before anything at rung 1
    trials[1].rungs[3], trials[1].epoch = 0.5, 3
    trials += [waiting(6 + i, {1: 0.99 - i / 100}) for i in range(3)]
    found = promotable(rungs, trials, maximize=True)
    assert found is not None and found.number == 3


def test_minimised_scores_busy_ended_and_tied_trials() -> None:
    rungs = Rungs((1, 4), 2)
    trials = [waiting(n, {1: s}) for n, s in enumerate([0.3, 0.1, 0.1, 0.2])]
    first = promotable(rungs, trials, maximize=False)
    assert first is not None and first.number == 1  # the earlier of the tied
    second = promotable(rungs, trials, maximize=False, busy={1})
    assert second is not None and second.number == 2
    assert promotable(rungs, trials, maximize=False, busy={1, 2}) is None
    trials[1].status = trials[2].status = "failed"  # they keep their places
    assert promotable(rungs, trials, maximize=False) is None
    assert promotable(rungs, reversed(trials), maximize=True) is trials[0]


def test_with_several_metrics_the_fronts_go_on() -> None:
    rungs = Rungs((1, 4), 2)
    points = [(0.9, 0.5), (0.8, 0.1), (0.7, 0.3), (0.5, 0.4), (0.85, 0.3), (0.6, 0.6)]
    trials = [
        waiting(n, {1: a}, rung_scores={1: {"accuracy": a, "ece": e}})
        for n, (a, e) in enumerate(points)
    ]
    # more accurate and better calibrated: 0, 1 and 4 are beaten by none, and half may go on
    both = (True, False)
    assert [t.number for t in rungs.promotions(trials, both)] == [0, 1, 4]
    assert [t.number for t in rungs.promotions(trials, both, busy={0})] == [1, 4]
    # of four that reached the rung two go on: the ends of the front before its middle
    assert [t.number for t in rungs.promotions(trials[1:5], both)] == [1, 4]
    # one without a second metric counts among those that reached it, and never goes on
    trials.append(waiting(6, {1: 0.99}, rung_scores={1: {"accuracy": 0.99, "ece": None}}))
    trials.append(waiting(7, {1: 0.1}, rung_scores={1: {"accuracy": 0.1, "ece": 0.9}}))
    assert [t.number for t in rungs.promotions(trials, both)] == [0, 1, 4, 2]


def test_promotions_are_what_one_after_the_other_gives() -> None:
    rungs, busy = Rungs((1, 3, 9), 2), set[int]()
    trials = [waiting(n, {1: n / 10} if n % 3 else {1: n / 10, 3: n / 10}) for n in range(12)]
    found = [t.number for t in rungs.promotions(trials, True)]
    while (one := promotable(rungs, trials, True, busy=busy)) is not None:
        assert one.number == found[len(busy)]
        busy.add(one.number)
    assert len(found) == len(busy) == 6


def test_without_rungs_nothing_waits() -> None:
    trials = [waiting(n, {5: 0.1}) for n in range(6)]
    assert promotable(Rungs.make(None, 5), trials, maximize=True) is None


@pytest.mark.parametrize("bad", [{"min_epochs": 0}, {"factor": 1}, {"factors": 2}])
def test_illegal_rungs(bad: dict[str, int]) -> None:
    with pytest.raises(ValidationError):
        RungsConfig(**bad)
