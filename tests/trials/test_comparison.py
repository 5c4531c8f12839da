"""The verdict's arithmetic, against scipy and hand-worked numbers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy import stats

from lossearch.trials.comparison import Finalist, compare, judge


def finalist(trial: int, test: list[float], validation: list[float] | None = None) -> Finalist:
    seeds = range(100, 100 + len(test))
    return Finalist(
        trial,
        f"t{trial}",
        {"terms": [trial]},
        {"lr": 0.1},
        dict(zip(seeds, validation or test, strict=True)),
        dict(zip(seeds, test, strict=True)),
    )


@pytest.mark.parametrize("seeds", [2, 3, 5, 20])
def test_a_pair_of_series_is_compared_as_scipy_does(seeds: int) -> None:
    draw = np.random.default_rng(seeds)
    a, b = draw.normal(0.8, 0.02, seeds).tolist(), draw.normal(0.7, 0.02, seeds).tolist()
    found, expected = compare(a, b), stats.ttest_rel(a, b)
    interval = expected.confidence_interval(0.95)
    assert found.difference == pytest.approx(np.mean(a) - np.mean(b))
    assert found.p_value == pytest.approx(expected.pvalue)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))


def test_hand_numbers() -> None:
    # differences 1, 2, 3: mean 2, deviation 1, error 1/sqrt(3), t = 3.4641, df 2
    found = compare([2, 4, 6], [1, 2, 3])
    assert found.difference == 2
    assert found.p_value == pytest.approx(0.0741799, abs=1e-6)
    assert found.high - 2 == pytest.approx(4.302653 / 3**0.5, rel=1e-6)


@pytest.mark.parametrize("seeds", [2, 5, 8])
def test_equal_differences_fall_back_on_the_sign_test(seeds: int) -> None:
    base = np.linspace(0.1, 0.7, seeds).tolist()
    found = compare([x + 0.1 for x in base], base)
    assert found.p_value == pytest.approx(2 * 0.5**seeds)
    assert (found.low, found.high) == pytest.approx((0.1, 0.1))
    assert compare(base, base).p_value == 1.0


def test_two_pairs_of_equal_number_are_needed() -> None:
    for a, b in (([1.0], [2.0]), ([1.0, 2.0], [1.0]), ([], [])):
        with pytest.raises(ValueError, match="at least two pairs"):
            compare(a, b)


BASE = [0.70, 0.71, 0.69, 0.70, 0.72]
GOOD = [0.75, 0.77, 0.73, 0.74, 0.78]


def test_p_values_are_multiplied_by_the_number_of_finalists() -> None:
    wild = [0.9, 0.1, 0.5, 0.7, 0.6]
    candidates = [finalist(1, GOOD), finalist(2, BASE[::-1]), finalist(3, wild)]
    found = judge(finalist(0, BASE), candidates, {"accuracy": True})
    for row, candidate in zip(found["candidates"], candidates, strict=True):
        plain = stats.ttest_rel(list(candidate.test.values()), BASE).pvalue
        assert row["p_value"] == pytest.approx(min(1.0, 3 * plain))
    assert max(r["p_value"] for r in found["candidates"]) == 1.0


def test_a_significant_gain_is_recommended() -> None:
    found = judge(finalist(0, BASE), [finalist(1, GOOD)], {"accuracy": True})
    assert found["recommend"] == "winner"
    assert found["winner"]["trial"] == 1 and found["baseline"]["trial"] == 0
    assert found["winner"]["values"] == GOOD and found["baseline"]["values"] == BASE
    assert found["difference"] == pytest.approx(np.mean(GOOD) - np.mean(BASE))
    assert found["interval"][0] > 0
    assert found["seeds"] == [100, 101, 102, 103, 104]
    assert (found["metric"], found["maximize"]) == ("accuracy", True)


@pytest.mark.parametrize(
    ("candidate", "maximize", "recommend"),
    [
        (GOOD, False, "baseline"),  # significant, in the wrong direction
        ([x - 0.05 for x in GOOD], True, "baseline"),  # not significant
        ([0.60, 0.63, 0.58, 0.61, 0.60], False, "winner"),
        ([0.60, 0.63, 0.58, 0.61, 0.60], True, "baseline"),
        (BASE, True, "baseline"),
    ],
)
def test_what_is_recommended(candidate: list[float], maximize: bool, recommend: str) -> None:
    found = judge(finalist(0, BASE), [finalist(1, candidate)], {"m": maximize})
    assert found["recommend"] == recommend


def test_the_correction_can_take_a_recommendation_away() -> None:
    near: list[float] = [0.74, 0.75, 0.70, 0.71, 0.75]
    alone = judge(finalist(0, BASE), [finalist(1, near)], {"m": True})
    poor = [finalist(i, [0.1, 0.2, 0.1, 0.3, 0.1]) for i in range(2, 8)]
    among = judge(finalist(0, BASE), [finalist(1, near), *poor], {"m": True})
    assert alone["recommend"] == "winner" and alone["p_value"] < 0.05
    assert among["winner"]["trial"] == 1
    assert among["p_value"] == pytest.approx(7 * alone["p_value"])
    assert among["recommend"] == "baseline"


@pytest.mark.parametrize("maximize", [True, False])
def test_validation_chooses_the_winner_and_not_the_test_split(maximize: bool) -> None:
    sign = 1 if maximize else -1
    lucky = finalist(1, [sign * 0.99] * 5, [sign * 0.5] * 5)
    chosen = finalist(2, [sign * x for x in GOOD], [sign * 0.6] * 5)
    base = finalist(0, [sign * x for x in BASE])
    found = judge(base, [lucky, chosen], {"m": maximize})
    assert found["winner"]["trial"] == 2
    assert found["recommend"] == "winner"


def test_seeds_that_did_not_all_finish_are_left_out() -> None:
    short = Finalist(0, "b", {}, {}, {100: 0.7, 101: 0.7}, {100: 0.7, 101: 0.71})
    found = judge(short, [finalist(1, GOOD)], {"m": True})
    assert found["seeds"] == [100, 101]
    assert found["winner"]["values"] == GOOD[:2]
    one = Finalist(0, "b", {}, {}, {100: 0.7}, {100: 0.7})
    for base, candidates in ((one, [finalist(1, GOOD)]), (finalist(0, BASE), [])):
        arguments: Any = (base, candidates)
        with pytest.raises(ValueError, match="two seeds"):
            judge(*arguments, {"m": True})


def traded(values: list[float], other: list[float], trial: int) -> Finalist:
    """A finalist that was measured by two metrics."""
    pairs = zip(values, other, strict=True)
    by_seed = {100 + i: {"first": v, "second": o} for i, (v, o) in enumerate(pairs)}
    found = finalist(trial, values)
    return replace(found, test={s: m["first"] for s, m in by_seed.items()}, measured=by_seed)


LOW, HIGH = [0.10, 0.11, 0.09, 0.10, 0.12], [0.20, 0.21, 0.22, 0.19, 0.20]


@pytest.mark.parametrize(
    ("values", "other", "recommend"),
    [
        (GOOD, LOW, "winner"),  # ahead in both: less of the second is better
        (BASE, LOW, "winner"),  # ahead in the second, level in the first
        (GOOD, HIGH, "winner"),
        (GOOD, [v + 0.1 for v in HIGH], "baseline"),  # bought with the second
        (BASE, HIGH, "baseline"),
    ],
)
def test_several_metrics_are_traded(
    values: list[float], other: list[float], recommend: str
) -> None:
    directions = {"first": True, "second": False}
    base = traded(BASE, [0.2, 0.2, 0.21, 0.2, 0.2], 0)
    found = judge(base, [traded(values, other, 1)], directions)
    assert found["recommend"] == recommend
    assert set(found["metrics"]) == {"first", "second"}
    second = found["metrics"]["second"]
    plain = stats.ttest_rel(other, [0.2, 0.2, 0.21, 0.2, 0.2])
    assert second["p_value"] == pytest.approx(min(1.0, 2 * float(plain.pvalue)))  # type: ignore
    assert second["mean"] == pytest.approx(np.mean(other))
    assert found["p_value"] == found["metrics"]["first"]["p_value"]
