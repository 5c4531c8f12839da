"""An objective is found again in the space that proposed it, however it is written."""

from __future__ import annotations

from typing import Any

import optuna
import pytest

from lossearch.errors import LossearchError
from lossearch.registry import Registry, current
from lossearch.space import Space
from lossearch.spec import ObjectiveSpec

FIELDS = frozenset(
    {"logits", "targets", "embeddings", "weight", "class_counts", "index", "epoch", "step",
     "total_steps"}
)  # fmt: skip


@pytest.fixture(scope="module")
def registry() -> Registry:
    return current()


def compiled(registry: Registry, document: Any, task: str = "multiclass") -> Space:
    return Space.from_document(document, registry=registry, task=task, available=FIELDS)


SPACES = ["classification", "everything", "label_noise", "long_tail", "ensloss", "calibration",
          "binary_imbalanced", "multilabel", "polyloss"]  # fmt: skip


@pytest.mark.parametrize("name", SPACES)
def test_what_a_space_proposes_is_found_again(registry: Registry, name: str) -> None:
    task = {"binary_imbalanced": "binary", "multilabel": "multilabel"}.get(name, "multiclass")
    space = compiled(registry, registry.spaces[name], task)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for _ in range(60):
        trial = study.ask()
        spec = space.suggest(trial)
        # as the ledger has it, and as a person may write it, with whole numbers
        params = space.locate(ObjectiveSpec.parse(spec.document()))
        assert params == trial.params, spec.label()
        again = optuna.trial.FixedTrial(params)  # raises where a value is out of its range
        assert space.suggest(again).key == spec.key


def located(registry: Registry, space: Any, *terms: Any, **more: Any) -> dict[str, Any] | None:
    spec = ObjectiveSpec.parse({"task": "multiclass", "terms": list(terms), **more})
    return compiled(registry, space).locate(spec)


TWO = {
    "terms": [
        {
            "loss": {
                "choice": ["cross_entropy", {"name": "focal", "gamma": {"low": 0, "high": 3}}]
            },
            "reweighting": {"choice": ["none", "class_balanced"]},
        },
        {"loss": "orthogonal_projection", "weight": {"low": 0.1, "high": 2}, "optional": True},
    ],
    "balancer": {"choice": [None, "dwa"]},
}


def test_defaults_may_be_said_or_left_out(registry: Registry) -> None:
    plain = located(registry, TWO, {"loss": "focal"})
    assert plain is not None
    assert plain["terms.0.loss.focal.gamma"] == 2.0
    assert plain["terms.1.use"] is False and plain["terms.0.reweighting"] == "none"
    said = {"loss": {"name": "focal", "gamma": 2}, "reweighting": "none", "weight": 1}
    assert located(registry, TWO, said) == plain


def test_optional_terms_and_balancers(registry: Registry) -> None:
    second = {"loss": "orthogonal_projection", "weight": 0.5}
    found = located(registry, TWO, {"loss": "cross_entropy"}, second)
    assert found is not None and found["terms.1.use"] and found["balancer"] == "-"
    assert found["terms.1.weight"] == 0.5
    found = located(registry, TWO, {"loss": "cross_entropy"}, second, balancer="dwa")
    assert found is not None and found["balancer"] == "dwa"


@pytest.mark.parametrize(
    ("terms", "more"),
    [
        ([{"loss": {"name": "focal", "gamma": 3.5}}], {}),  # out of the range
        ([{"loss": "poly_loss"}], {}),
        ([{"loss": "focal", "weight": 2.0}], {}),
        ([{"loss": "focal", "miner": "ohem"}], {}),
        ([{"loss": "orthogonal_projection"}], {}),
        ([{"loss": "focal"}, {"loss": "focal"}], {}),
        ([{"loss": "focal"}] * 3, {}),
        ([{"loss": "no_such_loss"}], {}),
        ([{"loss": {"name": "focal", "no_such": 1}}], {}),
        ([{"loss": "focal"}], {"scale": 3.0}),
    ],
)
def test_what_a_space_never_proposes_is_not_found(
    registry: Registry, terms: list[Any], more: dict[str, Any]
) -> None:
    assert located(registry, TWO, *terms, **more) is None


def test_an_objective_of_another_task_is_not_found(registry: Registry) -> None:
    spec = ObjectiveSpec.parse({"task": "binary", "terms": [{"loss": "focal"}]})
    assert compiled(registry, TWO).locate(spec) is None


def test_choices_with_ranges_and_fixed_values(registry: Registry) -> None:
    gamma = {"choice": [0, {"low": 1, "high": 3}]}
    space = {"terms": [{"loss": {"name": "focal", "gamma": gamma}}]}
    for value, option in ((0, 0), (2.5, "1 … 3")):
        found = located(registry, space, {"loss": {"name": "focal", "gamma": value}})
        assert found is not None and found["terms.0.loss.focal.gamma"] == option
    assert located(registry, space, {"loss": {"name": "focal", "gamma": 0.5}}) is None
    fixed = {"terms": [{"loss": {"name": "focal", "gamma": 1.5}}]}
    assert located(registry, fixed, {"loss": "focal"}) is None
    assert located(registry, fixed, {"loss": {"name": "focal", "gamma": 1.5}}) is not None


def test_a_list_is_searched_entry_by_entry(registry: Registry) -> None:
    weights = [{"low": 0.5, "high": 2}, 1, {"choice": [1, 3]}]
    loss = {"name": "cross_entropy", "class_weights": weights, "temperature": 1.0}
    loss["label_smoothing"] = 0.0
    document = {"terms": [{"loss": loss}]}
    space = compiled(registry, document)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    seen: set[float] = set()
    for _ in range(20):
        trial = study.ask()
        spec = space.suggest(trial)
        first, second, third = spec.document()["terms"][0]["loss"]["class_weights"]
        assert 0.5 <= first <= 2 and second == 1 and third in (1, 3)
        where = "terms.0.loss.cross_entropy.class_weights"
        assert set(trial.params) == {f"{where}.0", f"{where}.2"}
        assert space.locate(spec) == trial.params
        seen |= {first, third}
    assert len(seen) > 20
    [(reference, _)] = space.references()
    assert reference.document()["terms"][0]["loss"]["class_weights"] == [1.25, 1, 1]
    assert ("terms.0.loss.cross_entropy.class_weights", "[0.5 … 2, 1, one of 1, 3]") in (
        space.describe()
    )
    assert located(registry, document, {"loss": "cross_entropy"}) is None


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"low": -1, "high": 2}, "class_weights = .*-1.* is not allowed"),
        ({"low": 2, "high": 1}, r"class_weights.0: a range needs low < high"),
        ({"low": 1, "hihg": 2}, "unknown key 'hihg'; did you mean 'high'"),
        ({"schedule": "linear", "end": 2}, "class_weights.0: an entry of a list cannot follow"),
    ],
)
def test_a_list_with_an_entry_that_is_not_legal(
    registry: Registry, entry: Any, message: str
) -> None:
    loss = {"name": "cross_entropy", "class_weights": [entry, 1, 1]}
    with pytest.raises(LossearchError, match=message):
        compiled(registry, {"terms": [{"loss": loss}]})
