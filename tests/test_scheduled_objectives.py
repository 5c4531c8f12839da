"""Schedules in objectives and in search spaces."""

from __future__ import annotations

from typing import Any

import optuna
import pytest
import torch
import torch.nn.functional as F

from lossearch import Objective
from lossearch.errors import FieldError, SpecError
from lossearch.plugins import load_plugins
from lossearch.registry import Registry
from lossearch.space import Space
from lossearch.spec import ObjectiveSpec

FIELDS = frozenset({"logits", "targets", "class_counts", "embeddings", "step", "total_steps"})
WARM = {"schedule": "linear", "start": 0.0, "end": 0.5, "until": 0.5}
LATE = {"schedule": "deferred", "start": 0.0, "end": 0.99, "at": 0.5}


@pytest.fixture(scope="module")
def registry() -> Registry:
    return load_plugins().registry


def batch(step: int, total: int = 10) -> dict[str, Any]:
    draw = torch.Generator().manual_seed(0)
    return {
        "logits": torch.randn(8, 3, generator=draw),
        "embeddings": torch.randn(8, 4, generator=draw),
        "targets": torch.tensor([0, 0, 0, 0, 0, 1, 1, 2]),
        "class_counts": torch.tensor([100, 10, 1]),
        "step": step,
        "total_steps": total,
    }


def build(registry: Registry, *terms: Any, balancer: Any = None) -> Objective:
    document: dict[str, Any] = {"task": "multiclass", "terms": list(terms)}
    if balancer:
        document["balancer"] = balancer
    return Objective.from_spec(document, registry=registry)


def test_deferred_reweighting_is_plain_and_then_weighted(registry: Registry) -> None:
    term = {"loss": "cross_entropy", "reweighting": {"name": "class_balanced", "beta": LATE}}
    late = build(registry, term)
    plain = build(registry, {"loss": "cross_entropy"})
    beta = {"name": "class_balanced", "beta": 0.99}
    weighted = build(registry, {"loss": "cross_entropy", "reweighting": beta})
    for step in range(10):
        expected = plain if step < 5 else weighted
        torch.testing.assert_close(late(batch(step)), expected(batch(step)))
    assert not torch.isclose(late(batch(4)), late(batch(5)))


def test_a_weight_that_warms_up(registry: Registry) -> None:
    both = build(
        registry, {"loss": "cross_entropy"}, {"loss": "orthogonal_projection", "weight": WARM}
    )
    one, other = (
        build(registry, {"loss": name}) for name in ("cross_entropy", "orthogonal_projection")
    )
    for step, weight in ((0, 0.0), (1, 0.1), (4, 0.4), (5, 0.5), (9, 0.5)):
        found = both(batch(step))
        torch.testing.assert_close(found, one(batch(step)) + weight * other(batch(step)))
    assert {"step", "total_steps"} <= both.reads


def test_the_clock_is_asked_for_by_name(registry: Registry) -> None:
    focal = {"name": "focal", "gamma": {"schedule": "linear", "start": 0, "end": 2}}
    objective = build(registry, {"loss": focal})
    fields = batch(0)
    del fields["step"]
    with pytest.raises(FieldError, match="focal reads 'step' for its schedule"):
        objective(fields)
    known = Objective.from_spec(objective.spec, registry=registry, total_steps=10)
    assert "total_steps" not in known.reads and "step" in known.reads


def test_members_of_an_ensemble_follow_their_schedules(registry: Registry) -> None:
    anneal = {"schedule": "linear", "start": 4.0, "end": 0.0}
    members = ["cross_entropy", {"name": "focal", "gamma": anneal}]
    loss = {"name": "loss_ensemble", "members": members, "mode": "mean"}
    objective = build(registry, {"loss": loss})
    assert "step" in objective.reads
    fields = batch(5)
    plain = F.cross_entropy(fields["logits"], fields["targets"])
    focal = build(registry, {"loss": {"name": "focal", "gamma": 2.0}})(fields)
    torch.testing.assert_close(objective(fields), (plain + focal) / 2)


def test_documents_round_trip_with_a_label_and_one_key(registry: Registry) -> None:
    document = {
        "task": "multiclass",
        "terms": [
            {"loss": {"name": "focal", "gamma": {"schedule": "cosine", "start": 0, "end": 2}}},
            {"loss": "orthogonal_projection", "weight": WARM},
        ],
    }
    spec = ObjectiveSpec.parse(document)
    again = ObjectiveSpec.parse(spec.document())
    assert again == spec and again.key == spec.key
    assert spec.label() == "focal(gamma=0→2 cosine) + 0→0.5 linear × orthogonal_projection"
    assert spec.flat()["terms.0.loss.gamma.end"] == 2


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        ({"schedule": "linear", "start": 0, "end": 0}, "does nothing"),
        ({"schedule": "linear", "start": 0, "end": -1}, "greater than or equal to 0"),
        (0, "greater than 0"),
        ("much", "a number"),
    ],
)
def test_weights_that_are_not_allowed(weight: Any, message: str) -> None:
    term = {"loss": "cross_entropy", "weight": weight}
    with pytest.raises(SpecError, match=message):
        ObjectiveSpec.parse({"task": "multiclass", "terms": [term]})


def test_a_balancer_with_the_weights_as_its_own_refuses_a_schedule(registry: Registry) -> None:
    terms = [{"loss": "cross_entropy"}, {"loss": "orthogonal_projection", "weight": WARM}]
    inside = [
        c.name for c in registry.list("balancer") if "term_weights" in c.signature.facts.values()
    ]
    assert inside
    for name in inside:
        with pytest.raises(SpecError, match=f"{name} takes the terms' weights as its own"):
            build(registry, *terms, balancer=name)


# --- spaces --------------------------------------------------------------------------------------

SPACE = """
terms:
  - loss:
      choice:
        - {name: focal, gamma: {schedule: {choice: [constant, linear, cosine, deferred]}}}
        - name: poly_loss
          epsilon: {schedule: step, values: [{low: 0, high: 1}, 2.0], at: [{low: 0.3, high: 0.7}]}
    reweighting: {name: class_balanced, beta: {schedule: deferred, start: 0, end: 0.9999}}
  - loss: orthogonal_projection
    weight: {schedule: linear, start: 0, end: {low: 0.1, high: 1}, until: {low: 0.2, high: 1}}
"""


def compiled(registry: Registry, text: str = SPACE) -> Space:
    return Space.from_document(text, registry=registry, task="multiclass", available=FIELDS)


def test_spaces_search_form_and_values_and_find_them_again(registry: Registry) -> None:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    space = compiled(registry)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    forms: set[str] = set()
    for _ in range(60):
        trial = study.ask()
        spec = space.suggest(trial)
        build_it = Objective(spec, registry)
        assert torch.isfinite(build_it(batch(3)))
        loss = spec.terms[0].loss
        if loss.name == "focal":
            gamma = loss.params.get("gamma", 2.0)
            forms.add(gamma["schedule"] if isinstance(gamma, dict) else "constant")
            if isinstance(gamma, dict) and gamma["schedule"] == "deferred":
                assert 0.3 <= gamma["at"] <= 0.95
        else:
            epsilon = loss.params["epsilon"]
            assert epsilon["values"][1] == 2.0 and 0.3 <= epsilon["at"][0] <= 0.7
        assert spec.terms[1].weight.corners[0] == 0
        assert space.locate(spec) == trial.params
    assert forms == {"constant", "linear", "cosine", "deferred"}
    rows = dict(space.describe())
    assert "constant or linear or cosine or deferred" in rows["terms.0.loss.focal.gamma"]


def test_the_first_form_is_the_reference(registry: Registry) -> None:
    first = next(iter(compiled(registry).references()))[0]
    assert first.terms[0].loss.params == {}  # gamma constant, at its default


@pytest.mark.parametrize(
    ("gamma", "message"),
    [
        ("{schedule: linaer}", "did you mean 'linear'"),
        ("{schedule: linear, at: 0.5}", "unknown key 'at'"),
        ("{schedule: linear, begin: {low: 0, high: 0.6}, until: 0.5}", "may not overlap"),
        ("{schedule: deferred, at: {low: 0.5, high: 2}}", "share of training"),
        ("{schedule: {choice: [step, linear]}, values: [1, 2], at: [0.5]}", "stands alone"),
        ("{schedule: step, values: [1, 2], at: [0.3, 0.6]}", "need 3 values"),
        ("{choice: [1, {schedule: linear}]}", "Choose among forms"),
        ("{schedule: linear, start: -3}", "greater than or equal to 0"),
    ],
)
def test_spaces_that_are_not_legal_say_why(registry: Registry, gamma: str, message: str) -> None:
    from lossearch.errors import LossearchError

    text = f"terms: [{{loss: {{name: focal, gamma: {gamma}}}}}]"
    with pytest.raises(LossearchError, match=message):
        compiled(registry, text)


def test_what_has_no_range_of_its_own_needs_its_ends(registry: Registry) -> None:
    text = "terms: [{loss: cross_entropy, weight: {schedule: linear, start: 1}}]"
    with pytest.raises(SpecError, match="needs 'end'"):
        compiled(registry, text)
