"""The verdict in words and the leaderboard."""

from __future__ import annotations

import pytest

from lossearch.report.text import (
    casualties,
    duration,
    headline,
    leaderboard,
    number,
    p_text,
    summary,
    verdict_text,
)
from lossearch.trials.ledger import State, replay


def verdict(
    difference: float,
    p_value: float,
    *,
    recommend: str = "baseline",
    maximize: bool = True,
    seeds: int = 5,
    candidates: int = 3,
) -> dict:
    side = {"trial": 1, "label": "focal(gamma=2)", "mean": 0.75 + difference}
    return {
        "metric": "macro_f1",
        "maximize": maximize,
        "recommend": recommend,
        "baseline": {"trial": 0, "label": "cross_entropy", "mean": 0.75},
        "winner": side,
        "difference": difference,
        "interval": [difference - 0.01, difference + 0.01],
        "p_value": p_value,
        "seeds": list(range(seeds)),
        "candidates": [side] * candidates,
    }


def test_a_winner_is_recommended_with_its_numbers():
    text = verdict_text(verdict(0.03, 0.0004, recommend="winner"))
    assert text == (
        "Use the winner: the best objective found beats the tuned baseline. On the test split "
        "macro_f1 is 0.7800 with focal(gamma=2) and 0.7500 with the tuned baseline cross_entropy. "
        "The difference is +0.0300, its 95 % interval +0.0200 to +0.0400 (paired over 5 fresh "
        "seeds; p < 0.001, corrected for 3 candidates)."
    )


@pytest.mark.parametrize(
    ("difference", "p_value", "maximize", "words"),
    [
        (0.004, 0.4, True, "by no more than chance can give"),
        (-0.004, 0.4, True, "no better than it"),
        (-0.04, 0.01, True, "worse than it"),
        (0.04, 0.01, False, "worse than it"),
        (-0.004, 0.4, False, "by no more than chance can give"),
    ],
)
def test_the_baseline_is_kept_and_why(difference, p_value, maximize, words):
    text = verdict_text(verdict(difference, p_value, maximize=maximize))
    assert text.startswith("Keep the baseline: ") and words in text
    assert ("lower is better" in text) == (not maximize)


def test_few_seeds_are_said_to_be_few():
    assert "With only 3 seeds" in verdict_text(verdict(0.1, 0.2, seeds=3))
    assert "corrected" not in verdict_text(verdict(0.1, 0.2, candidates=1))


def part(name: str, brings: bool, kept: bool = True, together: bool = False) -> dict:
    return {"part": name, "brings": brings, "kept": kept, "together": together}


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        (
            [part("miner ohem", True), part("balancer dwa", True)],
            "Without any one of its 2 parts it does worse on the validation split.",
        ),
        ([part("miner ohem", True)], "Without miner ohem it does worse on the validation split."),
        (
            [part("miner ohem", False, False), part("balancer dwa", True, False)],
            "That objective is focal · ohem without miner ohem, which brought nothing to be seen "
            "on the validation split.",
        ),
        (
            [part("a", False, False), part("b", False, False), part("c", False, False),
             part("a and b and c", False, False, True)],
            "That objective is focal · ohem without a, b and c, which brought nothing to be seen "
            "on the validation split.",
        ),
        (
            [part("a", False, False), part("b", False), part("a and b", True, True, True)],
            "That objective is focal · ohem without a, which brought nothing to be seen on the "
            "validation split. b brought no more alone, but had to stay without the rest.",
        ),
        (
            [part("a", False), part("b", False), part("a and b", False, True, True)],
            "Of its parts, a and b brought nothing to be seen on the validation split, but "
            "stayed: without them, the objective is not proven to beat the baseline.",
        ),
    ],
)  # fmt: skip
def test_what_was_left_out_is_said(rows, sentence):
    given = verdict(0.03, 0.0004, recommend="winner")
    given["winner"]["simplified_from"] = "focal · ohem"
    bare = verdict_text(given)
    assert verdict_text({**given, "attribution": rows}) == f"{bare} {sentence}"


def test_a_study_without_a_verdict_says_so(study_rows):
    rows = study_rows(trials=6)
    assert "has not ended" in summary(replay(study_rows(trials=6, end=False)))
    interrupted = [
        *study_rows(trials=6, end=False),
        {"event": "ended", "time": 0, "status": "interrupted"},
    ]
    assert "was interrupted" in summary(replay(interrupted))
    assert "lossearch resume" in summary(State())
    without = replay(r for r in rows if r["event"] != "verdict")
    assert headline(without) == "No verdict"
    assert "without a verdict" in summary(without)


@pytest.mark.parametrize("maximize", [True, False])
def test_the_leaderboard_is_in_order_and_has_the_tuned_baseline(study_rows, maximize):
    rows = [r | {"maximize": maximize} for r in study_rows(trials=40)]
    state = replay(rows)
    board = leaderboard(state, 5)
    scores = [r.score for r in board]
    assert scores == sorted(scores, reverse=maximize)
    assert [r.rank for r in board[:5]] == [1, 2, 3, 4, 5]
    assert state.verdict is not None
    marked = {r.mark: r.trial for r in board if r.mark}
    assert marked["tuned baseline"] == state.verdict["baseline"]["trial"]
    assert marked["winner"] == state.verdict["winner"]["trial"]
    assert all(state.trials[r.trial].status == "finished" for r in leaderboard(state, 99))


def test_casualties_are_counted_by_reason(study_rows):
    state = replay(study_rows(trials=40))
    rows = casualties(state)
    counts = state.counts()
    for status in ("rejected", "pruned", "failed"):
        assert sum(r.count for r in rows if r.status == status) == counts[status] > 0
    assert [r.count for r in rows] == sorted((r.count for r in rows), reverse=True)
    assert all(0 < len(r.examples) <= 3 and r.reason for r in rows)
    number_, label, detail = next(r for r in rows if r.status == "failed").examples[0]
    assert (state.trials[number_].label, state.trials[number_].detail) == (label, detail)


def test_numbers_a_reader_can_use():
    assert number(0.74213) == "0.7421" and number(0.0) == "0.0000"
    assert number(3.2e-5, sign=True) == "+3.2e-05" and number(12345.6) == "1.23e+04"
    assert number(None) == number(float("nan")) == "–"
    assert (p_text(0.0001), p_text(0.0314), p_text(0.714)) == (
        "p < 0.001",
        "p = 0.031",
        "p = 0.71",
    )
    assert [duration(s) for s in (0.25, 200, 7500)] == ["0.25 s", "3 min 20 s", "2 h 5 min"]
