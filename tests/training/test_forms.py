"""Data and models of other forms than one tensor and its scores: stacked they train as alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lossearch.data import Data, as_dataset, prepare_dataset
from lossearch.models import Factory, Model
from lossearch.registry import Registry, current
from lossearch.spec import ComponentSpec
from lossearch.training import Job, Recipe, Unit
from lossearch.training.config import TrainingConfig
from lossearch.training.workbench import Workbench

DRAW = np.random.default_rng(0)
TARGETS = np.repeat([0, 1, 2], 50)
IDS = DRAW.integers(0, 30, (150, 6))
IDS[:, 0] = TARGETS
NUMBERS = DRAW.normal(size=(150, 4)).astype(np.float32)


class Masked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.fc = nn.Embedding(30, 4), nn.Linear(4, 3)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        mask = attention_mask[..., None].float()
        return self.fc((self.embedding(input_ids) * mask).sum(1) / mask.sum(1))


class Squashed(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input).softmax(1)


def ready(inputs: Any, targets: Any = TARGETS) -> Data:
    return prepare_dataset(as_dataset(inputs, targets))


def several() -> tuple[Data, Model]:
    return ready({"input_ids": IDS, "attention_mask": np.ones((150, 6), bool)}), Masked()


def tokens() -> tuple[Data, Model]:
    data = ready(IDS).as_integers()
    assert data is not None
    return data, nn.Sequential(nn.Embedding(30, 4), nn.Flatten(), nn.Linear(24, 3))


def ending() -> tuple[Data, Model]:
    return ready(NUMBERS), nn.Sequential(nn.Linear(4, 3), nn.Softmax(1))


def squashed() -> tuple[Data, Model]:
    return ready(NUMBERS), Squashed(4, 3)


def made() -> tuple[Data, Model]:
    return ready(NUMBERS), Factory(lambda: nn.Linear(4, 3))


def two_scores() -> tuple[Data, Model]:
    return ready(NUMBERS, (TARGETS > 0).astype(int)), nn.Linear(4, 2)


@pytest.mark.parametrize("form", [several, tokens, ending, squashed, made, two_scores])
def test_stacked_as_alone(form: Callable[[], tuple[Data, Model]], tmp_path: Path) -> None:
    torch.manual_seed(0)
    data, model = form()
    registry: Registry = current()
    training = TrainingConfig(epochs=2, batch_size=32, device="cpu")
    metrics = (ComponentSpec(name="nll"),)
    jobs = tuple(
        Job(
            trial=i,
            objective={
                "task": data.info.task,
                "terms": [{"loss": {"name": "focal", "gamma": float(i)}}],
            },
            values={"lr": 0.02, "weight_decay": 0.01},
            seed=0,
            until=2,
        )
        for i in range(3)
    )

    def scores(name: str, problem: str | None) -> list[float | None]:
        recipe = Recipe(data, model, training, metrics, tmp_path / name)
        bench = Workbench(recipe, registry)
        bench.choice.pays = lambda size: bench.choice.problem is None
        bench.choice.problem = problem
        found = bench.run(Unit(0, jobs)).jobs
        assert [r.detail for r in found] == [""] * 3 and bench.choice.problem == problem
        return [r.score for r in found]

    stacked = scores("stacked", None)
    assert stacked == pytest.approx(scores("alone", "not wanted"), rel=1e-5)
    assert len(set(stacked)) == 3
