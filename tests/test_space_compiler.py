"""A space's document compiles to legal domains, and says what left it and why."""

from __future__ import annotations

from typing import Any

import optuna
import pytest

from lossearch.errors import LossearchError, SpecError, UnknownNameError
from lossearch.registry import Registry
from lossearch.space import Between, OneOf, Slot, Space, Value
from tests.toys import toy_registry

FIELDS = frozenset({"logits", "targets", "embeddings", "class_counts"})
EVERYTHING = """
terms:
  - loss: {choice: "*"}
    reweighting: {choice: [null, toy_by_loss, toy_by_class]}
    miner: {choice: [null, toy_below, toy_ends]}
  - loss: {choice: "*"}
    weight: {low: 0.01, high: 2, log: true}
    optional: true
balancer: {choice: "*"}
"""


def compile_(
    document: dict[str, Any] | str, task: str = "multiclass", fields: frozenset[str] = FIELDS
) -> Space:
    return Space.from_document(document, registry=toy_registry(), task=task, available=fields)


def one(loss: Any, **rest: Any) -> Space:
    return compile_({"terms": [{"loss": loss, **rest}]})


def domain(space: Space, parameter: str) -> Any:
    return space.terms[0].loss.parts[0].params[parameter]


# Domains --------------------------------------------------------------------------------------


def test_a_name_alone_runs_over_its_own_ranges() -> None:
    part = one("toy_power").terms[0].loss.parts[0]
    assert part.params == {
        "exponent": Between(1.0, 4.0, default=2.0),
        "rounds": Between(1, 8, log=True, integer=True, default=1),
        "mode": OneOf((Value("sum"), Value("mean")), default="sum"),
    }, "scale has no mark and is not searched"


def test_a_space_may_narrow_fix_and_widen() -> None:
    space = one(
        {
            "name": "toy_power",
            "exponent": {"low": 1, "high": 9},
            "rounds": 3,
            "scale": {"choice": [1, 2]},
        }
    )
    assert domain(space, "exponent") == Between(1.0, 9.0, default=2.0)
    assert domain(space, "rounds") == Value(3)
    assert domain(space, "scale") == OneOf((Value(1), Value(2)), default=1.0)
    assert isinstance(domain(space, "mode"), OneOf), "what is not named keeps its own range"


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"low": 0.5, "high": 2}, r"toy_power: exponent = 0\.5 is not allowed: .*greater than or"),
        ({"low": 1, "high": float("inf")}, r"exponent: a range is .*, both finite"),
        ({"choice": [2, 0]}, "exponent = 0 is not allowed"),
        ({"choice": [2, {"low": 0, "high": 2}]}, r"exponent = 0\.0 is not allowed"),
        (0.5, r"exponent = 0\.5 is not allowed"),
        ("steep", "exponent = 'steep' is not allowed"),
        ({"low": 3, "high": 2}, r"terms\.0\.loss\.toy_power\.exponent: a range needs low < high"),
        ({"low": 0, "high": 2, "log": True}, "a range needs 0 < low < high, not low 0.0 and high"),
        ({"low": 1}, r"exponent: a range is \{low: number, high: number\}"),
        ({"low": 1, "high": "x"}, r"a range is \{low: number, high: number\}"),
        ({"low": 1, "high": 2, "lgo": True}, "exponent has an unknown key 'lgo'; did you mean"),
        ({"choice": []}, r"exponent\.choice must be a list of values"),
        ({"choice": 3}, r"exponent\.choice must be a list of values"),
    ],
)
def test_a_domain_outside_the_legal_values(value: Any, message: str) -> None:
    with pytest.raises(LossearchError, match=message):
        one({"name": "toy_power", "exponent": value})


def test_a_range_of_whole_numbers() -> None:
    space = one({"name": "toy_power", "rounds": {"low": 2, "high": 4.0}})
    assert domain(space, "rounds") == Between(2, 4, integer=True, default=1)
    with pytest.raises(SpecError, match=r"rounds: low and high are whole numbers, not 0\.5, 4"):
        one({"name": "toy_power", "rounds": {"low": 0.5, "high": 4}})
    with pytest.raises(LossearchError, match=r"rounds = 2\.5 is not allowed"):
        one({"name": "toy_power", "rounds": 2.5})


@pytest.mark.parametrize(
    "weight", [0, -1, "heavy", True, {"low": 0, "high": 1}, {"choice": [1, -1]}]
)
def test_a_weight_is_above_zero(weight: Any) -> None:
    with pytest.raises(SpecError, match=r"terms\.0\.weight = .* is not allowed: .* above 0"):
        one("toy_ce", weight=weight)


# The document ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ("", "space is empty"),
        ("[1]", "space must be a mapping"),
        ({}, "a space needs 'terms'"),
        ({"terms": []}, "a space needs 'terms'"),
        ({"terms": {"loss": "toy_ce"}}, "a space needs 'terms', a list"),
        ({"terms": ["toy_ce"]}, r"terms\.0 must be a mapping with 'loss'"),
        ({"terms": [{}]}, r"terms\.0 has no 'loss'"),
        ({"term": []}, r"space has an unknown key 'term'; did you mean 'terms'\?"),
        ({"terms": [{"los": "toy_ce"}]}, r"terms\.0 has an unknown key 'los'; did you mean 'lo"),
        ({"terms": [{"loss": 3}]}, r"terms\.0\.loss: a component is a name, or a mapping"),
        ({"terms": [{"loss": {"gamma": 3}}]}, r"terms\.0\.loss: a component is a name, or a map"),
        ({"terms": [{"loss": {"choice": []}}]}, r"terms\.0\.loss\.choice must be a list"),
        ({"terms": [{"loss": {"choice": "all"}}]}, r"loss\.choice must be a list of .*\"\*\""),
        (
            {"terms": [{"loss": {"choice": ["toy_ce", "toy_ce"]}}]},
            r"terms\.0\.loss lists 'toy_ce' twice",
        ),
        (
            {"terms": [{"loss": {"name": "toy_ce", "smoothin": 0.1}}]},
            r"no parameter of toy_ce 'smoothin'; did you mean 'smoothing'\?",
        ),
        ({"terms": [{"loss": "toy_ce", "optional": True}]}, "first term cannot be optional"),
        (
            {"task": "binary", "terms": [{"loss": "toy_power"}]},
            "this space is for binary; the data is multiclass",
        ),
    ],
)
def test_a_document_that_is_no_space(document: Any, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        compile_(document)


def test_an_unknown_component_names_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match=r"no loss 'toy_cee'; did you mean 'toy_ce'\?"):
        one("toy_cee")
    with pytest.raises(UnknownNameError, match="'toy_below' is a miner, and a reweighting is"):
        one("toy_ce", reweighting="toy_below")


def test_a_space_may_be_for_several_tasks() -> None:
    document = {"task": ["binary", "multiclass"], "terms": [{"loss": "toy_power"}]}
    assert compile_(document, "binary").task == "binary"
    with pytest.raises(SpecError, match="for binary or multiclass; the data is multilabel"):
        compile_(document, "multilabel")


# What leaves ----------------------------------------------------------------------------------


def test_what_does_not_fit_leaves_with_a_reason() -> None:
    space = compile_(EVERYTHING, "binary", frozenset({"logits", "targets"}))
    reasons = {x.what: x.why for x in space.left_out}
    assert reasons["loss toy_ce"] == "serves multiclass, not binary"
    assert reasons["reweighting toy_by_class"] == "serves multiclass, not binary"
    assert reasons["loss toy_distil"] == (
        "reads 'teacher_logits' (a frozen teacher's logits), which nothing here provides"
    )
    assert {p.component.name for p in space.terms[0].loss.parts} == {
        "toy_batch", "toy_either", "toy_learned", "toy_power", "toy_running",
    }  # fmt: skip
    assert len(space.terms) == 1, "nothing remains of the optional term, so it is gone"


def test_nothing_remains() -> None:
    with pytest.raises(SpecError, match=r"nothing remains for terms\.0\.loss:\n  loss toy_ce: "):
        compile_({"terms": [{"loss": "toy_ce"}]}, "binary")
    with pytest.raises(SpecError, match=r"nothing remains for terms\.1\.loss"):
        compile_({"terms": [{"loss": "toy_ce"}, {"loss": "toy_distil"}]})


def test_all_means_the_primary_losses_first_and_the_auxiliary_ones_after() -> None:
    space = compile_(EVERYTHING)
    primary, auxiliary = ({p.component.name for p in t.loss.parts} for t in space.terms)
    assert {"toy_ce", "toy_power", "toy_batch", "toy_pairs", "toy_running"} <= primary
    assert auxiliary == {"toy_norm"}
    assert isinstance(space.balancer, Slot) and len(space.balancer.parts) == 5


def test_all_of_a_kind_that_nothing_has() -> None:
    registry = Registry()
    registry.add(toy_registry().get("toy_ce"), "toys")
    space = Space.from_document(
        {"terms": [{"loss": "toy_ce", "miner": {"choice": "*"}}]},
        registry=registry, task="multiclass", available=FIELDS,
    )  # fmt: skip
    assert space.suggest(optuna.trial.FixedTrial({"terms.0.loss.toy_ce.smoothing": 0.1}))
