"""Regularised evolution: one thing changes, the oldest die, children are points of the space."""

from __future__ import annotations

from typing import Any

import numpy as np
import optuna
import pytest
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from lossearch.registry import Registry
from lossearch.space import Space
from lossearch.trials.evolution import EvolutionSampler, Member, population_size


def members(scores: list[float], level: float = 9.0) -> list[Member]:
    """One parameter each, that is the score."""
    box: dict[str, BaseDistribution] = {"x": FloatDistribution(0, 1), "y": IntDistribution(0, 9)}
    return [Member({"x": s, "y": 4}, box, level, (s,)) for s in scores]


def child(living: list[Member], size: int, seed: int, maximize: tuple[bool, ...] = (True,)) -> Any:
    trial = optuna.create_study(sampler=EvolutionSampler(living, size, maximize, seed)).ask()
    return {"x": trial.suggest_float("x", 0, 1), "y": trial.suggest_int("y", 0, 9)}


def test_a_child_differs_from_its_parent_in_one_thing() -> None:
    seen: set[str] = set()
    for seed in range(40):
        found = child(members([0.5] * 8), 8, seed)
        changed = {k for k, v in found.items() if v != {"x": 0.5, "y": 4}[k]}
        assert len(changed) == 1
        seen |= changed
    assert seen == {"x", "y"}


@pytest.mark.parametrize("maximize", [True, False])
def test_the_best_of_the_tournament_has_the_child_and_the_oldest_is_dead(maximize: bool) -> None:
    """A tournament of the whole population: its best is the parent, whatever the dead had."""
    scores = [0.9, 0.1, 0.4, 0.5]
    best = 0.9 if maximize else 0.1
    living = members(scores)
    of_all = {child(living, 4, s, (maximize,))["x"] for s in range(60)}
    assert best in of_all  # where y was the one that changed
    dead = {child(members([best, *([0.45] * 4)]), 4, s, (maximize,))["x"] for s in range(60)}
    assert best not in dead and 0.45 in dead


def test_scores_of_different_epochs_are_not_compared() -> None:
    living = [*members([0.9] * 3, level=3.0), *members([0.2], level=9.0)]
    kept = {child(living, 4, s)["x"] for s in range(200)}
    assert {0.2, 0.9} <= kept  # 0.9 only where the one that went on was not drawn


def test_until_the_population_is_there_it_is_random() -> None:
    found = [child(members([0.5] * 3), 4, seed)["x"] for seed in range(20)]
    assert 0.5 not in found and np.std(found) > 0.1


def test_numbers_stay_in_their_range_and_move_a_little() -> None:
    found = [child(members([0.02] * 4), 4, s)["x"] for s in range(200)]
    moved = [x for x in found if x != 0.02]
    assert min(moved) >= 0 and max(moved) <= 1
    assert 0.1 < np.mean(moved) < 0.25  # half-normal of 0.2 from the end of the range


@pytest.mark.parametrize(("trials", "size"), [(8, 10), (50, 10), (256, 51), (5000, 100)])
def test_population(trials: int, size: int) -> None:
    assert population_size(trials) == size


def test_children_swap_components_and_optional_parts_and_are_valid(registry: Registry) -> None:
    document: dict[str, Any] = {
        "task": "multiclass",
        "terms": [
            {"loss": {"choice": ["cross_entropy", "focal", "poly_loss"]}},
            {
                "loss": "orthogonal_projection",
                "weight": {"low": 0.1, "high": 2},
                "optional": True,
            },
        ],
    }
    space = Space.from_document(
        document,
        registry=registry,
        task="multiclass",
        available={"logits", "targets", "embeddings"},
    )
    parent: dict[str, Any] = {"terms.0.loss": "focal", "terms.0.loss.focal.gamma": 2.5,
                              "terms.1.use": False}  # fmt: skip
    fixed = optuna.trial.FixedTrial({**parent})
    space.suggest(fixed)
    living = [Member(fixed.params, fixed.distributions, 9.0, (0.5,))] * 10
    labels: list[tuple[str, int]] = []
    for seed in range(60):
        sampler = EvolutionSampler(living, 10, (True,), seed)
        trial = optuna.create_study(sampler=sampler).ask()
        spec = space.suggest(trial)
        labels.append((spec.terms[0].loss.name, len(spec.terms)))
        shared = [k for k in parent if k in trial.params]
        assert sum(trial.params[k] != parent[k] for k in shared) == 1
        assert space.locate(spec) is not None
    assert {("focal", 1), ("focal", 2), ("poly_loss", 1), ("cross_entropy", 1)} <= set(labels)
    assert all(count == 1 for loss, count in labels if loss != "focal")


def test_choices_are_swapped_for_another() -> None:
    box: dict[str, BaseDistribution] = {"c": CategoricalDistribution(("a", "b", None))}
    living = [Member({"c": "b"}, box, 9.0, (0.5,))] * 4
    found = set()
    for seed in range(30):
        trial = optuna.create_study(sampler=EvolutionSampler(living, 4, (True,), seed)).ask()
        found.add(trial.suggest_categorical("c", ("a", "b", None)))
    assert found == {"a", None}
