"""TPE: its densities against scipy, its groups and its good trials by hand, and what it learns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from scipy import stats
from scipy.special import logsumexp

from lossearch.trials import tpe
from lossearch.trials.parzen import Parzen
from lossearch.trials.tpe import (
    FINISHED,
    PENDING,
    REFUSED,
    UNKNOWN,
    Knowledge,
    TreeSampler,
)
from lossearch.trials.units import Unit

SPACE: dict[str, BaseDistribution] = {
    "lr": FloatDistribution(1e-4, 1e-1, log=True),
    "loss": CategoricalDistribution(("a", "b", "c")),
    "a.gamma": FloatDistribution(0.0, 5.0),
    "b.k": IntDistribution(1, 9),
    "b.mode": CategoricalDistribution((False, True)),
}


def draw(generator: np.random.Generator, loss: str = "") -> dict[str, Any]:
    """A random point of the space."""
    params: dict[str, Any] = {
        "lr": 10 ** generator.uniform(-4, -1),
        "loss": loss or str(generator.choice(["a", "b", "c"])),
    }
    if params["loss"] == "a":
        params["a.gamma"] = generator.uniform(0, 5)
    if params["loss"] == "b":
        params |= {"b.k": int(generator.integers(1, 10)), "b.mode": bool(generator.integers(2))}
    return params


def filled(count: int, maximize: tuple[bool, ...] = (True,), seed: int = 0) -> Knowledge:
    generator, known = np.random.default_rng(seed), Knowledge(maximize)
    for _ in range(count):
        params = draw(generator)
        row = known.add(params, {k: SPACE[k] for k in params})
        known.tell(row, FINISHED, generator.normal(size=len(maximize)))
    return known


def widths(observed: list[float]) -> list[float]:
    """The distance to the farther neighbour, clipped; a neighbour at the ends only when alone."""
    found, ordered = [], sorted(observed)
    for x in observed:
        i = ordered.index(x)
        near = [ordered[j] for j in (i - 1, i + 1) if 0 <= j < len(ordered)] or [0.0, 1.0]
        found.append(max(abs(x - y) for y in near))
    return [min(max(w, 1 / min(100, len(observed) + 2)), 1.0) for w in found]


@pytest.mark.parametrize("n", [0, 1, 2, 7, 40])
def test_the_density_is_that_of_scipy(n: int) -> None:
    generator = np.random.default_rng(n)
    numbers, choices = generator.random(n), generator.integers(0, 3, n)
    units = [Unit(SPACE["lr"]), Unit(SPACE["loss"])]
    found = Parzen(np.stack([numbers, choices], 1), units)
    weights = [1 / n + (1 - 1 / n) * i / (n - 26) for i in range(n - 25)] + [1.0] * min(n, 25)
    weights = np.array([*weights, 1.0]) / sum([*weights, 1.0])
    spread, points = [*widths(numbers.tolist()), 1.0], np.array([[0.0, 0], [0.31, 1], [1.0, 2]])
    for x, c in points:
        joint = []
        for i, (mu, s) in enumerate(zip([*numbers, 0.5], spread, strict=True)):
            number = stats.truncnorm(-mu / s, (1 - mu) / s, mu, s).logpdf(x)
            same = (i < n and choices[i] == c) + 1 / (n + 1)
            choice = np.log(same / (1 + 3 / (n + 1) if i < n else 3 / (n + 1)))
            joint.append(np.log(weights[i]) + number + choice)
        assert found.log_density(np.array([[x, c]]))[0] == pytest.approx(logsumexp(joint))


def test_marginals_are_the_densities_of_each_parameter_alone() -> None:
    observed = np.random.default_rng(0).random((30, 2))
    units, points = [Unit(SPACE["lr"]), Unit(SPACE["a.gamma"])], np.array([[0.2, 0.7], [1.0, 0.0]])
    whole = Parzen(observed, units, ageing=False).log_marginals(points)
    alone = [
        Parzen(observed[:, [i]], [units[i]], ageing=False).log_density(points[:, [i]])
        for i in range(2)
    ]
    assert whole == pytest.approx(sum(alone))


def test_draws_follow_the_density() -> None:
    observed = np.array([[0.1, 0], [0.12, 0], [0.8, 2]])
    found = Parzen(observed, [Unit(SPACE["lr"]), Unit(SPACE["loss"])])
    drawn = found.draw(20000, np.random.default_rng(0))
    assert drawn[:, 0].min() >= 0 and drawn[:, 0].max() <= 1
    grid = (np.arange(200) + 0.5) / 200
    for choice in range(3):
        points = np.stack([grid, np.full(200, choice)], 1)
        density = np.exp(found.log_density(points))
        share = drawn[:, 1] == choice
        assert share.mean() == pytest.approx(density.mean(), abs=0.015)
        assert drawn[share, 0].mean() == pytest.approx(
            (grid * density).sum() / density.sum(), abs=0.015
        )


@pytest.mark.parametrize(
    ("distribution", "values"),
    [
        (FloatDistribution(1e-4, 1e-1, log=True), [1e-4, 3e-3, 1e-1]),
        (FloatDistribution(-1.0, 6.0), [-1.0, 0.0, 6.0]),
        (IntDistribution(1, 9), [1, 4, 9]),
        (IntDistribution(2, 64, log=True), [2, 7, 64]),
        (CategoricalDistribution(("x", None, 3, 2.5, True)), ["x", None, 3, 2.5, True]),
        (FloatDistribution(2.0, 2.0), [2.0]),
    ],
)
def test_a_number_stands_for_its_value(distribution: Any, values: list[Any]) -> None:
    unit = Unit(distribution)
    for value in values:
        back = unit.value(unit.of(value))
        assert type(back) is type(value)
        assert back == (pytest.approx(value) if isinstance(value, float) else value)
    if not unit.choices:
        ends = [unit.value(0.0), unit.value(1.0)]
        assert ends == pytest.approx([distribution.low, distribution.high], rel=1e-12)
        assert distribution.low <= ends[0] and ends[1] <= distribution.high


def test_what_always_comes_together_is_drawn_together() -> None:
    known, generator = filled(60), np.random.default_rng(0)
    found = known.draw("lr", SPACE["lr"], generator)
    assert found.keys() == {"lr", "loss"}
    assert known.draw("b.mode", SPACE["b.mode"], generator).keys() == {"b.k", "b.mode"}
    assert known.draw("a.gamma", SPACE["a.gamma"], generator).keys() == {"a.gamma"}
    assert known.draw("new", SPACE["lr"], generator) == {}
    assert known.draw("lr", FloatDistribution(1e-4, 1.0), generator) == {}  # another range
    for name, value in found.items():
        assert SPACE[name]._contains(SPACE[name].to_internal_repr(value))


def test_the_good_are_those_that_got_farthest_then_the_best() -> None:
    known = Knowledge((False,))
    fates: list[tuple[float, float | None]] = [
        (3, 0.1), (9, 0.9), (3, 0.2), (FINISHED, 5.0), (REFUSED, None), (UNKNOWN, None), (9, 0.8),
        (PENDING, None), *[(1, 0.0)] * 19,
    ]  # fmt: skip
    for level, value in fates:
        row = known.add({"lr": 1e-3}, {"lr": SPACE["lr"]})
        known.tell(row, level, () if value is None else (value,))
    shown = np.flatnonzero(~np.isnan(known._level[: known.rows]))
    good, bad = known._split(shown)
    assert good.tolist() == [1, 3, 6]  # a tenth of 24 that are scored: 3
    assert bad.tolist() == [0, 2, 4, *range(7, 27)]
    assert known.scored == 24


def test_of_the_bad_only_the_latest_count_of_the_good_all(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[np.ndarray] = []

    class Watched(Parzen):
        def __init__(self, observed: np.ndarray, units: Any, **more: Any) -> None:
            seen.append(observed[:, 0])
            super().__init__(observed, units, **more)

    monkeypatch.setattr(tpe, "Parzen", Watched)
    known = filled(400)
    known.draw("loss", SPACE["loss"], np.random.default_rng(0))
    best = np.sort(np.argsort(-known._values[:400, 0])[:25])
    column = known._params[:400, known._columns["loss"]]
    assert seen[0].tolist() == column[best].tolist()
    assert seen[1].tolist() == np.delete(column, best)[-tpe.RECENT :].tolist()


def test_several_metrics_are_ranked_by_front() -> None:
    known = Knowledge((True, True))
    for values in [(0.0, 0.0), (1.0, 0.0), (0.0, 1.0), (0.5, 0.5), (0.4, 0.4), (0.1, 0.2)] * 4:
        known.tell(known.add({"lr": 1e-3}, {"lr": SPACE["lr"]}), FINISHED, values)
    good, _ = known._split(np.arange(24))
    assert {tuple(known._values[i]) for i in good} <= {(1.0, 0.0), (0.0, 1.0), (0.5, 0.5)}


def ask(known: Knowledge, seed: int) -> dict[str, Any]:
    """A proposal as a space asks for one."""
    sampler = TreeSampler(known, seed)
    trial = optuna.create_study(sampler=sampler).ask()
    params = {"lr": trial.suggest_float("lr", 1e-4, 1e-1, log=True)}
    params["loss"] = trial.suggest_categorical("loss", ("a", "b", "c"))
    if params["loss"] == "a":
        params["a.gamma"] = trial.suggest_float("a.gamma", 0.0, 5.0)
    if params["loss"] == "b":
        params["b.k"] = trial.suggest_int("b.k", 1, 9)
        params["b.mode"] = trial.suggest_categorical("b.mode", (False, True))
    return params


def test_it_learns_the_branch_and_its_parameters() -> None:
    def score(params: Mapping[str, Any]) -> float:
        wide = abs(np.log10(params["lr"]) + 2)
        return -wide + (1 - abs(params["b.k"] - 7) / 9 if params["loss"] == "b" else 0)

    known, generator = Knowledge((True,)), np.random.default_rng(1)
    late: list[dict[str, Any]] = []
    for number in range(120):
        params = ask(known, number)
        row = known.add(params, {k: SPACE[k] for k in params})
        known.tell(row, FINISHED, (score(params) + generator.normal(0, 0.05),))
        late += [params] if number >= 80 else []
    assert sum(p["loss"] == "b" for p in late) > 30
    assert np.median([p["b.k"] for p in late if p["loss"] == "b"]) in (6, 7, 8)
    assert -2.5 < np.median([np.log10(p["lr"]) for p in late]) < -1.5


def test_a_batch_keeps_apart() -> None:
    """Proposals that run count as bad: a batch is wider than as many from the same knowledge."""
    spread: dict[bool, list[float]] = {True: [], False: []}
    for seed in range(10):
        for told in spread:
            known, generator = Knowledge((True,)), np.random.default_rng(seed)
            for lr in 10 ** generator.uniform(-4, -1, 40):
                known.tell(
                    known.add({"lr": lr}, {"lr": SPACE["lr"]}), FINISHED, (-abs(np.log10(lr) + 2),)
                )
            batch: list[float] = []
            for i in range(16):
                found = known.draw("lr", SPACE["lr"], np.random.default_rng([seed, i]))
                batch.append(np.log10(found["lr"]))
                if told:
                    known.add(found, {"lr": SPACE["lr"]})
            spread[told].append(float(np.std(batch)))
    assert np.mean(spread[True]) > 1.3 * np.mean(spread[False])


def test_what_was_refused_is_proposed_less_and_less() -> None:
    """Half of the branches are refused whenever they come; only the lr of the others matters."""
    refused: list[bool] = []
    losses = tuple("abcdefghij")
    choice = CategoricalDistribution(losses)
    known, generator = Knowledge((True,)), np.random.default_rng(0)
    for number in range(200):
        trial = optuna.create_study(sampler=TreeSampler(known, number)).ask()
        lr = trial.suggest_float("lr", 1e-4, 1e-1, log=True)
        loss = trial.suggest_categorical("loss", losses)
        row = known.add({"lr": lr, "loss": loss}, {"lr": SPACE["lr"], "loss": choice})
        refused.append(loss in "fghij")
        if refused[-1]:
            known.tell(row, REFUSED)
        else:
            score = -abs(np.log10(lr) + 2) + generator.normal(0, 0.3)
            known.tell(row, FINISHED, (score,))
    assert np.mean(refused[:30]) > 0.3
    assert np.mean(refused[-100:]) < 0.1
