"""A space only proposes what works, and its references are points of it."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Annotated, Any, Literal

import optuna
import pytest
from pydantic import Field
from torch import Tensor

import lossearch
from lossearch import Choices, Range, When
from lossearch.components import component_of
from lossearch.errors import PluginError
from lossearch.feasibility import objective_problems
from lossearch.registry import Registry
from lossearch.space import Space
from lossearch.spec import ObjectiveSpec
from tests.toys import toy_registry

FIELDS = frozenset({"logits", "targets", "embeddings", "class_counts"})
FACTS = {"num_classes": 3, "seed": 0, "train_size": 100}
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


@pytest.fixture(scope="module")
def toys() -> Registry:
    return toy_registry()


def compile_(
    document: dict[str, Any] | str, task: str = "multiclass", fields: frozenset[str] = FIELDS
) -> Space:
    return Space.from_document(document, registry=toy_registry(), task=task, available=fields)


def one(loss: Any, **rest: Any) -> Space:
    return compile_({"terms": [{"loss": loss, **rest}]})


@pytest.fixture(scope="module")
def sample() -> Iterator[Callable[..., list[tuple[ObjectiveSpec, dict[str, Any]]]]]:
    """Random proposals of a space, with the parameters that Optuna saw."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)

    def sample(space: Space, count: int = 200) -> list[tuple[ObjectiveSpec, dict[str, Any]]]:
        study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
        found = []
        for _ in range(count):
            trial = study.ask()
            found.append((space.suggest(trial), trial.params))
            study.tell(trial, 0.0)
        return found

    yield sample
    optuna.logging.set_verbosity(before)


Sample = Callable[..., list[tuple[ObjectiveSpec, dict[str, Any]]]]


# Proposals ------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", ["multiclass", "binary", "multilabel"])
def test_every_proposal_is_feasible(sample: Sample, toys: Registry, task: str) -> None:
    space = compile_(EVERYTHING, task)
    proposals = [spec for spec, _ in sample(space)]
    for spec in proposals:
        assert objective_problems(spec, toys, FIELDS, FACTS) == [], spec.label()
        assert ObjectiveSpec.parse(spec.document()) == spec
    used = {c.name for spec in proposals for _, c in spec.components()}
    offered = {p.component.name for t in space.terms for p in t.loss.parts}
    assert used >= offered | {"toy_by_loss", "toy_below", "toy_uncertainty"}


def test_no_reweighting_and_no_mask_for_a_loss_of_the_batch(sample: Sample) -> None:
    acting = {"reweighting": "toy_by_loss", "miner": {"choice": [None, "toy_below"]}}
    for spec, params in sample(one({"choice": ["toy_batch", "toy_ce"]}, **acting), 60):
        term = spec.terms[0]
        assert (term.reweighting is None) == (term.loss.name == "toy_batch")
        assert ("terms.0.miner" in params) == (term.loss.name == "toy_ce")
    for spec, _ in sample(one("toy_either", **acting), 60):
        assert (spec.terms[0].reweighting is None) == ("whole" in spec.terms[0].loss.params)


def test_pairs_are_mined_only_for_a_loss_that_takes_them(sample: Sample) -> None:
    space = one({"choice": ["toy_ce", "toy_pairs"]}, miner="toy_ends")
    for spec, _ in sample(space, 40):
        assert (spec.terms[0].miner is not None) == (spec.terms[0].loss.name == "toy_pairs")


def test_a_balancer_only_for_two_terms_or_more(sample: Sample) -> None:
    document = {
        "terms": [{"loss": "toy_ce"}, {"loss": "toy_norm", "optional": True}],
        "balancer": {"choice": ["toy_max", "toy_uncertainty"]},
    }
    seen = sample(compile_(document), 60)
    assert {len(spec.terms) for spec, _ in seen} == {1, 2}
    for spec, params in seen:
        assert (spec.balancer is not None) == (len(spec.terms) == 2) == ("balancer" in params)


def test_a_parameter_at_its_default_is_not_written() -> None:
    path = "terms.0.loss.toy_power"
    space = one({"name": "toy_power", "exponent": {"choice": [1, 2]}, "scale": 1.0})
    fixed = {f"{path}.exponent": 2, f"{path}.rounds": 1, f"{path}.mode": "mean"}
    spec = space.suggest(optuna.trial.FixedTrial(fixed))
    assert spec.terms[0].loss.params == {"mode": "mean"}


def test_a_default_that_the_task_decides_is_the_one_that_is_not_written(toys: Registry) -> None:
    space = compile_({"terms": [{"loss": "toy_power"}]}, "binary")
    for mode, written in (("sum", True), ("mean", False)):
        path = "terms.0.loss.toy_power"
        fixed = {f"{path}.exponent": 2.0, f"{path}.rounds": 1, f"{path}.mode": mode}
        (term,) = space.suggest(optuna.trial.FixedTrial(fixed)).terms
        assert ("mode" in term.loss.params) == written
        params: Any = toys.get("toy_power").complete(term.loss.params, task="binary")
        assert params.mode == mode, "what was proposed is what is trained"


def test_what_the_engine_would_fill_in_is_written_where_a_space_fixes_it(toys: Registry) -> None:
    spec, _ = next(one({"name": "toy_running", "seed": 0}).references())
    said = spec.terms[0].loss.params
    params: Any = toys.get("toy_running").complete(said, facts={**FACTS, "seed": 9})
    assert params.seed == 0


def test_choices_may_hold_ranges(sample: Sample) -> None:
    space = one({"name": "toy_power", "exponent": {"choice": [1, {"low": 3, "high": 4}]}})
    seen = [s.terms[0].loss.params.get("exponent", 2.0) for s, _ in sample(space, 50)]
    assert 1 in seen and all(v == 1 or 3 <= v <= 4 for v in seen)
    assert len(set(seen)) > 10


def test_conditional_names_are_those_of_the_component(sample: Sample) -> None:
    for spec, params in sample(compile_(EVERYTHING), 50):
        name = spec.terms[0].loss.name
        prefixes = {f"terms.0.loss.{name}"}
        inside = {p for p in params if p.startswith("terms.0.loss.")}
        assert all(any(p.startswith(f"{x}.") for x in prefixes) for p in inside)


def test_a_member_list_is_searched_too(sample: Sample, toys: Registry) -> None:
    registry = toy_registry()
    _add_mixture(registry)
    members = ["toy_power", {"name": "toy_ce", "smoothing": {"low": 0.1, "high": 0.2}}]
    space = Space.from_document(
        {"terms": [{"loss": {"name": "mixture", "members": members}}]},
        registry=registry, task="multiclass", available=FIELDS,
    )  # fmt: skip
    for spec, params in sample(space, 20):
        first, second = spec.terms[0].loss.params["members"]
        assert first["name"] == "toy_power" and 1 <= first.get("exponent", 2) <= 4
        assert 0.1 <= second["smoothing"] <= 0.2
        assert "terms.0.loss.mixture.members.1.toy_ce.smoothing" in params
    spec, _ = next(space.references())
    assert spec.terms[0].loss.params["members"] == [
        {"name": "toy_power"},
        {"name": "toy_ce", "smoothing": 0.1},
    ], "members stand at their defaults too"
    assert ("terms.0.loss.mixture.members", "[toy_power, toy_ce]") in space.describe()


def test_a_member_that_does_not_fit_leaves_and_may_take_the_whole_with_it() -> None:
    registry = toy_registry()
    _add_mixture(registry)
    loss = {"choice": ["toy_power", {"name": "mixture", "members": ["toy_power", "toy_ce"]}]}
    space = Space.from_document(
        {"terms": [{"loss": loss}]}, registry=registry, task="binary", available=FIELDS
    )
    reasons = {x.what: x.why for x in space.left_out}
    assert reasons["loss toy_ce"] == "serves multiclass, not binary"
    assert "members" in reasons["loss mixture"] and "at least 2 items" in reasons["loss mixture"]
    assert [p.component.name for p in space.terms[0].loss.parts] == ["toy_power"]


def _add_mixture(registry: Registry) -> None:
    @lossearch.loss(task=("multiclass", "binary"))
    def mixture(
        logits: Tensor,
        *,
        members: Annotated[list[str | dict[str, Any]], Field(min_length=2)] = ["a", "b"],
    ) -> Tensor:
        """A stand-in for an ensemble."""
        return logits.sum(1)

    registry.add(component_of(mixture), "tests")


# References -----------------------------------------------------------------------------------


def test_references_are_each_loss_at_its_defaults(toys: Registry) -> None:
    space = compile_(EVERYTHING)
    references = list(space.references())
    assert [s.terms[0].loss.name for s, _ in references] == [
        p.component.name for p in space.terms[0].loss.parts
    ]
    for spec, _ in references:
        assert spec.terms[0].loss.params == {}, spec.label()
        assert len(spec.terms) == 1 and spec.terms[0].reweighting is None
        assert objective_problems(spec, toys, FIELDS, FACTS) == []


@pytest.mark.parametrize("task", ["multiclass", "binary", "multilabel"])
def test_references_are_points_of_the_space(task: str) -> None:
    space = compile_(EVERYTHING, task)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for spec, params in space.references():
        study.enqueue_trial(params)
        trial = study.ask()
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # Optuna warns where a value is not in its range
            assert space.suggest(trial) == spec
        assert trial.params == params
        study.tell(trial, 0.0)


@pytest.mark.parametrize(
    ("narrowed", "at"),
    [
        ({"low": 3, "high": 4}, 3.0),
        ({"low": 1, "high": 1.5}, 1.5),
        ({"choice": [1, 2]}, 2),
        ({"choice": [1.0, 2.0]}, 2.0),
        ({"choice": [4, 3]}, 3),
        ({"choice": [4, {"low": 1, "high": 3}]}, 2.0),
        ({"choice": [4, {"low": 2.5, "high": 3}]}, 2.5),
    ],
)
def test_a_reference_is_what_is_nearest_to_the_default(narrowed: Any, at: float) -> None:
    space = one({"name": "toy_power", "exponent": narrowed})
    spec, params = next(space.references())
    value = spec.terms[0].loss.params.get("exponent", 2.0)
    assert value == at
    study = optuna.create_study()
    study.enqueue_trial(params)
    assert space.suggest(study.ask()) == spec


def test_a_reference_uses_the_default_that_the_task_decides() -> None:
    space = compile_({"terms": [{"loss": "toy_power"}]}, "binary")
    spec, params = next(space.references())
    assert params["terms.0.loss.toy_power.mode"] == "mean"
    assert spec.terms[0].loss.params == {}


# Describing -----------------------------------------------------------------------------------


def test_it_describes_every_choice() -> None:
    rows = dict(compile_(EVERYTHING).describe())
    assert rows["terms.0.loss.toy_ce"] == "Cross-entropy with label smoothing."
    assert rows["terms.0.loss.toy_ce.smoothing"] == "0 … 0.5"
    assert rows["terms.0.loss.toy_power.rounds"] == "1 … 8 whole (log)"
    assert rows["terms.0.loss.toy_power.mode"] == "one of sum, mean"
    assert rows["terms.0.miner"] == "or nothing"
    assert rows["terms.1"] == "optional"
    assert rows["terms.1.weight"] == "0.01 … 2 (log)"
    assert "terms.0.weight" not in rows
    assert rows["balancer.toy_max"] == "The largest term alone."


def test_a_parameter_without_effect_is_not_suggested() -> None:
    """`When`: the exponent of the focal base is searched only with that base."""

    @lossearch.loss(task="multiclass")
    def two_bases(
        logits: Tensor,
        targets: Tensor,
        *,
        gamma: Annotated[float, Range(0.5, 3.0), When(base="focal")] = 2.0,
        base: Annotated[Literal["plain", "focal"], Choices()] = "plain",
    ) -> Tensor:
        "Two bases."
        return logits[:, 0]

    registry = Registry()
    registry.add(component_of(two_bases), "toys")
    space = Space.from_document(
        {"terms": [{"loss": "two_bases"}]},
        registry=registry,
        task="multiclass",
        available={"logits", "targets"},
    )
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    bases = set()
    for _ in range(30):
        trial = study.ask()
        params = space.suggest(trial).terms[0].loss.params
        bases.add(params.get("base", "plain"))
        searched = "terms.0.loss.two_bases.gamma" in trial.params
        assert searched == (params.get("base") == "focal")
    assert bases == {"plain", "focal"}
    assert ("terms.0.loss.two_bases.gamma", "0.5 … 3, where base is focal") in space.describe()


def test_a_condition_names_a_parameter_that_is_there() -> None:
    with pytest.raises(PluginError, match="'gamma' is searched by the value of 'bas'"):

        @lossearch.loss(task="multiclass")
        def misspelt(
            logits: Tensor, *, gamma: Annotated[float, Range(0.5, 3.0), When(bas="focal")] = 2.0
        ) -> Tensor:
            "Misspelt."
            return logits[:, 0]
