"""Studies on soft labels, and on data of which a metric has no value."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import lossearch
from lossearch.errors import InfeasibleError
from tests.study.test_api import QUICK, Points, rows


def test_a_study_on_soft_labels(points: Points) -> None:
    inputs, targets = points
    shares = 0.7 * np.eye(3)[targets] + 0.3 * np.random.default_rng(0).dirichlet([1] * 3, 150)
    losses = ["cross_entropy", "symmetric_cross_entropy", "focal"]
    term = {"loss": {"choice": losses}, "reweighting": {"choice": ["class_balanced", None]}}
    found = lossearch.search(inputs, shares, **{**QUICK, "space": {"terms": [term]}})
    state = rows(found.folder)
    assert state["data"]["task"] == "multiclass"
    assert not any("focal" in t.label for t in found.trials)
    assert {t.status for t in found.trials} <= {"finished", "rejected"}
    assert not any(t.reason == "raises" for t in found.trials)
    assert found.verdict is not None and found.verdict["baseline"]["mean"] > 0.45  # of three


def test_a_metric_without_a_value_is_refused_before_the_search(points: Points) -> None:
    inputs, targets = points
    two = (targets == 0).astype(int)
    test: Any = (inputs[50:70], two[50:70])  # all of class 0
    message = "auroc can have no value on the test data, where all 20 samples are of one class"
    with pytest.raises(InfeasibleError, match=message):
        lossearch.search((inputs, two), test=test, metric="auroc", **QUICK)


NAN = """
import lossearch

@lossearch.metric(task="multiclass")
def sometimes(logits, targets):
    "No value where anything is scored."
    return float("nan")

@lossearch.hookimpl
def register_metrics():
    return [sometimes]
"""


def test_a_metric_that_is_nan_is_a_reason(points: Points, tmp_path: Any) -> None:
    (tmp_path / "nan.py").write_text(NAN)
    given = {**QUICK, "metric": "sometimes", "plugins": [str(tmp_path / "nan.py")]}
    found = lossearch.search(*points, **given)
    trained = [t for t in found.trials if t.status == "failed"]
    assert trained and not any(t.status == "finished" for t in found.trials)
    for trial in trained:
        assert trial.reason == "infeasible"
        assert "metric sometimes, by which trials are compared, is nan" in trial.detail
