"""Losses say what they take and return: soft targets, a value a sample; else they are refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import lossearch
from lossearch.components import component_of
from lossearch.errors import FieldError, SpecError
from lossearch.feasibility import SOFT_TARGETS, objective_problems
from lossearch.objective import Objective
from lossearch.registry import Registry, current
from lossearch.spec import ObjectiveSpec
from lossearch.testing import CheckFailure, checks
from lossearch.trials.fingerprint import fingerprint
from lossearch.trials.preflight import preflight
from lossearch.trials.probe import Probe

SOFT = ("cross_entropy", "poly_loss", "symmetric_cross_entropy", "probability_mae")
COUNTS = [60, 30, 10]
GENERATOR = torch.Generator().manual_seed(0)
LOGITS = 2 * torch.randn(6, 3, generator=GENERATOR, dtype=torch.float64)
SHARES = torch.rand(6, 3, generator=GENERATOR, dtype=torch.float64).add(0.05)
SHARES = SHARES / SHARES.sum(1, keepdim=True)
CLASSES = SHARES.argmax(1)


@lossearch.loss(task="multiclass")
def toy_reduced(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy, averaged already."""
    return F.cross_entropy(logits, targets)


@lossearch.loss(task="multiclass")
def toy_wide(logits: Tensor, targets: Tensor) -> Tensor:
    """A value for each class."""
    return -logits.log_softmax(1) * F.one_hot(targets, logits.shape[1])


@lossearch.loss(task="multiclass")
def toy_doubled(logits: Tensor, targets: Tensor) -> Tensor:
    """Two values a sample."""
    return F.cross_entropy(logits, targets, reduction="none").repeat(2)


@lossearch.loss(task="multiclass", returns="per_pair")
def toy_pairs(logits: Tensor, targets: Tensor) -> Tensor:
    """A value for each pair of neighbours of one class."""
    same = targets[1:] == targets[:-1]
    return (logits[1:] - logits[:-1]).square().sum(1)[same]


@lossearch.loss(task="multiclass", soft_targets=True)
def toy_square(logits: Tensor, targets: Tensor) -> Tensor:
    """Says that it takes soft targets, and gives one-hot rows another value."""
    if targets.is_floating_point():
        return (logits - targets).square().sum(1)
    return F.cross_entropy(logits, targets, reduction="none")


TOYS = (toy_reduced, toy_wide, toy_doubled, toy_pairs, toy_square)


@pytest.fixture(scope="module")
def registry() -> Registry:
    both = Registry()
    installed = current()
    for kind in ("loss", "reweighting", "miner"):
        for component in installed.list(kind):
            both.add(component, "installed")
    for toy in TOYS:
        both.add(component_of(toy), "toys")
    return both


def build(registry: Registry, *terms: Any) -> Objective:
    document = {"task": "multiclass", "terms": list(terms)}
    facts = {"num_classes": 3, "train_size": 100, "class_counts": COUNTS}
    return Objective(ObjectiveSpec.parse(document), registry, facts)


def per_sample(name: str, logits: Tensor, targets: Tensor, **params: Any) -> Tensor:
    component = current().get(name, "loss")
    return component.build(task="multiclass", **params)({"logits": logits, "targets": targets})


def by_loop(name: str) -> list[float]:
    """Each sample's value, from the formula, in plain numbers."""
    found = []
    for z, q in zip(LOGITS, SHARES, strict=True):
        p = (z.exp() / z.exp().sum()).tolist()
        pairs = list(zip(q.tolist(), p, strict=True))
        log = [-a * torch.tensor(b, dtype=torch.float64).log().item() for a, b in pairs]
        if name == "cross_entropy":
            found.append(sum(log))
        elif name == "poly_loss":
            found.append(sum(log) + 1.5 * (1 - sum(a * b for a, b in pairs)))
        elif name == "probability_mae":
            found.append(sum(abs(a - b) for a, b in pairs))
        else:
            logs = [max(torch.tensor(a, dtype=torch.float64).log().item(), -2.0) for a, _ in pairs]
            reverse = -sum(b * each for each, (_, b) in zip(logs, pairs, strict=True))
            found.append(0.3 * sum(log) + 0.8 * reverse)
    return found


PARAMS: dict[str, dict[str, Any]] = {
    "poly_loss": {"epsilon": 1.5},
    "symmetric_cross_entropy": {"alpha": 0.3, "beta": 0.8, "A": -2.0},
}


@pytest.mark.parametrize("name", SOFT)
def test_the_value_of_soft_targets(name: str) -> None:
    params = PARAMS.get(name, {})
    found = per_sample(name, LOGITS, SHARES, **params)
    assert found.tolist() == pytest.approx(by_loop(name), rel=1e-9)
    hot = per_sample(name, LOGITS, F.one_hot(CLASSES, 3).double(), **params)
    assert hot.tolist() == pytest.approx(
        per_sample(name, LOGITS, CLASSES, **params).tolist(), rel=1e-9
    )


def test_only_some_take_soft_targets(registry: Registry) -> None:
    with pytest.raises(FieldError, match=r"focal takes class indices .* declares soft_targets"):
        build(registry, {"loss": "focal"})(logits=LOGITS, targets=SHARES)
    available = frozenset({"logits", "targets", "class_counts", SOFT_TARGETS})

    def problems(loss: Any) -> list[str]:
        spec = ObjectiveSpec.parse({"task": "multiclass", "terms": [{"loss": loss}]})
        return objective_problems(spec, registry, available, {"num_classes": 3})

    assert [problems(name) for name in SOFT] == [[]] * len(SOFT)
    for loss in ("focal", {"name": "poly_loss", "base": "focal"}, "generalized_cross_entropy"):
        (found,) = problems(loss)
        assert "the training targets are probabilities of the classes (soft labels)" in found


def test_a_reweighting_goes_by_the_likeliest_class(registry: Registry) -> None:
    term = {"loss": "cross_entropy", "reweighting": "class_balanced"}
    found = build(registry, term)(logits=LOGITS, targets=SHARES)
    weights = (
        current()
        .get("class_balanced")
        .build(task="multiclass")({"targets": CLASSES, "class_counts": torch.tensor(COUNTS)})
    )
    soft = -(SHARES * LOGITS.log_softmax(1)).sum(1)
    assert float(found) == pytest.approx(float((weights * soft).mean()), rel=1e-6)


@pytest.mark.parametrize("name", SOFT)
def test_preflight_and_fingerprints_of_soft_targets(name: str, registry: Registry) -> None:
    spec = ObjectiveSpec.parse({"task": "multiclass", "terms": [{"loss": name}]})
    probe = Probe.make("multiclass", num_classes=3, class_counts=COUNTS, train_size=100, soft=True)
    assert torch.equal(probe.fields["targets"].argmax(1), probe.targets)
    assert preflight(spec, registry, probe, current().get("accuracy", "metric")) is None
    found = fingerprint(spec, registry, probe)
    hard = Probe.make("multiclass", num_classes=3, class_counts=COUNTS, train_size=100)
    other = fingerprint(spec, registry, hard)
    assert found is not None and other is not None and abs(found - other).max() > 1e-3


def test_conformance_sees_another_value_at_one_hot_rows() -> None:
    check = dict(checks(component_of(toy_square)))["soft targets"]
    with pytest.raises(CheckFailure, match="another value at one-hot rows"):
        check()


# --- what a loss returns ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("toy_reduced", r'toy_reduced returns values of the shape \[\].*declare returns="batch"'),
        ("toy_wide", r"toy_wide returns values of the shape \[6, 3\]"),
        ("toy_doubled", r"toy_doubled returns 12 values for 6 samples.*per_pair"),
    ],
)
def test_a_loss_returns_what_it_declares(name: str, message: str, registry: Registry) -> None:
    for more in ({}, {"reweighting": "class_balanced"}):
        with pytest.raises(FieldError, match=message):
            build(registry, {"loss": name, **more})(logits=LOGITS, targets=CLASSES)
    probe = Probe.make("multiclass", num_classes=3, class_counts=COUNTS, train_size=100)
    spec = ObjectiveSpec.parse({"task": "multiclass", "terms": [{"loss": name}]})
    refusal = preflight(spec, registry, probe, current().get("accuracy", "metric"))
    assert refusal is not None and refusal.reason == "raises" and name in refusal.detail


def test_a_weight_for_each_sample_is_not_for_pairs(registry: Registry) -> None:
    term = {"loss": "toy_pairs", "reweighting": "class_balanced"}
    message = "toy_pairs returns a value for each pair, and the reweighting class_balanced"
    with pytest.raises(SpecError, match=message):
        build(registry, term)
    spec = ObjectiveSpec.parse({"task": "multiclass", "terms": [term]})
    available = frozenset({"logits", "targets", "class_counts"})
    (found,) = objective_problems(spec, registry, available, {"class_counts": COUNTS})
    assert message in found


def test_nothing_selected_is_0_and_attached(registry: Registry) -> None:
    logits = LOGITS.clone().requires_grad_()
    value = build(registry, {"loss": "toy_pairs"})(logits=logits, targets=torch.arange(6) % 3)
    value.backward()
    assert value.item() == 0 and logits.grad is not None and not logits.grad.any()
