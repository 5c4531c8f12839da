"""Flat parameters, tags and points derived from a ledger."""

from __future__ import annotations

import pytest

from lossearch.tracking.records import collect, components, curve_points, flatten, study_id
from lossearch.trials.ledger import State, apply


def test_nested_data_becomes_dotted_keys():
    data = {"terms": [{"loss": {"name": "focal", "gamma": 2.0}}], "widths": [8, 4], "none": None}
    assert flatten(data) == {
        "terms.0.loss.name": "focal",
        "terms.0.loss.gamma": "2.0",
        "widths": "[8, 4]",
    }


def test_a_key_keeps_only_characters_that_trackers_allow():
    assert flatten({"a=b": {"c\n(d)": 1}}) == {"a_b.c__d_": "1"}


def test_components_are_grouped_by_kind_in_order():
    objective = {
        "terms": [
            {"loss": {"name": "focal"}, "reweighting": {"name": "class_balanced"}},
            {"loss": {"name": "dice"}, "weight": 0.5},
        ],
        "balancer": {"name": "dwa"},
    }
    assert components(objective) == {
        "loss": ["focal", "dice"],
        "reweighting": ["class_balanced"],
        "balancer": ["dwa"],
    }


def test_values_that_are_not_finite_numbers_have_no_point():
    curve = [{"epoch": 1, "train_loss": None, "f1": 0.5}, {"epoch": 2, "f1": float("inf")}]
    assert list(curve_points(curve)) == [("f1", 0.5, 1)]


def test_two_studies_of_one_name_have_different_ids():
    row = {"event": "study", "name": "a", "time": 1.0}
    assert study_id(row) == study_id(dict(row)) != study_id({**row, "time": 1.001})


@pytest.mark.parametrize("maximize", [True, False])
def test_the_best_score_so_far_never_gets_worse(study_rows, maximize):
    state, updates = State(), {}
    for row in study_rows():
        apply(state, row | {"maximize": maximize} if row["event"] == "study" else row)
        collect(state, row, updates)
    best = [(step, v) for (n, v, step), _ in updates["study"].metrics if n == "best_score"]
    values = [v for _, v in best]
    assert best == sorted(best)
    assert values == sorted(values, reverse=not maximize)
    scores = [t.score for t in state.finished()]
    assert values[-1] == (max(scores) if maximize else min(scores))


def test_a_score_that_a_rung_gave_is_not_given_twice(study_rows):
    state, updates = State(), {}
    for row in study_rows(trials=1):
        apply(state, row)
        collect(state, row, updates)
    steps = [step for (n, _, step), _ in updates["trial 0"].metrics if n == "score"]
    assert steps == [2, 4, 6, 8]


def test_an_ablation_is_a_run_of_its_own_beside_the_confirmation(study_rows):
    rows = study_rows(trials=8)
    confirmed = next(r for r in rows if r["event"] == "confirmed")
    less = {"task": "multiclass", "terms": [{"loss": {"name": "dice"}}]}
    row = {**confirmed, "event": "ablated", "part": "miner ohem", "objective": less, "reason": ""}
    state, updates = State(), {}
    for each in [*rows[: rows.index(confirmed) + 1], row]:
        apply(state, each)
        collect(state, each, updates)
    name = f"trial {row['trial']} seed {row['seed']}"
    whole, ablation = updates[name], updates[f"{name} without miner ohem"]
    assert whole.tags["lossearch.kind"] == "confirmation" and "dice" not in str(whole.params)
    assert "lossearch.without" not in whole.tags
    assert ablation.tags["lossearch.kind"] == ablation.tags["lossearch.role"] == "ablation"
    assert ablation.tags["lossearch.without"] == "miner ohem"
    assert ablation.tags["lossearch.loss"] == "dice" and ablation.objective == less
    assert ablation.params["terms.0.loss.name"] == "dice" and ablation.status == "FINISHED"
    assert "without miner ohem, seed" in ablation.name
    assert ablation.metrics == whole.metrics
    # the trial's own run stays as it was
    assert updates[f"trial {row['trial']}"].tags["lossearch.kind"] == "trial"


def test_a_confirmation_that_failed_is_a_failed_run(study_rows):
    state, updates = State(), {}
    for row in study_rows(trials=8):
        if row["event"] == "confirmed":
            row |= {"validation": None, "test": {}, "curve": [], "reason": "diverged"}
        apply(state, row)
        collect(state, row, updates)
    failed = [u for key, u in updates.items() if "seed" in key]
    assert {u.status for u in failed} == {"FAILED"}
    assert {u.tags["lossearch.reason"] for u in failed} == {"diverged"}
