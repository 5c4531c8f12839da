"""The search phase: units of several jobs, probed learning rates, the baseline's controls."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lossearch.study import StudyResult, read_study, resume, start
from lossearch.study.search import POINTS
from lossearch.training import Unit
from lossearch.training.choice import Choice

Write = Callable[..., Path]
Ledger = Callable[[Path], list[dict[str, Any]]]


@pytest.fixture
def units(units: list[Unit], monkeypatch: pytest.MonkeyPatch) -> list[Unit]:
    """A stack pays always, so that no clock decides."""
    monkeypatch.setattr(Choice, "gain", lambda self, size: 0.0 if self.problem else 4.0)
    return units


def stacked(write_study: Write, **changes: Any) -> Path:
    return write_study(**{"search__trials": 36, "fairness__probe_lr": True} | changes)


def test_jobs_of_one_unit_begin_and_end_together(write_study: Write, units: list[Unit]) -> None:
    found = start(read_study(stacked(write_study)))
    assert units[0].jobs == () and units[0].measure == 36 // 6 * 3
    begun: dict[tuple[int, int], int] = defaultdict(int)
    for unit in units[1:]:
        assert 1 <= len(unit.jobs) <= 18
        starts = {begun[j.trial, j.seed] for j in unit.jobs}
        assert len({(j.until, j.seed, j.test) for j in unit.jobs}) == 1 == len(starts)
        for job in unit.jobs:
            begun[job.trial, job.seed] = job.until
    assert max(len(u.jobs) for u in units) == 18
    assert found.verdict is not None
    assert list((found.folder / "checkpoints").glob("*")) == []


def test_every_trial_is_probed_at_three_rates(
    write_study: Write, units: list[Unit], ledger: Ledger
) -> None:
    found = start(read_study(stacked(write_study)))
    rows = {r["trial"]: r for r in ledger(found.folder) if r["event"] == "probed"}
    trained = [t for t in found.trials if t.status != "rejected" and t.control is None]
    assert set(rows) == {t.number for t in trained}
    assert {t.role for t in trained} >= {"baseline", "reference", "search"}
    for trial in trained:
        row = rows[trial.number]
        lr = trial.training["lr"]
        assert row["rates"] == pytest.approx([min(max(lr * p, 0.005), 0.3) for p in POINTS])
        best = row["scores"][row["point"]]
        assert best == max(row["scores"])  # accuracy is maximised
        assert trial.rungs[1] == best
        assert trial.tuned == {**trial.training, "lr": row["rates"][row["point"]]}
        assert trial.params["training.lr"] == trial.tuned["lr"]
    later = [j for u in units for j in u.jobs if j.until > 1 and not j.test and j.trial in rows]
    assert later
    for job in later:
        assert job.variant == rows[job.trial]["point"]
        assert job.values["lr"] == rows[job.trial]["rates"][job.variant]


def test_what_is_confirmed_is_what_was_probed_best(write_study: Write, units: list[Unit]) -> None:
    found = start(read_study(stacked(write_study)))
    trials = {t.number: t for t in found.trials}
    confirmed = [j for u in units for j in u.jobs if j.test]
    assert confirmed and all(j.values == trials[j.trial].tuned for j in confirmed)
    assert found.verdict is not None
    for side in ("baseline", "winner"):
        assert found.verdict[side]["training"] == trials[found.verdict[side]["trial"]].tuned


def test_a_fixed_rate_is_not_probed(write_study: Write, units: list[Unit]) -> None:
    found = start(read_study(stacked(write_study, training__lr=0.1)))
    assert {j.variant for u in units for j in u.jobs} == {None}
    assert units[0].measure == 6 and all(t.point is None for t in found.trials)


def test_a_model_that_does_not_stack_is_not_probed(
    write_study: Write, monkeypatch: pytest.MonkeyPatch, units: list[Unit], ledger: Ledger
) -> None:
    monkeypatch.setattr(Choice, "gain", lambda *_: 0.5)
    found = start(read_study(stacked(write_study)))
    assert {len(u.jobs) for u in units} <= {0, 1}
    (row,) = [r for r in ledger(found.folder) if r["event"] == "measured"]
    assert row["jobs"] == 1 and all(t.point is None for t in found.trials)


def plain(result: StudyResult) -> list[Any]:
    return [(t.number, t.label, t.status, t.rungs, t.tuned, t.metrics) for t in result.trials]


@pytest.mark.parametrize(("event", "nth"), [("measured", 1), ("probed", 2), ("rung", 9),
                                            ("proposed", 20), ("confirmed", 2)])  # fmt: skip
def test_a_resumed_study_is_the_one_that_was_not_stopped(
    write_study: Write, units: list[Unit], stop_at: Callable[..., Any], event: str, nth: int
) -> None:
    config = read_study(stacked(write_study))
    whole = start(config)
    with pytest.raises(KeyboardInterrupt):
        start(config.model_copy(update={"output": "out"}), display=stop_at(event, nth))
    again = resume("out")
    if event in ("measured", "confirmed"):  # a unit that is cut off comes back in smaller ones
        assert plain(again) == plain(whole)
    assert again.verdict is not None and len(again.trials) >= 36
    measured = [r for r in units if r.measure]
    assert len(measured) == 2  # once for each study, not again for the resumed one


def test_the_baseline_is_tried_at_the_finalists_rates(result: StudyResult) -> None:
    assert result.verdict is not None
    own = [t for t in result.trials if t.role == "baseline"]
    for candidate in result.verdict["candidates"]:
        rate = candidate["training"]["lr"]
        assert any(t.training["lr"] == pytest.approx(rate, rel=0.01) for t in own)
    controls = [t for t in own if t.control is not None]
    assert controls and all(t.status == "finished" for t in controls)
    assert all(t.objective == own[0].objective for t in controls)


def test_the_baseline_in_disguise_is_no_winner(write_study: Write) -> None:
    space = {"terms": [{"loss": {"choice": [{"name": "focal", "gamma": 0.0},
                                            {"name": "poly_loss", "epsilon": 0.0,
                                             "base": "cross_entropy",
                                             "label_smoothing": 0.0}]},
                        "weight": {"low": 0.5, "high": 5.0}}]}  # fmt: skip
    found = start(read_study(write_study(space=space, search__trials=24)))
    disguised = [t for t in found.trials if t.plays_baseline]
    assert disguised and found.verdict is not None
    assert (found.recommend, found.verdict["winner"]) == ("baseline", None)
    assert found.verdict["reason"].startswith("no other objective finished")


def test_every_objective_begins_with_the_baselines_norm(write_study: Write) -> None:
    found = start(read_study(write_study()))
    scales = {t.label: t.objective.get("scale", 1.0) for t in found.trials}
    assert scales["cross_entropy"] == 1.0 and scales["focal"] != 1.0
    off = start(read_study(write_study(fairness__gradient_norm=False)))
    assert all("scale" not in t.objective for t in off.trials)


def test_looking_ahead_changes_no_trial(
    write_study: Write, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Proposals are looked at together as if all were let through; some are not."""
    plain = {"name": "poly_loss", "epsilon": 0.0, "base": "cross_entropy", "label_smoothing": 0.0}
    space = {"terms": [{"loss": {"choice": ["focal", plain, "generalized_cross_entropy"]}}]}
    config = read_study(write_study(space=space, search__trials=40, training__lr=0.1))

    def rows(folder: Path) -> list[Any]:
        of = [r for r in ledger(folder) if r["event"] in ("proposed", "rejected")]
        return [{k: v for k, v in r.items() if k != "time"} for r in of]

    together = rows(start(config).folder)
    monkeypatch.setattr("lossearch.study.search.MANY", 1)
    one_by_one = rows(start(config.model_copy(update={"output": "out"})).folder)
    assert {r["event"] for r in together} == {"proposed", "rejected"}
    assert together == one_by_one
