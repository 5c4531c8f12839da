"""``lossearch.compare``: given objectives on the same seeds, without a search."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import lossearch
from lossearch.errors import InfeasibleError, SpecError, StudyError
from lossearch.study import read_study
from lossearch.study.setup import set_up
from lossearch.training import Job, Unit, Workbench

Points = tuple[np.ndarray, np.ndarray]
QUICK: dict[str, Any] = {
    "epochs": 2,
    "seeds": 2,
    "executor": "local",
    "training": {"batch_size": 32, "device": "cpu", "lr": 0.02},
    "progress": False,
}
NAN_LOSS = """
import lossearch

@lossearch.loss(task="multiclass")
def not_finite(logits, targets):
    return logits.sum(1) * float("nan")

@lossearch.hookimpl
def register_losses():
    return [not_finite]
"""


def test_a_row_for_each_objective_and_seed(points: Points) -> None:
    given = ["cross_entropy", {"name": "focal", "gamma": 1.0}]
    rows = lossearch.compare(points, objectives=given, metric="macro_f1", metrics=["nll"], **QUICK)
    labels = ["cross_entropy", "focal(gamma=1)"]
    assert [r.objective for r in rows] == [label for label in labels for _ in range(2)]
    seeds = [r.seed for r in rows]
    assert seeds[0] != seeds[1] and seeds[:2] == seeds[2:]
    for row in rows:
        assert row.lr == 0.02 and not row.problem
        assert row.validation is not None and 0 < row.validation <= 1
        assert set(row.test) == {"macro_f1", "nll"}
    assert rows[0].test["nll"] != rows[1].test["nll"] != rows[3].test["nll"]
    assert rows == lossearch.compare(
        points, objectives=given, metric="macro_f1", metrics=["nll"], **QUICK
    )


def test_a_row_is_what_a_training_alone_gives(
    write_study: Callable[..., Path], tmp_path: Path
) -> None:
    study = write_study(training__lr=0.02)
    given = ["focal", "cross_entropy"]
    row = lossearch.compare(study, objectives=given, seeds=1, progress=False)[0]
    setup = set_up(read_study(study))
    objective = {"task": "multiclass", "terms": [{"loss": {"name": "focal"}}]}
    spec = lossearch.ObjectiveSpec.parse(objective)
    factor = Workbench(setup.recipe(tmp_path), setup.registry).look([spec])[0].factor
    assert factor != 1.0
    values = {"lr": 0.02, "weight_decay": 0.01}
    job = Job(0, {**objective, "scale": factor}, values, row.seed, 3, test=True)
    alone = Workbench(setup.recipe(tmp_path), setup.registry).run(Unit(0, (job,))).jobs[0]
    assert row.validation == alone.score
    assert row.test == pytest.approx(alone.test, rel=1e-4)


def test_objectives_in_any_form(points: Points) -> None:
    term = {"loss": {"name": "focal", "gamma": 1.0}}
    whole = {"task": "multiclass", "terms": [term]}
    forms = {
        "a loss": {"name": "focal", "gamma": 1.0},
        "a term": term,
        "an objective": whole,
        "a spec": lossearch.ObjectiveSpec.parse(whole),
        "a scaled one": {**whole, "scale": 7.0},
        "with its training": {"objective": whole, "training": {"lr": 0.02}, "trial": 3},
    }
    rows = lossearch.compare(points, objectives=forms, **QUICK)
    assert list(dict.fromkeys(r.objective for r in rows)) == list(forms)
    assert len({(r.seed, r.validation, r.test["accuracy"]) for r in rows}) == 2  # one a seed


def test_a_range_of_learning_rates_is_tried(points: Points) -> None:
    lr = {"low": 1e-9, "high": 0.1, "log": True}
    quick = {**QUICK, "training": {"batch_size": 32, "device": "cpu", "lr": lr}}
    objective = {"terms": [{"loss": "focal"}]}
    rows = lossearch.compare(
        points,
        objectives={
            "tuned": "cross_entropy",
            "its own": {"objective": objective, "training": {"lr": 1e-8}},
        },
        **quick,
    )
    assert [r.lr for r in rows] == [pytest.approx(0.1)] * 2 + [1e-8] * 2
    assert min(r.validation or 0 for r in rows[:2]) > max(r.validation or 0 for r in rows[2:])


def test_what_fails_says_why(points: Points, tmp_path: Path) -> None:
    plugin = tmp_path / "not_finite.py"
    plugin.write_text(NAN_LOSS)
    given = ["not_finite", "cross_entropy"]
    rows = lossearch.compare(points, objectives=given, plugins=(plugin,), **QUICK)
    assert [(r.validation, r.test) for r in rows[:2]] == [(None, {})] * 2
    assert all("diverged: the training loss is nan" in r.problem for r in rows[:2])
    assert not any(r.problem for r in rows[2:])


def test_heads_of_a_frozen_module_of_ones_own(points: Points) -> None:
    module = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))
    module[0].requires_grad_(False)
    before = [p.detach().clone() for p in module.parameters()]
    rows = lossearch.compare(points, objectives=["cross_entropy"], model=module, **QUICK)
    assert all(not r.problem for r in rows)
    assert all(torch.equal(a, b) for a, b in zip(before, module.parameters(), strict=True))


@pytest.mark.parametrize(
    ("objectives", "error", "message"),
    [
        ([], StudyError, "give one at least"),
        (["focal", {"name": "focal"}], StudyError, "two objectives are called 'focal'"),
        (["focall"], InfeasibleError, r"objectives\.0: .*did you mean 'focal'"),
        ({"mine": "asymmetric"}, InfeasibleError, "objective 'mine': .*not multiclass"),
        ([{"task": "binary", "terms": [{"loss": "focal"}]}], InfeasibleError, "is binary; the"),
        ([{"term": []}], SpecError, r"objectives\.0: unknown key 'term'; did you mean 'terms'"),
        (
            [{"objective": {"terms": [{"loss": "focal"}]}, "training": {"Lr": 1.0}}],
            StudyError,
            "no training value 'Lr'",
        ),
    ],
)
def test_what_is_refused(
    points: Points, objectives: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        lossearch.compare(points, objectives=objectives, **QUICK)


def test_settings_that_a_comparison_cannot_have(points: Points) -> None:
    with pytest.raises(StudyError, match="seeds = 0 is not allowed"):
        lossearch.compare(points, objectives=["focal"], **{**QUICK, "seeds": 0})
    with pytest.raises(StudyError, match="finetune is the second stage of a search"):
        lossearch.compare(points, objectives=["focal"], finetune={"epochs": 1}, **QUICK)
