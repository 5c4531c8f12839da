"""A component that takes the whole batch: a wrapper, whose members decide what it reads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lossearch
from lossearch.components import component_of
from lossearch.errors import FieldError, PluginError


def _reads(params: Any) -> list[str]:
    return [params.field]


@lossearch.loss(task="multiclass", reads=_reads)
def shifted(batch: Mapping[str, Any], *, field: str = "logits", by: float = 1.0) -> Tensor:
    """A field of choice, shifted."""
    return batch[field] + by


@lossearch.loss(name="doubled", task="multiclass", reads=_reads)
class Doubled(nn.Module):
    """A field of choice, doubled."""

    def __init__(self, *, field: str = "logits") -> None:
        super().__init__()
        self.field = field

    def forward(self, batch: Mapping[str, Any]) -> Tensor:
        return 2 * batch[self.field]


def test_what_it_reads_follows_its_parameters() -> None:
    component = component_of(shifted)
    assert component.fields == component.optional_fields == ()
    assert component.reads(component.complete({"field": "embeddings"})) == {"embeddings"}
    assert set(component.Params.model_fields) == {"field", "by"}


@pytest.mark.parametrize(("target", "expected"), [(shifted, 2.0), (Doubled, 2.0)])
def test_it_is_handed_the_whole_mapping(target: Any, expected: float) -> None:
    bound = component_of(target).build(field="weight")
    value = bound({"weight": torch.ones(3), "targets": torch.zeros(3)})
    assert torch.equal(value, torch.full((3,), expected))


@pytest.mark.parametrize("target", [shifted, Doubled])
@pytest.mark.parametrize("batch", [{"logits": torch.ones(2)}, {"weights": 1, "weight": None}])
def test_a_missing_field_is_named(target: Any, batch: dict[str, Any]) -> None:
    with pytest.raises(FieldError, match="reads 'weight', which the batch lacks"):
        component_of(target).build(field="weight")(batch)


def test_it_must_say_what_it_reads() -> None:
    with pytest.raises(PluginError, match="by reads= in its decorator"):

        @lossearch.loss(task="multiclass")
        def silent(batch: Mapping[str, Any]) -> Tensor:
            return batch["logits"]


def test_batch_stands_alone() -> None:
    with pytest.raises(PluginError, match="takes no other field beside it"):

        @lossearch.loss(task="multiclass", reads=_reads)
        def greedy(batch: Mapping[str, Any], logits: Tensor) -> Tensor:
            return logits

    with pytest.raises(PluginError, match="and no default"):

        @lossearch.loss(task="multiclass", reads=_reads)
        def shy(batch: Mapping[str, Any] | None = None) -> Tensor:
            return torch.zeros(1)
