"""What the parts of an objective are, and what is left without them."""

from __future__ import annotations

from typing import Any

import pytest

from lossearch.registry import current
from lossearch.spec import ObjectiveSpec
from lossearch.study.parts import joined, parts, without

CE = {"loss": {"name": "cross_entropy"}}
FOCAL = {"loss": {"name": "focal"}, "weight": 0.1}


def objective(*terms: dict[str, Any], task: str = "multiclass", **rest: Any) -> ObjectiveSpec:
    return ObjectiveSpec.parse({"task": task, "terms": list(terms), **rest})


def names(spec: ObjectiveSpec) -> list[str]:
    return [p.name for p in parts(spec, current(), {"train_size": 90})]


def left(spec: ObjectiveSpec, name: str) -> dict[str, Any]:
    return next(p for p in parts(spec, current()) if p.name == name).objective.document()


WHOLE = objective(
    {**CE, "reweighting": {"name": "class_balanced"}, "miner": {"name": "ohem"}},
    {**FOCAL, "reweighting": {"name": "none"}},
    balancer={"name": "dwa"},
    scale=3.0,
)


def test_every_term_reweighting_miner_and_balancer_is_a_part() -> None:
    assert names(WHOLE) == [
        "term 1: cross_entropy",
        "reweighting class_balanced (term 1)",
        "miner ohem (term 1)",
        "term 2: focal",
        "balancer dwa",
    ]


def test_what_is_left() -> None:
    terms = WHOLE.document()["terms"]
    both = {"task": "multiclass", "terms": terms, "balancer": {"name": "dwa"}, "scale": 3.0}
    assert left(WHOLE, "miner ohem (term 1)") == {
        **both, "terms": [{**CE, "reweighting": {"name": "class_balanced"}}, terms[1]]
    }  # fmt: skip
    del both["balancer"]
    assert left(WHOLE, "balancer dwa") == both
    # one term is left: it needs no balancer, and has nothing to be weighted against
    assert left(WHOLE, "term 2: focal") == {**both, "terms": terms[:1]}
    alone = {"loss": {"name": "focal"}, "reweighting": {"name": "none"}}
    assert left(WHOLE, "term 1: cross_entropy") == {**both, "terms": [alone]}


def test_a_lone_loss_has_no_parts() -> None:
    assert names(objective(CE)) == []
    assert names(objective({**CE, "reweighting": {"name": "none"}})) == []


@pytest.mark.parametrize(
    ("loss", "task", "found"),
    [
        ({"name": "arcface"}, "multiclass", ["margin of arcface"]),
        ({"name": "arcface", "margin": 0.0}, "multiclass", []),
        ({"name": "aldr_kl"}, "multiclass", ["margin of aldr_kl"]),
        ({"name": "ldam"}, "multiclass", ["max margin of ldam"]),
        ({"name": "ldam"}, "multilabel", ["margin scale of ldam"]),
    ],
)
def test_a_margin_that_may_be_zero_is_a_part(
    loss: dict[str, Any], task: str, found: list[str]
) -> None:
    assert names(objective({"loss": loss}, task=task)) == found


def test_without_its_margin_a_loss_keeps_the_rest() -> None:
    spec = objective({"loss": {"name": "arcface", "margin": 0.3, "scale": 16.0}})
    assert left(spec, "margin of arcface")["terms"] == [
        {"loss": {"name": "arcface", "margin": 0.0, "scale": 16.0}}
    ]


def test_several_parts_leave_what_no_one_of_them_is() -> None:
    found = {p.name: p for p in parts(WHOLE, current())}
    joint = joined(WHOLE, [found["miner ohem (term 1)"], found["balancer dwa"]])
    assert joint.name == "miner ohem (term 1) and balancer dwa"
    assert joint.objective.label() == "cross_entropy · class_balanced + 0.1 × focal"
    # both terms cannot go, and the balancer goes with the first
    order = ["term 2: focal", "term 1: cross_entropy", "balancer dwa"]
    assert joined(WHOLE, [found[name] for name in order]) == found[order[0]]
    assert without(WHOLE, ("terms.0", "terms.1")) is None
