"""Rank correlation: its value, its interval against exact permutations, and its sentence."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from lossearch.trials.rank_correlation import RankCorrelation, interval, rank_correlation


def spearman(order: tuple[int, ...]) -> float:
    """1 - 6 sum d^2 / (k (k^2 - 1)), by hand."""
    k = len(order)
    return 1 - 6 * sum((i - j) ** 2 for i, j in enumerate(order)) / (k * (k * k - 1))


def test_value_by_hand() -> None:
    found = rank_correlation([0.1, 0.2, 0.3, 0.4, 0.5], [0.2, 0.1, 0.3, 0.5, 0.4])
    assert found.count == 5
    assert found.rho == pytest.approx(1 - 6 * 4 / 120)


def test_ties_share_a_rank() -> None:
    # ranks 1.5 1.5 3 4 5 and 1 2 3 4 5; Pearson's r of them: 9.5 / sqrt(9.5 * 10)
    found = rank_correlation([1, 1, 3, 4, 5], [1, 2, 3, 4, 5])
    assert found.rho == pytest.approx(9.5 / math.sqrt(9.5 * 10))


@pytest.mark.parametrize("count", [5, 6, 7])
def test_interval_leaves_out_0_where_the_exact_permutation_test_rejects(count: int) -> None:
    rhos = np.array([spearman(p) for p in itertools.permutations(range(count))])
    above, below = None, None  # of all values, in order, the two between which it begins to
    for rho in np.unique(rhos.round(9)):
        if np.mean(rhos >= rho - 1e-6) > 0.025:
            below = rho
        elif above is None:
            above = rho
    assert below is not None and above is not None
    assert interval(below, count)[0] < 0 < interval(above, count)[0]
    assert interval(-above, count)[1] < 0 < interval(-below, count)[1]


def test_interval_holds_the_truth_as_often_as_it_says() -> None:
    """2000 samples of 5 from a normal distribution whose population value is 0.6."""
    r = 2 * math.sin(math.pi * 0.6 / 6)
    draw = np.random.default_rng(1)
    rhos = []
    for _ in range(2000):
        x, noise = draw.standard_normal((2, 5))
        order = np.argsort((r * x + math.sqrt(1 - r * r) * noise)[np.argsort(x)])
        rhos.append(round(spearman(tuple(order)), 9))
    limits = {rho: interval(rho, 5) for rho in set(rhos)}
    held = np.mean([limits[rho][0] <= 0.6 <= limits[rho][1] for rho in rhos])
    assert 0.94 < held < 0.99


def test_interval_turns_with_the_sign_and_narrows_with_the_count() -> None:
    low, high = interval(0.9, 5)
    assert interval(-0.9, 5) == pytest.approx((-high, -low), abs=0.02)
    assert low < 0.9 < high
    few, many = interval(0.6, 5), interval(0.6, 20)
    assert many[1] - many[0] < 0.6 * (few[1] - few[0])
    # for larger samples, Bonett and Wright (Psychometrika 65, 2000): the standard error of
    # Fisher's z is sqrt((1 + rho^2 / 2) / (n - 3))
    half = 1.96 * math.sqrt((1 + 0.18) / 17)
    expected = [math.tanh(math.atanh(0.6) + s * half) for s in (-1, 1)]
    assert many == pytest.approx(expected, abs=0.06)


def test_a_perfect_order_of_five_is_no_certainty() -> None:
    low, high = interval(1.0, 5)
    assert 0.2 < low < 0.5
    assert high == 1.0


@pytest.mark.parametrize("count", [0, 1, 2, 4])
def test_too_few_say_nothing(count: int) -> None:
    found = rank_correlation(range(count), range(count))
    assert found.low is None and found.high is None
    assert "nothing can be said" in found.sentence
    assert "5 are the least" in found.sentence


def test_equal_scores_say_nothing() -> None:
    found = rank_correlation([0.5] * 6, range(6))
    assert found.rho is None
    assert "all 6 objectives the same score: nothing can be said" in found.sentence


@pytest.mark.parametrize(
    ("values", "said"),
    [((0.9, -0.17, 0.99), "says little about the full one: rank correlation 0.90 (95 % interval "
      "-0.17 to 0.99) over the 9 objectives that went on. They were the best"),
     ((0.4, 0.1, 0.6), "is a weak guide to the full one: rank correlation 0.40"),
     ((0.8, 0.5, 0.9), "is a fair guide to the full one: rank correlation 0.80"),
     ((-0.9, -1.0, -0.5), "misleads: what is better there is worse")],
)  # fmt: skip
def test_sentence_says_plainly_when_it_is_low(values: tuple[float, ...], said: str) -> None:
    assert said in RankCorrelation(9, *values).sentence


def test_wrong_scores_are_refused() -> None:
    with pytest.raises(ValueError, match="3 scores of one stage and 2 of the other"):
        rank_correlation([1, 2, 3], [1, 2])
    with pytest.raises(ValueError, match="not finite"):
        rank_correlation([1, 2, math.nan], [1, 2, 3])
