"""Scale is not skill: every objective begins with the baseline's gradient norm."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from lossearch.data import Data
from lossearch.models import ModelConfig
from lossearch.registry import Registry
from lossearch.spec import ObjectiveSpec
from lossearch.training import TrainingConfig
from lossearch.training.plan import Plan
from lossearch.training.scale import LIMIT, Scale
from lossearch.training.trainer import Trainer

MODEL = ModelConfig.model_validate({"name": "mlp", "hidden": [8]})


def spec(*losses: Any, **keys: Any) -> ObjectiveSpec:
    terms = [t if isinstance(t, dict) and "loss" in t else {"loss": t} for t in losses]
    return ObjectiveSpec.parse({"task": "multiclass", "terms": terms, **keys})


def applied_by(scale: Scale, objective: ObjectiveSpec) -> ObjectiveSpec:
    """The objective with its factor, whatever factor it had."""
    factor = scale.of(objective.model_copy(update={"scale": 1.0}))
    return objective.model_copy(update={"scale": factor})


@pytest.fixture
def make_scale(blobs: Data, registry: Registry) -> Callable[..., Scale]:
    def make(reference: Any = "cross_entropy", model: Any = MODEL) -> Scale:
        training = TrainingConfig(epochs=4, batch_size=32, device="cpu")
        metric = registry.build("accuracy", kind="metric", task="multiclass")
        return Scale(Plan(blobs, model, training, metric, registry), spec(reference), 0)

    return make


def by_hand(trainer: Trainer, scale: Scale) -> float:
    """The norm of the first batch's gradient at the head and the embeddings, by another way."""
    trainer.fields.train()
    network = trainer.network
    batch = next(iter(trainer.plan.batches(trainer.order, 0)))
    assert torch.equal(batch["inputs"], scale.batch["inputs"])
    assert network.head is not None
    embeddings = network.backbone(batch["inputs"])
    fields = {**batch, "embeddings": embeddings, "logits": network.head(embeddings),
              "weight": network.weight}  # fmt: skip
    value = trainer.objective(fields)
    head = [p for p in network.head.parameters() if p.requires_grad]
    gradients = torch.autograd.grad(value, [*head, embeddings])
    return math.sqrt(sum(float(g.square().sum()) for g in gradients))


@pytest.mark.parametrize("loss", ["cross_entropy", "focal", "arcface", "squentropy"])
def test_the_norm_is_that_of_the_first_step(
    make_scale: Callable[..., Scale], make_trainer: Callable[..., Trainer], loss: str
) -> None:
    scale = make_scale()
    assert scale.norm(spec(loss)) == pytest.approx(by_hand(make_trainer(loss), scale), rel=1e-5)


def test_the_baseline_keeps_its_own(make_scale: Callable[..., Scale]) -> None:
    scale = make_scale()
    assert scale.of(spec("cross_entropy")) == 1.0
    assert "scale" not in applied_by(scale, spec("cross_entropy")).document()
    assert make_scale("focal").of(spec("cross_entropy")) != 1.0


@pytest.mark.parametrize(
    "objective",
    [
        spec("focal"),
        spec({"loss": "cross_entropy", "weight": 50.0}),
        spec("arcface"),
        spec({"loss": "generalized_cross_entropy", "reweighting": "focal_weight"}),
        spec("cross_entropy", "orthogonal_projection"),
        spec("cross_entropy", "focal", balancer="pcgrad"),
        spec("cross_entropy", "focal", balancer="dwa"),
    ],
    ids=lambda o: o.label(),
)
def test_every_objective_gets_the_baselines_norm(
    make_scale: Callable[..., Scale], objective: ObjectiveSpec
) -> None:
    scale = make_scale()
    applied = applied_by(scale, objective)
    assert scale.norm(applied) == pytest.approx(scale.reference, rel=1e-4)
    assert applied_by(scale, applied) == applied


def test_a_loss_that_is_only_larger_becomes_the_loss(make_scale: Callable[..., Scale]) -> None:
    scale = make_scale()
    found = applied_by(scale, spec({"loss": "cross_entropy", "weight": 50.0}))
    assert found.scale * found.terms[0].weight == pytest.approx(1.0, rel=1e-5)


@pytest.mark.parametrize("loss", ["turns_nan", "raises_later", "reads_energy"])
def test_what_cannot_be_measured_stays_as_it_is(
    make_scale: Callable[..., Scale], loss: str
) -> None:
    assert make_scale().of(spec(loss)) == 1.0


def test_the_factor_is_bounded(make_scale: Callable[..., Scale]) -> None:
    tiny = spec({"loss": "cross_entropy", "weight": 1e-9})
    assert make_scale().of(tiny) == LIMIT


def test_a_model_that_cannot_be_split_is_measured_at_its_scores(
    make_scale: Callable[..., Scale],
) -> None:
    torch.manual_seed(0)
    scale = make_scale(model=torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Softplus()))
    assert scale.embeddings is None
    applied = applied_by(scale, spec("focal"))
    assert applied.scale != 1 and scale.norm(applied) == pytest.approx(scale.reference, rel=1e-4)


def test_nothing_of_the_callers_randomness_is_used(make_scale: Callable[..., Scale]) -> None:
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    make_scale().of(spec("ensloss"))
    assert torch.equal(torch.rand(2), expected)


def test_the_factor_multiplies_value_and_gradient(registry: Registry) -> None:
    from lossearch.objective import Objective

    draw = torch.Generator().manual_seed(0)
    logits = torch.randn(6, 3, generator=draw)
    targets = torch.tensor([0, 1, 2, 0, 1, 2])

    def gradient(objective: Objective) -> tuple[float, torch.Tensor]:
        x = logits.clone().requires_grad_()
        value = objective.backward({"logits": x, "targets": targets}, [x])
        assert x.grad is not None
        return float(value), x.grad

    for keys in ({}, {"balancer": "pcgrad"}, {"balancer": "fixed_weights"}):
        terms = ("cross_entropy", "focal") if keys else ("focal",)
        facts = {"num_classes": 3, "train_size": 6}
        once = gradient(Objective(spec(*terms, **keys), registry, facts))
        thrice = gradient(Objective(spec(*terms, scale=3.0, **keys), registry, facts))
        assert thrice[0] == pytest.approx(3 * once[0], rel=1e-6)
        assert torch.allclose(thrice[1], 3 * once[1], rtol=1e-6)


@pytest.mark.parametrize("reference", ["cross_entropy", "focal"])
def test_together_as_alone(make_scale: Callable[..., Scale], reference: str) -> None:
    scale = make_scale(reference)
    pairs = ({"name": "orthogonal_projection", "gamma": g} for g in (0.5, 2.0))
    objectives = [
        *(spec({"name": "focal", "gamma": g}) for g in (0.0, 1.0, 3.0)),
        *(spec("cross_entropy", {"loss": pair, "weight": 0.7}) for pair in pairs),
        *(spec({"loss": "squentropy", "weight": w}) for w in (1.0, 50.0)),
        *(spec({"name": "arcface", "scale": s}) for s in (8.0, 16.0)),
        spec("turns_nan"),
        spec("raises_later"),
        spec("ensloss"),
    ]
    alone = [scale.of(each) for each in objectives]
    assert scale.of_all(objectives) == pytest.approx(alone, rel=1e-5)
    assert len(set(alone)) > 8


def test_several_scores_of_a_model_that_cannot_be_split(make_scale: Callable[..., Scale]) -> None:
    torch.manual_seed(0)
    scale = make_scale(model=torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Softplus()))
    objectives = [spec({"name": "focal", "gamma": g}) for g in (0.0, 1.0, 3.0)]
    alone = [scale.of(each) for each in objectives]
    assert scale.of_all(objectives) == pytest.approx(alone, rel=1e-5) and len(set(alone)) == 3
