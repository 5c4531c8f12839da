"""Frozen backbones: by name, of the user's own modules, and free to learn again."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

import lossearch
from lossearch.components import component_of
from lossearch.errors import ModelError
from lossearch.models import ModelConfig, build_network, thawed
from lossearch.registry import Registry


@dataclass(frozen=True)
class Info:
    task: str = "multiclass"
    num_outputs: int = 3
    kind: str = "table"
    input_shape: tuple[int, ...] = (5,)


IMAGE = Info(kind="image", input_shape=(1, 32, 32))


class Closed(nn.Module):
    """Something follows its last layer."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x).tanh()


def test_frozen_backbone_never_changes(registry: Registry) -> None:
    config = ModelConfig.model_validate(
        {"name": "timm", "architecture": "resnet10t", "freeze": True}
    )
    network = build_network(config, IMAGE, registry).train()
    x = torch.randn(4, 1, 32, 32)
    before = network(x)["embeddings"]
    assert torch.equal(network(x + 0)["embeddings"], before)  # batch norm statistics stay
    network(x)["logits"].sum().backward()
    assert {n for n, p in network.named_parameters() if p.grad is not None} == {
        "head.weight", "head.bias",
    }  # fmt: skip
    assert all(not p.requires_grad for p in network.backbone.parameters())


def test_any_named_model_can_be_frozen_and_thawed(registry: Registry) -> None:
    config = ModelConfig.model_validate({"name": "mlp", "hidden": [4], "freeze": True})
    assert config.params == {"hidden": [4]}
    network = build_network(config, Info(), registry)
    assert network.frozen
    assert {n for n, p in network.named_parameters() if p.requires_grad} == {
        "head.weight", "head.bias",
    }  # fmt: skip
    free = thawed(config)
    assert free == ModelConfig.model_validate({"name": "mlp", "hidden": [4]})
    network = build_network(free, Info(), registry)
    assert not network.frozen
    assert all(p.requires_grad for p in network.parameters())


def _half_frozen() -> nn.Sequential:
    module = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 3))
    module[:-1].requires_grad_(False)
    return module


def test_module_whose_backbone_needs_no_gradient_is_frozen(registry: Registry) -> None:
    module = _half_frozen()
    network = build_network(module, Info(), registry).train()
    assert network.frozen
    x = torch.randn(6, 5)
    assert torch.equal(network(x)["embeddings"], network.eval()(x)["embeddings"])
    free = thawed(module)
    network = build_network(free, Info(), registry)
    assert not network.frozen
    assert all(p.requires_grad for p in network.parameters())
    assert not module[0].weight.requires_grad  # the user's own stays as it was


@pytest.mark.parametrize("trained", ["0.weight", "1.bias"])
def test_module_of_which_a_part_learns_is_not_frozen(registry: Registry, trained: str) -> None:
    module = _half_frozen()
    module.get_parameter(trained).requires_grad_(True)
    assert not build_network(module, Info(), registry).frozen


def test_nothing_to_train_is_refused(registry: Registry) -> None:
    with pytest.raises(ModelError, match="no parameters to train"):
        build_network(_half_frozen().requires_grad_(False), Info(), registry)


def test_named_model_without_a_visible_head_cannot_be_frozen(registry: Registry) -> None:
    def closed() -> nn.Module:
        """A model that hides its head."""
        return Closed()

    registry.add(component_of(lossearch.model()(closed)), "test")
    config = ModelConfig.model_validate({"name": "closed", "freeze": True})
    with pytest.raises(ModelError, match="'closed' cannot be frozen: it does not show"):
        build_network(config, Info(), registry)
