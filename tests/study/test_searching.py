"""What a study's ``search:`` and ``metric:`` may ask for: trade-offs, budgets, earlier studies."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lossearch.errors import StudyError
from lossearch.study import read_study, resume, start
from lossearch.trials.pareto import front

Write = Callable[..., Path]
Ledger = Callable[[Path], list[dict[str, Any]]]


def test_two_metrics_are_traded(write_study: Write, ledger: Ledger) -> None:
    found = start(read_study(write_study(metric=["accuracy", "nll"], metrics=["macro_f1"])))
    rows = ledger(found.folder)
    assert rows[0]["deciding"] == {"accuracy": True, "nll": False}
    assert all(set(r["scores"]) == {"accuracy", "nll"} for r in rows if r["event"] == "finished")
    rungs = [r for r in rows if r["event"] == "rung"]
    assert rungs and all(r["scores"]["accuracy"] == r["score"] for r in rungs)
    best = front([t for t in found.trials if t.role != "baseline"], (True, False))
    assert best and found.verdict is not None
    chosen = {c["trial"] for c in found.verdict["candidates"]}
    structures = {t.label.split("(")[0] for t in best if not t.plays_baseline}
    assert chosen & {t.number for t in best} or not structures
    assert set(found.verdict["metrics"]) == {"accuracy", "nll"}
    for candidate in found.verdict["candidates"]:
        assert set(candidate["metrics"]) == {"accuracy", "nll"}
    assert "nll" in found.verdict["text"]


def test_trade_offs_resume(write_study: Write, stop_at: Callable[..., Any], facts: Any) -> None:
    config = read_study(write_study(metric=["accuracy", "nll"], metrics=[]))
    whole = start(config)
    with pytest.raises(KeyboardInterrupt):
        start(config.model_copy(update={"output": "out"}), display=stop_at("rung", 7))
    again = resume("out")
    assert facts(again) == facts(whole) and again.verdict == whole.verdict


@pytest.mark.parametrize("metric", [["accuracy", "accuracy"], []])
def test_metrics_that_decide_are_different(write_study: Write, metric: list[str]) -> None:
    with pytest.raises(StudyError, match="one metric or several different ones"):
        read_study(write_study(metric=metric))


def test_a_budget_of_epochs(write_study: Write, ledger: Ledger) -> None:
    found = start(read_study(write_study(search={"epochs": 20, "rungs": {"min_epochs": 1}})))
    trained = sum(t.epoch for t in found.trials if t.control is None)
    assert 20 <= trained <= 26  # what was under way, and one finalist, go to their ends
    (row,) = [r for r in ledger(found.folder) if r["event"] == "searched"]
    assert row["reason"] == "the budget of 20 epochs is spent"
    assert found.verdict is not None


def test_a_budget_of_time(write_study: Write, ledger: Ledger) -> None:
    found = start(read_study(write_study(search={"hours": 1e-9})))
    (row,) = [r for r in ledger(found.folder) if r["event"] == "searched"]
    assert "hours is spent" in row["reason"] and len(found.trials) <= 2


def test_patience(write_study: Write, ledger: Ledger) -> None:
    found = start(read_study(write_study(search__trials=60, search__patience=6)))
    proposed = [t for t in found.trials if t.control is None]
    (row,) = [r for r in ledger(found.folder) if r["event"] == "searched"]
    assert len(proposed) < 60 and row["reason"].endswith("trials brought no new best")


def test_given_objectives_come_first(write_study: Write) -> None:
    smooth = {"terms": [{"loss": {"name": "cross_entropy", "label_smoothing": 0.2}}]}
    found = start(read_study(write_study(search__given=["squentropy", smooth])))
    given = [t for t in found.trials if t.role == "given"]
    assert [t.objective["terms"][0]["loss"]["name"] for t in given] == [
        "squentropy", "cross_entropy",
    ]  # fmt: skip
    assert found.trials[0].role == "baseline" and max(t.number for t in given) <= 3


def test_a_given_objective_that_cannot_be_trained_is_refused(write_study: Write) -> None:
    config = read_study(write_study(search__given=["focl"]))
    with pytest.raises(StudyError, match=r"search\.given\.0: .*focal"):
        start(config)
    assert not Path("runs").exists()


def test_an_earlier_study_is_learned_from(
    write_study: Write, ledger: Ledger, stop_at: Callable[..., Any]
) -> None:
    first = start(read_study(write_study(search__trials=40)))
    warm = {
        "search__warm_start": [str(first.folder)], "search__references": False,
        "search__trials": 12,
    }  # fmt: skip
    config = read_study(write_study(**warm))
    second = start(config)
    (told,) = ledger(second.folder)[0]["warm"]["told"]
    assert told["learned"] > 0 and len([t for t in second.trials if t.control is None]) == 12
    cold = start(read_study(write_study(search__warm_start=[])))
    labels = [t.training["lr"] for t in second.trials if t.role == "search"]
    assert labels and labels != [t.training["lr"] for t in cold.trials if t.role == "search"]
    with pytest.raises(KeyboardInterrupt):
        start(config.model_copy(update={"output": "out"}), display=stop_at("rung", 4))
    for file in first.folder.glob("*"):  # a resumed study does not need the folder any more
        if file.is_file():
            file.unlink()
    again = resume("out")
    assert [t.label for t in again.trials] == [t.label for t in second.trials]


def test_no_study_to_learn_from(write_study: Write) -> None:
    config = read_study(write_study(search__warm_start=["nowhere"]))
    with pytest.raises(StudyError, match=r"search\.warm_start: .*nowhere"):
        start(config)


@pytest.mark.parametrize("sampler", ["evolution", "nsga2", "random", "gp"])
def test_every_sampler_ends_in_a_verdict(write_study: Write, sampler: str) -> None:
    found = start(read_study(write_study(search__sampler=sampler)))
    assert found.verdict is not None
    assert sum(t.control is None for t in found.trials) == 12
