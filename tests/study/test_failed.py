"""A study that has nothing to recommend says why, and is no success."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from lossearch.errors import StudyError
from lossearch.registry import current
from lossearch.report.text import headline, verdict_text
from lossearch.study import StudyResult, read_study, resume, start
from lossearch.study.confirm import verdict
from lossearch.tracking.records import Update, collect
from lossearch.trials.ledger import Confirmation, State, Trial, read_ledger, replay

Write = Callable[..., Path]


@pytest.fixture
def failed(write_study: Write) -> StudyResult:
    """A study whose every training diverges."""
    return start(read_study(write_study(training__optimizer="sgd", training__lr=1e30)))


def test_a_study_in_which_nothing_finishes(failed: StudyResult) -> None:
    assert failed.trials and not any(t.status == "finished" for t in failed.trials)
    assert failed.recommend is None and failed.verdict is not None
    why = failed.failure
    assert why is not None
    assert why.startswith("no trial finished: trial 0, cross_entropy: diverged")
    assert failed.trials[0].detail.splitlines()[0].rstrip(".") in why
    with pytest.raises(StudyError, match="the study failed, so it recommends nothing: no trial"):
        failed.objective()
    assert json.loads((failed.folder / "verdict.json").read_text())["recommend"] is None
    assert not (failed.folder / "best.yaml").exists()
    page = (failed.folder / "report.html").read_text()
    assert "The study failed" in page and "Keep the baseline" not in page
    assert "What to use" not in page and "diverged" in page
    rows = read_ledger(failed.folder / "ledger.jsonl")
    assert rows[-1] == {**rows[-1], "event": "ended", "status": "failed"}
    again = resume(failed.folder)
    assert again.failure == why


def test_its_run_in_mlflow_has_failed(failed: StudyResult) -> None:
    rows = read_ledger(failed.folder / "ledger.jsonl")
    updates: dict[str, Update] = {}
    collect(replay(rows), rows[-1], updates)
    assert updates["study"].status == "FAILED"
    assert updates["study"].tags["lossearch.recommend"] == "nothing"
    assert updates["study"].tags["mlflow.note.content"].startswith("The study failed: no trial")


def trial(number: int, loss: str, role: Any = "search", **more: Any) -> Trial:
    objective = {"task": "multiclass", "terms": [{"loss": {"name": loss}}]}
    return Trial(number, role, objective, loss, {"lr": 0.1}, **more)


def judged(*trials: Trial, ended: Sequence[tuple[int, float | None]] = ()) -> dict[str, Any]:
    """The verdict on these trials, after a training of each on one more seed."""
    state = State(trials={t.number: t for t in trials}, stopped="the budget of 1 hours is spent")
    for seed in (7, 8):
        for number, value in ended:
            test = {} if value is None else {"accuracy": value}
            words = ("", "") if value is not None else ("diverged", "the loss is nan.\nTraceback")
            found = Confirmation(number, seed, value, test, reason=words[0], detail=words[1])
            state.confirmations.append(found)
    whole = [t for t in trials if t.status == "finished"]
    base = next((t for t in whole if t.role == "baseline"), None)
    others = [t for t in whole if t is not base]
    return verdict(state, base, others, (current().get("accuracy"),))


GOOD: dict[str, Any] = {"status": "finished", "score": 0.5}
BAD: dict[str, Any] = {"status": "failed", "reason": "raised", "detail": "ValueError: no"}
BASE = ("cross_entropy", "baseline")


def test_without_a_baseline_there_is_nothing_to_compare_with() -> None:
    found = judged(trial(0, *BASE, **BAD), trial(1, "focal", **GOOD))
    assert found["recommend"] is None and found["winner"] is None
    assert found["reason"] == (
        "no trial of the baseline finished, so nothing can be compared with it: "
        "trial 0, cross_entropy: raised, ValueError: no"
    )
    assert verdict_text(found).startswith("The study failed: no trial of the baseline finished")


def test_where_the_baseline_breaks_on_every_fresh_seed_it_is_not_to_be_kept() -> None:
    trials = trial(0, *BASE, **GOOD), trial(1, "focal", **GOOD)
    for value in (0.9, None):
        found = judged(*trials, ended=[(0, None), (1, value)])
        assert found["recommend"] is None
        assert found["reason"] == (
            "the baseline did not finish on any fresh seed: trial 0, cross_entropy: diverged, "
            "the loss is nan (and 1 more)"
        )


def test_where_only_the_others_fail_the_baseline_is_kept() -> None:
    refused = [
        trial(1, "focal", status="rejected", reason="not_aligned", detail="it makes it worse"),
        trial(2, "poly_loss", **BAD),
        trial(3, "squentropy", **BAD),
    ]
    found = judged(trial(0, *BASE, **GOOD), *refused)
    assert found["recommend"] == "baseline"
    assert found["reason"] == (
        "no other objective finished: trial 1, focal: not_aligned, it makes it worse; "
        "trial 2, poly_loss: raised, ValueError: no (and 1 more)"
    )
    found = judged(trial(0, *BASE, **GOOD), trial(1, "focal", **GOOD), ended=[(0, 0.5), (1, None)])
    assert found["recommend"] == "baseline"
    assert found["reason"].startswith("no candidate finished on every fresh seed: trial 1, focal")


def test_where_time_was_up_that_is_why() -> None:
    found = judged(trial(0, *BASE), trial(1, "focal"))
    assert found["recommend"] is None
    assert found["reason"] == "no trial finished: the budget of 1 hours is spent"


def test_a_verdict_of_an_earlier_version_is_read_as_it_was() -> None:
    state = State(verdict={"recommend": "baseline", "winner": None, "baseline": None})
    assert headline(state) == "Keep the baseline"
