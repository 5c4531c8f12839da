"""A whole study: what it leaves behind, and what goes into its verdict."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from lossearch.study import StudyResult, read_study, start
from lossearch.study.finish import renew
from lossearch.trials.ledger import replay
from lossearch.trials.proposer import MIN_BASELINE

Write = Callable[..., Path]
Facts = Callable[[StudyResult], list[Any]]
Ledger = Callable[[Path], list[dict[str, Any]]]


def test_the_files(result: StudyResult, tmp_path: Path) -> None:
    assert result.folder == tmp_path / "runs" / "study"
    assert {p.name for p in result.folder.iterdir()} - {"checkpoints"} == {
        "best.yaml", "ledger.jsonl", "objective.py", "plots", "report.html", "study.yaml",
        "verdict.json",
    }  # fmt: skip
    assert list((result.folder / "checkpoints").glob("*")) == []
    assert result.problems == []


def test_what_fails_of_a_report_takes_nothing_else_away(
    result: StudyResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError("never mind")

    monkeypatch.setattr("lossearch.study.outputs.shapes", fail)
    monkeypatch.setattr("lossearch.study.finish.importance", fail)
    monkeypatch.setattr("lossearch.report.plots._curves", fail)
    for left in [result.folder / "report.html", *(result.folder / "plots").iterdir()]:
        left.unlink()
    path, problems = renew(result.folder)
    assert result.verdict and result.verdict["winner"]["label"] in path.read_text()
    assert [p.name for p in (result.folder / "plots").iterdir()] == ["search.png"]
    assert problems == [
        "the report has no shapes of losses: ZeroDivisionError: never mind",
        "the report has no importance of parameters: ZeroDivisionError: never mind",
        "curves.png could not be drawn: ZeroDivisionError: never mind",
    ]


def test_the_verdict(result: StudyResult) -> None:
    verdict = json.loads((result.folder / "verdict.json").read_text())
    assert verdict == result.verdict
    assert verdict["metric"] == "accuracy" and verdict["maximize"] is True
    assert verdict["recommend"] == result.recommend and verdict["recommend"] in (
        "winner", "baseline",
    )  # fmt: skip
    for who in ("baseline", "winner"):
        side = verdict[who]
        assert {"objective", "training", "values", "mean", "label", "trial"} <= set(side)
        assert len(side["values"]) == 2
        assert side["mean"] == pytest.approx(np.mean(side["values"]))
    assert verdict["baseline"]["objective"]["terms"] == [{"loss": {"name": "cross_entropy"}}]
    assert verdict["difference"] == pytest.approx(
        verdict["winner"]["mean"] - verdict["baseline"]["mean"]
    )
    low, high = verdict["interval"]
    assert low <= verdict["difference"] <= high
    assert 0 <= verdict["p_value"] <= 1
    assert len(verdict["seeds"]) == 2 and 0 not in verdict["seeds"]
    assert verdict["counts"] == dict(Counter(t.status for t in result.trials)) | {
        k: 0 for k in verdict["counts"] if k not in {t.status for t in result.trials}
    }
    assert sum(verdict["counts"].values()) == len(result.trials)
    assert sum(t.control is None for t in result.trials) == 12
    assert verdict["dropped"] == []


def test_the_ledger_tells_the_whole_story(result: StudyResult, ledger: Ledger) -> None:
    rows = ledger(result.folder)
    assert rows[0]["event"] == "study" and rows[-1] == {**rows[-1], "event": "ended"}
    first = rows[0]
    assert (first["metric"], first["maximize"]) == ("accuracy", True)
    assert first["data"]["name"] == "npz" and len(first["data"]["fingerprint"]) == 64
    assert first["data"]["class_counts"] == [30, 30, 30]
    state = replay(rows)
    assert list(state.trials.values()) == result.trials
    assert state.verdict == result.verdict and state.ended == "complete"
    by_status = Counter(t.status for t in result.trials)
    assert by_status["finished"] > 0 and by_status["pruned"] > 0 and by_status["running"] == 0
    own = [t for t in result.trials if t.role == "baseline"]
    assert len(own) >= min(MIN_BASELINE, 12 // 3)
    assert all(t.status == "finished" and t.epoch == 3 for t in own)  # never pruned
    for trial in result.trials:
        assert [r["epoch"] for r in trial.curve] == list(range(1, trial.epoch + 1))
        if trial.status == "finished":
            assert set(trial.metrics) == {"accuracy", "nll"}
    # each finalist and the baseline, on each fresh seed, once
    confirmed = Counter((c.trial, c.seed) for c in state.confirmations)
    assert result.verdict is not None
    finalists = [result.verdict["baseline"], *result.verdict["candidates"]]
    assert set(confirmed) == {(f["trial"], s) for f in finalists for s in result.verdict["seeds"]}
    assert set(confirmed.values()) == {1} and len(confirmed) >= 4
    assert all(set(c.test) == {"accuracy", "nll"} for c in state.confirmations)


def test_best_yaml_is_the_recommended_objective(result: StudyResult) -> None:
    text = (result.folder / "best.yaml").read_text()
    best = yaml.safe_load(text)
    assert result.verdict is not None and result.recommend is not None
    assert best["objective"] == result.verdict[result.recommend]["objective"]
    assert f"recommended: the {result.recommend}, of study study" in text
    objective = result.objective()
    logits = torch.randn(6, 3, generator=torch.Generator().manual_seed(0), requires_grad=True)
    value = objective(logits=logits, targets=torch.tensor([0, 1, 2, 0, 1, 2]))
    value.backward()
    assert value.isfinite() and logits.grad is not None


def test_the_same_study_twice_gives_the_same_numbers(
    result: StudyResult, tmp_path: Path, facts: Facts
) -> None:
    again = start(read_study(tmp_path / "study.yaml"))
    assert again.folder.name == "study-2"
    assert facts(again) == facts(result)
    assert again.verdict == result.verdict
    third = start(read_study(tmp_path / "study.yaml", {"seed": 1}))
    assert third.folder.name == "study-3"
    assert facts(third) != facts(result)


def test_a_report_that_cannot_be_written_takes_no_verdict_away(
    write_study: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("no ink")

    monkeypatch.setattr("lossearch.report.write_report", fail)
    found = start(read_study(write_study()))
    assert found.verdict is not None
    assert found.problems == ["the report could not be written: RuntimeError: no ink"]


def test_a_minimised_metric(write_study: Write, ledger: Ledger) -> None:
    found = start(read_study(write_study(metric="nll", metrics=[])))
    assert found.verdict is not None and found.verdict["maximize"] is False
    scores = {t.number: t.score for t in found.trials if t.status == "finished" and t.score}
    best = [t for t in found.trials if t.number == min(scores, key=lambda n: scores[n])]
    state = replay(ledger(found.folder))
    assert best[0].number in {c.trial for c in state.confirmations}
    pruned = [t.rungs[1] for t in found.trials if t.status == "pruned" and t.epoch == 1]
    assert pruned and max(pruned) >= max(t.rungs[1] for t in found.trials if 3 in t.rungs and
                                         t.role != "baseline")  # fmt: skip


def test_objectives_that_fail_are_rows_and_not_the_end(write_study: Write, tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_text(BAD)
    config = read_study(
        write_study(
            plugins=["bad.py"],
            space={"terms": [{"loss": {"choice": ["raises", "nan_loss"]}}]},
        )
    )
    found = start(config)
    assert found.verdict is not None
    reasons = Counter((t.reason, t.objective["terms"][0]["loss"]["name"]) for t in found.trials)
    assert reasons["error", "raises"] > 0 and reasons["diverged", "nan_loss"] > 0
    own = sum(t.role == "baseline" for t in found.trials)
    failed = sum(t.status == "failed" for t in found.trials)
    assert {t.reason for t in found.trials if t.status == "rejected"} <= {"equal"}
    assert found.verdict["counts"] == {
        "finished": own, "pruned": 0, "failed": failed, "rejected": 12 - own - failed,
        "running": 0,
    }  # fmt: skip
    assert (found.recommend, found.verdict["winner"]) == ("baseline", None)
    assert found.verdict["reason"].startswith("no other objective finished: trial 1, raises: ")
    best = yaml.safe_load((found.folder / "best.yaml").read_text())
    assert best["objective"]["terms"] == [{"loss": {"name": "cross_entropy"}}]
    assert (found.folder / "report.html").exists()


def test_a_baseline_that_never_finishes_is_said(write_study: Write, tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_text(BAD)
    found = start(read_study(write_study(plugins=["bad.py"], baseline="raises")))
    assert found.verdict is not None
    assert (found.recommend, found.verdict["baseline"]) == (None, None)
    assert found.failure is not None
    assert found.failure.startswith("no trial of the baseline finished, so nothing")


def test_what_cannot_teach_is_refused_before_it_trains(
    write_study: Write, tmp_path: Path
) -> None:
    (tmp_path / "bad.py").write_text(BAD)
    space = {"terms": [{"loss": {"choice": ["nan_at_once", "upside_down", "focal"]}}]}
    found = start(read_study(write_study(plugins=["bad.py"], space=space)))
    refused = {
        (t.objective["terms"][0]["loss"]["name"], t.reason)
        for t in found.trials
        if t.status == "rejected" and t.reason != "equal"
    }
    assert refused == {("nan_at_once", "not_finite"), ("upside_down", "wrong_sign")}
    assert {t.status for t in found.trials if t.label.startswith(("nan", "up"))} == {"rejected"}


def test_a_repeated_objective_takes_the_fate_of_its_twin(write_study: Write) -> None:
    """Focal loss with exponent 0 is the baseline: it costs nothing and says what it equals."""
    space = {"terms": [{"loss": {"choice": [{"name": "focal", "gamma": 0.0}, "poly_loss"]}}]}
    found = start(read_study(write_study(space=space)))
    same = [t for t in found.trials if t.reason == "equal"]
    assert same and all(t.status == "rejected" and t.equals is not None for t in same)
    first = min(same, key=lambda t: t.number)
    assert first.label == "focal(gamma=0)"
    assert first.detail == f"equals cross_entropy (trial {first.equals})"


BAD = '''
import torch.nn.functional as F
import lossearch

def ce(logits, targets):
    return F.cross_entropy(logits, targets, reduction="none")

@lossearch.loss(task="multiclass")
def raises(logits, targets):
    """Raises on the batches of training, which are smaller than the probe."""
    if len(logits) < 64:
        raise ValueError("on purpose")
    return ce(logits, targets)

@lossearch.loss(task="multiclass")
def nan_loss(logits, targets):
    """NaN on the batches of training."""
    return ce(logits, targets) * (float("nan") if len(logits) < 64 else 1.0)

@lossearch.loss(task="multiclass")
def nan_at_once(logits, targets):
    """NaN."""
    return ce(logits, targets) * float("nan")

@lossearch.loss(task="multiclass")
def upside_down(logits, targets):
    """The wrong sign."""
    return -ce(logits, targets)

@lossearch.hookimpl
def register_losses():
    return [raises, nan_loss, nan_at_once, upside_down]
'''


def test_trials_rejected_before_training_are_told(write_study: Write, ledger: Ledger) -> None:
    """A reweighting that some loss of the choice cannot take is found before it costs anything."""
    space = {
        "terms": [
            {"loss": {"choice": ["cross_entropy", "focal"]}},
            {"loss": "orthogonal_projection", "weight": {"low": 0.1, "high": 1}, "optional": True},
        ],
        "balancer": {"choice": ["fixed_weights", "dwa"]},
    }
    found = start(read_study(write_study(space=space)))
    assert found.verdict is not None
    assert {len(t.objective["terms"]) for t in found.trials} == {1, 2}
    assert all("balancer" not in t.objective or len(t.objective["terms"]) == 2
               for t in found.trials)  # fmt: skip
    trained = {t.status for t in found.trials if t.reason != "equal"}
    assert trained <= {"finished", "pruned"}
    assert [r["event"] for r in ledger(found.folder)][-2:] == ["verdict", "ended"]
