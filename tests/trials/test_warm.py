"""What a search begins with: given objectives, and what can be used of earlier studies."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lossearch.errors import StudyError
from lossearch.registry import Registry
from lossearch.space import Between, Space
from lossearch.trials.ledger import Ledger, Trial
from lossearch.trials.proposer import Proposer
from lossearch.trials.warm import Conditions, WarmStart, read_given, read_warm_start

TUNING = {"lr": Between(1e-4, 1e-1, log=True, default=3e-3)}
Make = Callable[..., Proposer]
Drive = Callable[..., list[Trial]]


def where(registry: Registry) -> dict[str, Any]:
    return {"registry": registry, "task": "multiclass", "available": {"logits", "targets"}}


@pytest.fixture
def spaces(registry: Registry) -> dict[str, Any]:
    def compiled(loss: Any) -> Space:
        document = {"task": "multiclass", "terms": [{"loss": loss}]}
        return Space.from_document(document, **where(registry))

    return {
        "space": compiled({"choice": ["cross_entropy", "focal", "poly_loss"]}),
        "baseline": compiled({"name": "cross_entropy", "label_smoothing": 0.0}),
        "tuning": TUNING,
    }


def study_row(**changes: Any) -> dict[str, Any]:
    row = {
        "config": {"metric": {"name": "accuracy"}, "metrics": [{"name": "ece"}],
                   "training": {"epochs": 9}},
        "maximize": True,
        "data": {"task": "multiclass", "fingerprint": "abc"},
        "model": {"name": "mlp"},
    }  # fmt: skip
    for key, value in changes.items():
        row["config" if key in ("metric", "training") else key] = (
            {**row["config"], key: value} if key in ("metric", "training") else value
        )
    return row


HERE = Conditions.of(study_row())


def write(
    folder: Path, trials: list[tuple[str, Any, float, float | None]], **changes: Any
) -> str:
    """A study's ledger: of each trial its role, loss, lr and score."""
    folder.mkdir()
    ledger = Ledger(folder / "ledger.jsonl")
    ledger.append("study", **study_row(**changes))
    task = changes.get("data", {"task": "multiclass"})["task"]
    for number, (role, loss, lr, score) in enumerate(trials):
        objective = {"task": task, "terms": [{"loss": loss}], "scale": 1.7}
        ledger.append("proposed", trial=number, role=role, objective=objective, label="",
                      training={"lr": lr})  # fmt: skip
        if score is not None:
            metrics = {"accuracy": score, "ece": 1 - score}
            ledger.append("finished", trial=number, score=score, metrics=metrics, epochs=9)
    ledger.append("ended", status="complete")
    ledger.close()
    return str(folder)


def focal(gamma: float) -> dict[str, Any]:
    return {"name": "focal", "gamma": gamma}


EARLIER: list[tuple[str, Any, float, float | None]] = [
    ("baseline", {"name": "cross_entropy"}, 0.01, 0.5),
    ("search", focal(1.0), 0.01, 0.7),
    ("search", focal(3.0), 0.02, 0.8),
    ("search", focal(3.0), 0.5, 0.9),  # its lr is out of this study's range
    ("search", {"name": "generalized_cross_entropy"}, 0.01, 0.9),  # not in this space
    ("search", focal(2.0), 0.01, None),  # never finished
    ("reference", {"name": "poly_loss", "epsilon": 2.0}, 0.01, 0.6),
]


def test_trials_found_alike_are_there_to_learn_from(tmp_path: Path, spaces: Any) -> None:
    folder = write(tmp_path / "one", EARLIER)
    warm = read_warm_start([folder], HERE, **spaces)
    assert [(t.role, t.score, t.training["lr"]) for t in warm.trials] == [
        ("baseline", 0.5, 0.01), ("search", 0.7, 0.01), ("search", 0.8, 0.02),
        ("search", 0.6, 0.01),
    ]  # fmt: skip
    params = warm.trials[2].params
    assert params["terms.0.loss.focal.gamma"] == 3.0 and params["training.lr"] == 0.02
    assert params.keys() == warm.trials[2].distributions.keys()
    assert warm.given == []
    assert warm.told == [{"folder": folder, "learned": 4, "tried": 0}]
    again = WarmStart.from_document(json.loads(json.dumps(warm.document())))
    assert again == warm


def test_metrics_that_were_only_measured_serve_too(tmp_path: Path, spaces: Any) -> None:
    folder = write(tmp_path / "one", EARLIER[:2])
    both = Conditions.of(study_row(metric=[{"name": "ece"}, {"name": "accuracy"}]))
    for trial, score in zip(
        read_warm_start([folder], both, **spaces).trials, (0.5, 0.7), strict=True
    ):
        assert trial.values() == pytest.approx((1 - score, score))
        assert trial.score == pytest.approx(1 - score)


@pytest.mark.parametrize(
    "changes",
    [
        {"data": {"task": "multiclass", "fingerprint": "other"}},
        {"model": {"name": "resnet"}},
        {"training": {"epochs": 20}},
        {"metric": {"name": "macro_f1"}},
    ],
)
def test_of_studies_found_otherwise_the_best_structures_are_only_tried(
    tmp_path: Path, spaces: Any, changes: dict[str, Any]
) -> None:
    folder = write(tmp_path / "one", EARLIER, **changes)
    warm = read_warm_start([folder, folder], HERE, **spaces)
    assert warm.trials == []
    assert [s.label() for s in warm.given] == ["focal(gamma=3)", "poly_loss(epsilon=2)"]
    assert [t["tried"] for t in warm.told] == [2, 0]  # nothing twice


def test_folders_that_cannot_be_used_say_why(tmp_path: Path, spaces: Any) -> None:
    with pytest.raises(StudyError, match=r"search.warm_start: there is no study in .*nowhere"):
        read_warm_start([str(tmp_path / "nowhere")], HERE, **spaces)
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "ledger.jsonl").write_text("")
    with pytest.raises(StudyError, match="was stopped before it began"):
        read_warm_start([str(empty)], HERE, **spaces)
    other = write(tmp_path / "other", [], data={"task": "binary", "fingerprint": "abc"})
    with pytest.raises(StudyError, match="is binary, this one is multiclass"):
        read_warm_start([other], HERE, **spaces)


def test_a_warm_search_learns_from_the_first_proposal_and_counts_its_own(
    tmp_path: Path, registry: Registry, make_proposer: Make, drive: Drive, spaces: Any
) -> None:
    """The earlier study says that lr 0.01 is best; a search with it begins there."""
    earlier: list[tuple[str, Any, float, float | None]] = [
        ("search", focal(i % 5), lr, -abs(math.log10(lr) + 2))
        for i in range(60)
        if (lr := 10 ** (-3.9 + 2.8 * i / 60))
    ]
    warm = read_warm_start([write(tmp_path / "one", earlier)], HERE, **spaces)
    assert len(warm.trials) == 60

    def run(trials: list[Trial]) -> list[Trial]:
        proposer = make_proposer(trials=24, losses=["focal"], references=False, warm=trials)
        assert proposer.left == 24
        return drive(proposer, lambda trial: None)

    def off(trials: list[Trial]) -> float:
        searched = [t for t in trials if t.role == "search"]
        return sum(abs(math.log10(t.training["lr"]) + 2) for t in searched) / len(searched)

    found = run(warm.trials)
    assert len(found) == 24 and found[0].number == 0 and found[0].role == "baseline"
    assert off(found) < 0.7 * off(run([]))


def given(registry: Registry, *documents: Any) -> Any:
    facts = {"train_size": 100, "num_classes": 3, "seed": 0}
    return read_given(documents, facts=facts, **where(registry))


def test_given_objectives_come_after_the_baselines_first(
    registry: Registry, make_proposer: Make, drive: Drive
) -> None:
    asked = given(
        registry,
        "poly_loss",
        {"terms": [{"loss": {"name": "focal", "gamma": 3}}]},
        {"terms": [{"loss": "generalized_cross_entropy"}]},  # not in the space
    )
    proposer = make_proposer(trials=30, given=asked)
    trials = drive(proposer, lambda trial: None)
    assert [t.role for t in trials[:5]] == ["baseline", "given", "given", "given", "reference"]
    assert [t.label for t in trials[1:4]] == [
        "poly_loss", "focal(gamma=3)", "generalized_cross_entropy",
    ]  # fmt: skip
    assert trials[2].params["terms.0.loss.focal.gamma"] == 3.0
    assert trials[3].params == trials[3].distributions == {}
    assert all(t.training["lr"] == pytest.approx(3e-3) for t in trials[:4])
    resumed = make_proposer(trials=30, given=asked)
    resumed.restore(trials[:3])
    assert resumed.propose().objective.label() == "generalized_cross_entropy"
    assert "given" not in [t.role for t in trials[4:]]


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ("foccal", r"search\.given\.1: there is no loss 'foccal'; did you mean 'focal'\?"),
        ({"terms": []}, r"search\.given\.1"),
        ({"term": [{"loss": "focal"}]}, "did you mean 'terms'"),
        ({"task": "binary", "terms": [{"loss": "focal"}]}, "is binary; the data is multiclass"),
        ({"terms": [{"loss": {"name": "focal", "gamma": -1}}]}, "gamma"),
        ({"terms": [{"loss": "cosface"}]}, "reads 'embeddings'"),
    ],
)
def test_a_given_objective_that_cannot_be_trained_is_refused(
    registry: Registry, document: Any, message: str
) -> None:
    with pytest.raises(StudyError, match=message):
        given(registry, "focal", document)
