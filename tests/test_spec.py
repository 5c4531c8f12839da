"""An objective as data: round trips, a stable key, a label, and what is refused."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest
from pydantic import ValidationError

from lossearch.documents import dump_yaml, parse_yaml
from lossearch.errors import SpecError
from lossearch.feasibility import objective_problems
from lossearch.spec import ComponentSpec, ObjectiveSpec
from tests.toys import toy_registry

DOCUMENT: dict[str, Any] = {
    "task": "multiclass",
    "terms": [
        {
            "loss": {"name": "poly_loss", "epsilon": 2.5},
            "reweighting": {"name": "class_balanced", "beta": 0.999},
        },
        {"loss": {"name": "orthogonal_projection", "gamma": 0.5}, "weight": 0.1},
    ],
    "balancer": {"name": "encodec_balancer", "decay": 0.99},
}
SHORT: dict[str, Any] = {"task": "binary", "terms": [{"loss": "focal"}]}


# Round trips ----------------------------------------------------------------------------------


@pytest.mark.parametrize("document", [DOCUMENT, SHORT])
def test_it_round_trips_through_yaml(document: dict[str, Any]) -> None:
    spec = ObjectiveSpec.parse(document)
    again = ObjectiveSpec.parse(parse_yaml(dump_yaml(spec.document()), "here"))
    assert again == spec
    assert again.key == spec.key
    assert again.document() == spec.document()


def test_the_document_says_only_what_differs() -> None:
    assert ObjectiveSpec.parse(DOCUMENT).document() == DOCUMENT
    explicit = {
        **SHORT,
        "terms": [{"loss": {"name": "focal"}, "weight": 1, "miner": None, "reweighting": None}],
        "balancer": None,
    }
    short = {"task": "binary", "terms": [{"loss": {"name": "focal"}}]}
    assert ObjectiveSpec.parse(explicit).document() == short
    assert ObjectiveSpec.parse(explicit).key == ObjectiveSpec.parse(SHORT).key


def test_a_name_stands_for_a_component() -> None:
    assert ComponentSpec.model_validate("focal") == ComponentSpec(name="focal")
    assert ObjectiveSpec.parse(SHORT).terms[0].loss.params == {}


def test_it_round_trips_through_json() -> None:
    spec = ObjectiveSpec.parse(DOCUMENT)
    assert ObjectiveSpec.model_validate_json(spec.model_dump_json()) == spec


def test_it_is_frozen() -> None:
    spec = ObjectiveSpec.parse(DOCUMENT)
    with pytest.raises(ValidationError, match="frozen"):
        spec.task = "binary"
    with pytest.raises(ValidationError, match="frozen"):
        spec.terms[0].loss.epsilon = 3  # type: ignore[attr-defined]


# The key --------------------------------------------------------------------------------------


def test_the_key_is_the_same_on_any_machine() -> None:
    code = (
        "from lossearch.spec import ObjectiveSpec; import sys, ast;"
        "print(ObjectiveSpec.parse(ast.literal_eval(sys.argv[1])).key)"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, repr(DOCUMENT)],
        capture_output=True, text=True, check=True, env={**os.environ, "PYTHONHASHSEED": "7"},
    )  # fmt: skip
    assert run.stdout.strip() == ObjectiveSpec.parse(DOCUMENT).key
    # a key is in ledgers that exist: it must not change from version to version
    assert ObjectiveSpec.parse(SHORT).key == "8924cf800b4e"


def test_the_key_does_not_depend_on_order_or_on_how_a_number_is_written() -> None:
    def key(loss: dict[str, Any]) -> str:
        return ObjectiveSpec.parse({"task": "binary", "terms": [{"loss": loss}]}).key

    first = key({"name": "focal", "gamma": 2, "alpha": 0.25})
    assert first == key({"alpha": 0.25, "name": "focal", "gamma": 2.0})
    assert first != key({"name": "focal", "gamma": 2.5, "alpha": 0.25})
    assert key({"name": "focal", "flag": True}) != key({"name": "focal", "flag": 1})
    backwards = dict(reversed(DOCUMENT.items()))
    assert ObjectiveSpec.parse(backwards).key == ObjectiveSpec.parse(DOCUMENT).key


@pytest.mark.parametrize(
    "change",
    [
        {"task": "binary"},
        {"balancer": None},
        {"terms": DOCUMENT["terms"][:1]},
        {"terms": DOCUMENT["terms"][::-1]},
    ],
)
def test_another_objective_has_another_key(change: dict[str, Any]) -> None:
    other = ObjectiveSpec.parse({**DOCUMENT, **change})
    assert other.key != ObjectiveSpec.parse(DOCUMENT).key


# For people -----------------------------------------------------------------------------------


def test_labels() -> None:
    assert ObjectiveSpec.parse(SHORT).label() == "focal"
    assert ObjectiveSpec.parse(DOCUMENT).label() == (
        "poly_loss(epsilon=2.5) · class_balanced(beta=0.999) + "
        "0.1 × orthogonal_projection(gamma=0.5) | encodec_balancer(decay=0.99)"
    )


def test_a_label_shortens_numbers_and_shows_members() -> None:
    members = ["focal", {"name": "poly_loss", "epsilon": 1.23456}]
    loss = {"name": "loss_ensemble", "members": members, "weights": [0.123456, 1]}
    spec = ObjectiveSpec.parse({"task": "binary", "terms": [{"loss": loss}]})
    assert spec.label() == (
        "loss_ensemble(members=[focal, poly_loss(epsilon=1.23)], weights=[0.123, 1])"
    )


def test_doing_nothing_is_not_in_the_label() -> None:
    term = {"loss": "focal", "reweighting": "none"}
    assert ObjectiveSpec.parse({"task": "binary", "terms": [term]}).label() == "focal"


def test_the_structure_is_the_names_alone() -> None:
    spec = ObjectiveSpec.parse(DOCUMENT)
    assert spec.structure == (
        "terms.0.loss=poly_loss + terms.0.reweighting=class_balanced + "
        "terms.1.loss=orthogonal_projection + balancer=encodec_balancer"
    )
    other = ObjectiveSpec.parse({**DOCUMENT, "balancer": {"name": "encodec_balancer"}})
    assert other.structure == spec.structure and other.key != spec.key


def test_flat_parameters() -> None:
    assert ObjectiveSpec.parse(DOCUMENT).flat() == {
        "task": "multiclass",
        "terms.0.loss.name": "poly_loss",
        "terms.0.loss.epsilon": 2.5,
        "terms.0.reweighting.name": "class_balanced",
        "terms.0.reweighting.beta": 0.999,
        "terms.1.loss.name": "orthogonal_projection",
        "terms.1.loss.gamma": 0.5,
        "terms.1.weight": 0.1,
        "balancer.name": "encodec_balancer",
        "balancer.decay": 0.99,
    }
    loss = {"name": "e", "members": [{"name": "focal"}, {"name": "p", "x": 1}], "weights": [1, 2]}
    flat = ObjectiveSpec.parse({"task": "binary", "terms": [{"loss": loss}]}).flat()
    assert flat["terms.0.loss.members.1.x"] == 1
    assert flat["terms.0.loss.weights"] == [1, 2]


# What is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({"terms": [{"loss": "focal"}]}, "here: 'task' is missing"),
        ({**SHORT, "task": "multiclas"}, "here: task = 'multiclas' is not allowed: input should"),
        ({**SHORT, "terms": []}, "here: terms = [] is not allowed: tuple should have at least 1"),
        ({**SHORT, "balancr": "x"}, "here: unknown key 'balancr'; did you mean 'balancer'?"),
        (
            {**SHORT, "terms": [{"loss": "focal", "wieght": 2}]},
            "here: unknown key 'terms.0.wieght'; did you mean 'weight'?",
        ),
        ({**SHORT, "terms": [{"weight": 2}]}, "here: 'terms.0.loss' is missing"),
        (
            {**SHORT, "terms": [{"loss": "focal", "weight": 0}]},
            "here: terms.0.weight = 0 is not allowed: input should be greater than 0",
        ),
        (
            {**SHORT, "terms": [{"loss": "focal", "weight": float("inf")}]},
            "here: terms.0.weight = inf is not allowed: input should be a finite number",
        ),
        ({**SHORT, "terms": [{"loss": {"gamma": 2}}]}, "here: 'terms.0.loss.name' is missing"),
        ({**SHORT, "terms": ["focal"]}, "here: terms.0 = 'focal' is not allowed: input should"),
    ],
)
def test_one_message_for_one_mistake(document: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError) as caught:
        ObjectiveSpec.parse(document, "here")
    assert str(caught.value).startswith(message)
    assert len(str(caught.value).splitlines()) == 1


# Whether it can be trained --------------------------------------------------------------------

HERE = frozenset({"logits", "targets", "embeddings"})


def problems(*terms: dict[str, Any], task: str = "multiclass", **rest: Any) -> list[str]:
    spec = ObjectiveSpec.parse({"task": task, "terms": list(terms), **rest})
    return objective_problems(spec, toy_registry(), HERE, {"num_classes": 3})


@pytest.mark.parametrize(
    "term",
    [
        {"loss": "toy_ce", "reweighting": "toy_by_loss", "miner": "toy_below"},
        {"loss": "toy_batch"},
        {"loss": "toy_running"},
        {"loss": "toy_pairs", "miner": "toy_ends"},
        {"loss": "toy_pairs"},
        {"loss": "toy_either", "reweighting": "toy_by_loss"},
    ],
)
def test_a_sound_objective_has_no_problem(term: dict[str, Any]) -> None:
    assert problems(term) == []
    assert problems(term, {"loss": "toy_norm"}, balancer="toy_uncertainty") == []


@pytest.mark.parametrize(
    ("term", "task", "message"),
    [
        ({"loss": "toy_ce"}, "binary", "toy_ce serves multiclass, not binary"),
        ({"loss": "toy_cee"}, "multiclass", "there is no loss 'toy_cee'; did you mean 'toy_ce'?"),
        ({"loss": "toy_below"}, "multiclass", "'toy_below' is a miner, and a loss is wanted here"),
        (
            {"loss": {"name": "toy_ce", "smoothing": 2}},
            "multiclass",
            "toy_ce: smoothing = 2 is not allowed: input should be less than 1",
        ),
        (
            {"loss": "toy_distil"},
            "binary",
            "toy_distil reads 'teacher_logits' (a frozen teacher's logits), which nothing here "
            "provides",
        ),
        (
            {"loss": "toy_ce", "reweighting": "toy_by_class"},
            "multiclass",
            "toy_by_class reads 'class_counts' (how many training samples each class has), which "
            "nothing here provides",
        ),
        (
            {"loss": "toy_batch", "reweighting": "toy_by_loss"},
            "multiclass",
            "toy_batch exists only for the whole batch, so the reweighting toy_by_loss cannot "
            "reach its samples",
        ),
        (
            {"loss": {"name": "toy_either", "whole": True}, "miner": "toy_below"},
            "multiclass",
            "toy_either exists only for the whole batch, so the miner toy_below cannot reach its "
            "samples",
        ),
        (
            {"loss": "toy_ce", "miner": "toy_ends"},
            "multiclass",
            "the miner toy_ends selects pairs, which toy_ce does not read",
        ),
    ],
)
def test_each_problem_in_words(term: dict[str, Any], task: str, message: str) -> None:
    (problem,) = problems(term, task=task)
    assert problem.startswith(message)


def test_every_problem_is_listed() -> None:
    found = problems({"loss": "toy_distil"}, {"loss": "nothing"}, task="binary", balancer="toy_ce")
    assert len(found) == 3
