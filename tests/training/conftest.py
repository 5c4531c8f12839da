"""Small data, and trainers on it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lossearch.data import Data, as_dataset, prepare_dataset
from lossearch.models import ModelConfig
from lossearch.plugins import FilePlugin, load_plugins
from lossearch.registry import Registry, current, use
from lossearch.spec import ComponentSpec, ObjectiveSpec
from lossearch.training import Recipe, TrainingConfig, Workbench
from lossearch.training.trainer import Trainer

PLUGIN = '''
from typing import Annotated
import torch, torch.nn.functional as F
import lossearch
from lossearch import Range

@lossearch.loss(task="multiclass")
def raises_later(logits, targets, epoch, *, at: int = 0):
    """Cross-entropy, and an error from epoch `at` on."""
    if epoch >= at:
        raise RuntimeError("the loss is tired")  # line 11
    return F.cross_entropy(logits, targets, reduction="none")

@lossearch.loss(task="multiclass")
def wrong_shapes(logits, targets):
    """An error inside torch."""
    return F.cross_entropy(logits[:1], targets, reduction="none")  # line 17

@lossearch.loss(task="multiclass")
def turns_nan(logits, targets, epoch, *, at: int = 0):
    """Cross-entropy, and NaN from epoch `at` on."""
    value = F.cross_entropy(logits, targets, reduction="none")
    return value * float("nan") if epoch >= at else value

@lossearch.loss(task="multiclass")
def overflows(logits, targets, epoch, *, scale: float = 1.0):
    """Cross-entropy, of which one sample's is infinite in the second epoch."""
    value = scale * F.cross_entropy(logits, targets, reduction="none")
    first = torch.arange(len(value)) == 0
    return torch.where(first & (epoch == 1), float("inf"), value)

@lossearch.loss(task="multiclass")
def out_of_range(logits, targets):
    """Refuses what it is given."""
    raise lossearch.LossearchError("targets are not to its taste")

@lossearch.loss(name="tempered", task="multiclass")
class Tempered(torch.nn.Module):
    """Cross-entropy with a learned temperature."""
    def __init__(self):
        super().__init__()
        self.log_t = torch.nn.Parameter(torch.full((), 0.5))
    def forward(self, logits, targets):
        return F.cross_entropy(logits * self.log_t.exp(), targets, reduction="none")

@lossearch.loss(task="multiclass")
def reads_energy(logits, targets, energy, tripled):
    """Reads what two providers make of each other."""
    assert torch.equal(tripled, 3 * logits.logsumexp(1))
    return F.cross_entropy(logits, targets, reduction="none") + 0 * energy

@lossearch.loss(task="multiclass")
def reads_logits_b(logits, targets, logits_b):
    """Reads a second view."""
    apart = (logits - logits_b).square().mean(1)
    return F.cross_entropy(logits, targets, reduction="none") + apart

@lossearch.loss(task="multiclass")
def reads_logits_adv(logits, targets, logits_adv):
    """Learns from attacked inputs."""
    return F.cross_entropy(logits_adv, targets, reduction="none")

@lossearch.loss(task="multiclass", returns="batch")
def of_bags(logits, targets, bag, *, factor: Annotated[float, Range(0.5, 2.0)] = 1.0):
    """Cross-entropy of each bag's mean scores and its proportions."""
    same = (bag[:, None] == bag).to(logits.dtype)
    pooled = same @ logits / same.sum(1, keepdim=True)
    return factor * F.cross_entropy(pooled, targets)

@lossearch.provider(gives="tripled")
def triple(energy):
    """Three times the energy; listed before what it reads."""
    return 3 * energy

@lossearch.provider(gives="energy")
def energy(logits):
    """log-sum-exp of the logits."""
    return logits.logsumexp(1)

@lossearch.provider(gives=("logits_b", "embeddings_b"))
def noisy_view(inputs, model):
    """The network's outputs at noisy inputs."""
    out = model(inputs + 0.1 * torch.randn_like(inputs))
    return out["logits"], out["embeddings"]

@lossearch.provider(gives="features")
def never_needed(logits):
    """Must not run where nothing reads it."""
    raise AssertionError("nobody reads me")

@lossearch.hookimpl
def register_losses():
    return [raises_later, wrong_shapes, turns_nan, overflows, out_of_range, Tempered, reads_energy,
            reads_logits_b, reads_logits_adv, of_bags]

@lossearch.hookimpl
def register_providers():
    return [triple, energy, noisy_view, never_needed]
'''


@pytest.fixture(scope="session")
def file() -> FilePlugin:
    return FilePlugin("toys", PLUGIN, "/nowhere/toys.py")


@pytest.fixture
def registry(file: FilePlugin) -> Registry:
    return load_plugins([file], strict_files=True).registry


@pytest.fixture(autouse=True)
def _leave_no_registry() -> Any:
    torch.set_num_threads(1)
    yield
    use(None)


@pytest.fixture(scope="session")
def blobs() -> Data:
    """Three overlapping clouds of points: 150 samples, 4 features."""
    current()
    draw = np.random.default_rng(0)
    targets = np.repeat([0, 1, 2], 50)
    inputs = draw.normal(size=(150, 4)).astype(np.float32)
    inputs[np.arange(150), targets] += 1.5
    return prepare_dataset(as_dataset(inputs, targets))


@pytest.fixture
def make_trainer(blobs: Data, registry: Registry) -> Callable[..., Trainer]:
    def make(
        terms: Any = "cross_entropy",
        *,
        balancer: Any = None,
        model: Any = None,
        seed: int = 0,
        providers: tuple[str, ...] = (),
        metric: str = "accuracy",
        lr: float = 0.05,
        weight_decay: float = 0.01,
        **training: Any,
    ) -> Trainer:
        listed = [terms] if isinstance(terms, (str, dict)) else terms
        document: dict[str, Any] = {"task": "multiclass", "terms": [{"loss": t} for t in listed]}
        if balancer is not None:
            document["balancer"] = balancer
        return Trainer(
            ObjectiveSpec.parse(document),
            blobs,
            model or ModelConfig.model_validate({"name": "mlp", "hidden": [8]}),
            TrainingConfig(**{"epochs": 4, "batch_size": 32, "device": "cpu", **training}),
            {"lr": lr, "weight_decay": weight_decay},
            registry.build(metric, kind="metric", task="multiclass"),
            registry,
            seed,
            tuple(ComponentSpec(name=p) for p in providers),
        )

    return make


@pytest.fixture
def make_bench(blobs: Data, registry: Registry, tmp_path: Path) -> Callable[..., Workbench]:
    def make(folder: str = "checkpoints", **training: Any) -> Workbench:
        recipe = Recipe(
            data=blobs,
            model=ModelConfig.model_validate({"name": "mlp", "hidden": [8], "dropout": 0.2}),
            training=TrainingConfig(
                **{"epochs": 4, "batch_size": 32, "device": "cpu", **training}
            ),
            metrics=(ComponentSpec(name="accuracy"), ComponentSpec(name="nll")),
            checkpoints=tmp_path / folder,
        )
        return Workbench(recipe, registry)

    return make
