"""Which fields there are, and that providers run once, in order, and only where needed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lossearch.components import Bound
from lossearch.data import Data
from lossearch.errors import FieldError, ParameterError, StudyError
from lossearch.models import ModelConfig, build_network
from lossearch.registry import Registry
from lossearch.spec import ComponentSpec
from lossearch.training.providers import Fields, available_fields, try_providers
from lossearch.training.trainer import Trainer

ALL = ("triple", "never_needed", "energy", "noisy_view")


def fields(
    blobs: Data, registry: Registry, reads: set[str], listed: tuple[str, ...] = ALL
) -> Fields:
    network = build_network(ModelConfig(name="mlp"), blobs.info, registry)
    specs = [ComponentSpec(name=name) for name in listed]
    return Fields(network, specs, registry, reads, {"task": "multiclass"})


def names(made: Fields) -> list[str]:
    return [p.component.name for p in made.providers if isinstance(p, Bound)]


class Opaque(nn.Module):
    """A model that cannot be split into a backbone and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 3)

    def forward(self, inputs: Any) -> Any:
        return self.inner(inputs).relu()


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
    network = build_network(Opaque(), blobs.info, registry)
    assert network.gives == ("logits",)
    assert "embeddings" not in available_fields("multiclass", network.gives)


def test_a_field_has_one_giver(registry: Registry) -> None:
    def clash(*listed: str) -> str:
        with pytest.raises(StudyError) as caught:
            available_fields("multiclass", ("logits",), [registry.get(name) for name in listed])
        return str(caught.value)

    why = clash("noisy_view", "second_view")
    assert "second_view gives 'logits_b', which noisy_view gives too" in why
    assert "energy gives 'energy', which energy gives too" in clash("energy", "energy")
    with pytest.raises(StudyError, match="gives 'energy', which the study itself gives too"):
        available_fields("multiclass", ("logits", "energy"), [registry.get("energy")])


def test_what_a_provider_reads_is_there(blobs: Data, registry: Registry) -> None:
    reads_weight = Registry()
    reads_weight.add(_decorated(), "test")
    network = build_network(ModelConfig(name="mlp"), blobs.info, registry)
    specs = [ComponentSpec(name="weight_norm")]
    made = Fields(network, specs, reads_weight, {"features"}, {})
    out = made(next(iter(blobs.train.batches(4))))
    assert torch.equal(out["features"], network.weight.norm(dim=1))  # pyright: ignore


def _decorated() -> Any:
    import lossearch
    from lossearch.components import component_of

    @lossearch.provider(gives="features")
    def weight_norm(weight: Any) -> Any:
        """Of each class."""
        return weight.norm(dim=1)

    return component_of(weight_norm)


def tried(
    blobs: Data, registry: Registry, *specs: dict[str, Any], network: Any = None
) -> dict[str, tuple[str, ...]]:
    network = network or build_network(ModelConfig(name="mlp"), blobs.info, registry)
    parsed = [ComponentSpec.model_validate(spec) for spec in specs]
    return try_providers(network, parsed, registry, blobs, {"seed": 0})


def test_providers_are_tried_before_anything_trains(blobs: Data, registry: Registry) -> None:
    network = build_network(ModelConfig(name="mlp"), blobs.info, registry)
    before = {k: v.clone() for k, v in network.state_dict().items()}
    torch.manual_seed(0)
    random = torch.get_rng_state()
    found = tried(blobs, registry, {"name": "triple"}, {"name": "noisy_view"}, network=network)
    assert found == {"triple": (), "noisy_view": ("logits_b", "embeddings_b")}
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())
    both = tried(blobs, registry, {"name": "triple"}, {"name": "energy"})
    assert both == {"triple": ("tripled",), "energy": ("energy",)}
    assert tried(blobs, registry) == {}


def test_a_second_view_of_scores_alone_has_no_embeddings(blobs: Data, registry: Registry) -> None:
    network = build_network(Opaque(), blobs.info, registry)
    found = tried(blobs, registry, {"name": "second_view"}, network=network)
    assert found == {"second_view": ("logits_b",)}


def test_a_frozen_model_is_tried_by_its_head(blobs: Data, registry: Registry) -> None:
    model = ModelConfig.model_validate({"name": "mlp", "freeze": True})
    network = build_network(model, blobs.info, registry)
    names = ({"name": "attack"}, {"name": "second_view"})
    found = tried(blobs, registry, *names, network=network)
    assert found == {"attack": ("logits_adv",), "second_view": ("logits_b", "embeddings_b")}
    with pytest.raises(FieldError, match="half_images cuts images"):
        tried(blobs, registry, {"name": "half_images"}, network=network)


def test_a_provider_that_cannot_work_is_refused(blobs: Data, registry: Registry) -> None:
    with pytest.raises(ParameterError, match="has no parameter 'nois'; did you mean 'noise'"):
        tried(blobs, registry, {"name": "second_view", "nois": 1})
    with pytest.raises(ParameterError, match="is not a file"):
        tried(blobs, registry, {"name": "teacher", "checkpoint": "nowhere.pt"})
    with pytest.raises(StudyError, match=r"provider \(never_needed\) fails .*nobody reads me"):
        tried(blobs, registry, {"name": "never_needed"})


@pytest.mark.parametrize("name", ["second_view", "attack"])
def test_a_resumed_training_goes_on_with_their_draws(
    make_trainer: Callable[..., Trainer], name: str, tmp_path: Path
) -> None:
    terms = "reads_logits_b" if name == "second_view" else "reads_logits_adv"
    whole = make_trainer(terms, providers=(name,))
    for _ in range(4):
        whole.run_epoch()
    first = make_trainer(terms, providers=(name,))
    for _ in range(2):
        first.run_epoch()
    first.save(tmp_path / "2.pt")
    resumed = make_trainer(terms, providers=(name,))
    resumed.load(tmp_path / "2.pt")
    for _ in range(2):
        resumed.run_epoch()
    assert resumed.curve == whole.curve
    states = (whole.fields.state_dict(), resumed.fields.state_dict())
    for key, value in states[0].items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, states[1][key])
    assert whole.curve[-1]["train_loss"] < whole.curve[0]["train_loss"]
