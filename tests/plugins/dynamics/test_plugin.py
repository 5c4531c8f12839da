from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import lossearch
from lossearch.components import component_of
from lossearch.objective import Objective
from lossearch.plugins import load_plugins
from lossearch.registry import Registry

NAMES = {
    "reweighting": "none inverse_frequency class_balanced focal_weight dynamic_loss",
    "miner": "ohem small_loss",
    "balancer": "fixed_weights uncertainty dwa encodec_balancer pcgrad",
    "metric": "accuracy balanced_accuracy macro_f1 auroc average_precision nll ece smooth_ece",
}


@pytest.fixture(scope="module")
def registry() -> Registry:
    return load_plugins().registry


@pytest.mark.parametrize("kind", NAMES)
def test_every_component_is_registered_by_the_plugin(registry: Registry, kind: str) -> None:
    for name in NAMES[kind].split():
        assert registry.get(name, kind=kind).name == name
        assert registry.owner(name) == "dynamics"


def test_documentation_names_every_parameter(registry: Registry) -> None:
    for kind, names in NAMES.items():
        for name in names.split():
            component = registry.get(name, kind=kind)
            for parameter in component.Params.model_fields:
                assert f"{parameter}:" in component.doc, f"{name}: {parameter}"


@lossearch.loss(task="multiclass")
def toy_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(logits, targets, reduction="none")


@lossearch.loss(task="multiclass")
def toy_margin(logits: Tensor, targets: Tensor) -> Tensor:
    return F.multi_margin_loss(logits, targets, reduction="none")


@pytest.mark.parametrize("name", NAMES["balancer"].split())
@pytest.mark.parametrize("reweighting", NAMES["reweighting"].split())
def test_an_objective_trains_with_them(registry: Registry, name: str, reweighting: str) -> None:
    own = Registry()
    for component in registry:
        if registry.owner(component.name) == "dynamics":
            own.add(component, "dynamics")
    for loss in (toy_entropy, toy_margin):
        own.add(component_of(loss), "toys")
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(32, 5, generator=generator)
    targets = inputs[:, :3].argmax(1)
    model = torch.nn.Linear(5, 3)
    with torch.no_grad():
        model.weight.zero_()
    objective = Objective.from_spec(
        {
            "task": "multiclass",
            "terms": [
                {"loss": "toy_entropy", "reweighting": reweighting, "miner": "small_loss"},
                {"loss": "toy_margin", "miner": "ohem", "weight": 0.5},
            ],
            "balancer": name,
        },
        registry=own,
        class_counts=targets.bincount(minlength=3),
        total_steps=30,
    )
    optimizer = torch.optim.SGD([*model.parameters(), *objective.parameters()], lr=0.1)
    values: list[float] = []
    for step in range(30):
        batch = {"logits": model(inputs), "targets": targets, "step": step, "epoch": step // 10}
        optimizer.zero_grad()
        objective.backward(batch, model.parameters())
        optimizer.step()
        values.append(float(F.cross_entropy(model(inputs), targets).detach()))
        if step % 10 == 9:
            objective.end_epoch(step // 10)
    assert values[-1] < 0.8 * values[0]
