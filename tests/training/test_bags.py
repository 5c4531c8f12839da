"""Training on bags: alone and in a cohort, with losses that read them and one that does not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lossearch.data import Data, as_dataset, prepare_dataset
from lossearch.models import ModelConfig
from lossearch.registry import Registry, current
from lossearch.spec import ComponentSpec
from lossearch.training import Job, Recipe, TrainingConfig, Unit, Workbench
from lossearch.training.providers import available_fields


@pytest.fixture(scope="module")
def bags() -> Data:
    """Three clouds of points, of which bags of four tell their proportions alone."""
    current()
    draw = np.random.default_rng(0)
    targets = np.repeat([0, 1, 2], 50)
    inputs = draw.normal(size=(150, 4)).astype(np.float32)
    inputs[np.arange(150), targets] += 3
    return prepare_dataset(as_dataset(inputs, targets), {"bags": {"size": 4}})


def test_what_the_data_give(bags: Data) -> None:
    assert "bag" in available_fields("multiclass", bags.train.gives)
    assert "bag" not in available_fields("multiclass", bags.validation.gives)


def test_losses_learn_from_bags_alone_and_in_a_cohort(
    bags: Data, registry: Registry, tmp_path: Path
) -> None:
    terms: list[Any] = [{"name": "of_bags", "factor": f} for f in (0.5, 1.0, 2.0)]
    jobs = tuple(
        Job(n, {"task": "multiclass", "terms": [{"loss": loss}]},
            {"lr": 0.05, "weight_decay": 0.0}, 0, 8)
        for n, loss in enumerate([*terms, "cross_entropy"])
    )  # fmt: skip

    def run(folder: str, together: bool) -> list[Any]:
        recipe = Recipe(
            data=bags,
            model=ModelConfig.model_validate({"name": "mlp", "hidden": [8]}),
            training=TrainingConfig(epochs=8, batch_size=32, device="cpu"),
            metrics=(ComponentSpec(name="accuracy"),),
            checkpoints=tmp_path / folder,
        )
        bench = Workbench(recipe, registry)
        bench.choice.gain = lambda size: 9.0
        if together:
            return bench.run(Unit(0, jobs)).jobs
        return [bench.run(Unit(n, (job,))).jobs[0] for n, job in enumerate(jobs)]

    stacked, alone = run("a", True), run("b", False)
    for one, other in zip(stacked, alone, strict=True):
        assert one.reason is None, one
        assert one.metrics["accuracy"] == pytest.approx(other.metrics["accuracy"], abs=0.05)
        assert [row["train_loss"] for row in one.curve] == pytest.approx(
            [row["train_loss"] for row in other.curve], rel=1e-4
        )
        assert one.metrics["accuracy"] > 0.5  # of three classes
