"""Which fields there are, and that providers run once, in order, and only where needed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from lossearch.components import Bound
from lossearch.data import Data
from lossearch.models import ModelConfig, build_network
from lossearch.registry import Registry
from lossearch.spec import ComponentSpec
from lossearch.training.providers import Fields, available_fields
from lossearch.training.trainer import Trainer

ALL = ("triple", "never_needed", "energy", "second_view")


def fields(
    blobs: Data, registry: Registry, reads: set[str], listed: tuple[str, ...] = ALL
) -> Fields:
    network = build_network(ModelConfig(name="mlp"), blobs.info, registry)
    specs = [ComponentSpec(name=name) for name in listed]
    return Fields(network, specs, registry, reads, {"task": "multiclass"})


def names(made: Fields) -> list[str]:
    return [p.component.name for p in made.providers if isinstance(p, Bound)]


def test_available_fields(registry: Registry) -> None:
    plain = available_fields("multiclass", ("logits", "embeddings"))
    assert {"inputs", "targets", "index", "class_counts", "epoch", "model", "logits"} <= plain
    assert "weight" not in plain and "predictions" not in plain
    regression = available_fields("regression", ("logits",))
    assert "predictions" in regression and "class_counts" not in regression
    providers = [registry.get(name) for name in ALL]
    assert available_fields("multiclass", ("logits",), providers) - plain == {
        "energy", "tripled", "features", "logits_b", "embeddings_b",
    }  # fmt: skip
    # what reads a field that nothing makes cannot run
    assert "tripled" not in available_fields("multiclass", ("logits",), [registry.get("triple")])


def test_providers_run_in_the_order_of_what_they_read(blobs: Data, registry: Registry) -> None:
    made = fields(blobs, registry, {"tripled"})
    assert names(made) == ["energy", "triple"]
    assert names(fields(blobs, registry, {"energy"})) == ["energy"]
    assert names(fields(blobs, registry, {"logits"})) == []


def test_the_batch_that_an_objective_reads(blobs: Data, registry: Registry) -> None:
    made = fields(blobs, registry, {"tripled", "weight", "logits_b"})
    batch = next(iter(blobs.train.batches(8)))
    out = made(batch)
    assert torch.equal(out["energy"], out["logits"].logsumexp(1))
    assert torch.equal(out["tripled"], 3 * out["energy"])
    assert out["logits_b"].shape == (8, 3) and not torch.equal(out["logits_b"], out["logits"])
    assert out["weight"] is made.network.weight
    assert out["model"] is made.network
    assert "features" not in out


def test_an_objective_trains_on_provided_fields(make_trainer: Callable[..., Trainer]) -> None:
    trainer = make_trainer("reads_energy", providers=ALL)
    trainer.run_epoch()
    plain = make_trainer("cross_entropy")
    plain.run_epoch()
    assert trainer.curve == plain.curve


def test_a_model_without_a_linear_head_gives_logits_alone(
    blobs: Data, registry: Registry
) -> None:
    class Opaque(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(4, 3)

        def forward(self, inputs: Any) -> Any:
            return self.inner(inputs).relu()

    network = build_network(Opaque(), blobs.info, registry)
    assert network.gives == ("logits",)
    assert "embeddings" not in available_fields("multiclass", network.gives)
