"""Studies on models and data of the forms that people have, through ``lossearch.search``."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import lossearch
from lossearch.data import as_dataset, prepare_dataset
from lossearch.errors import LossearchError, ModelError, StudyError
from tests.study.test_api import QUICK, Points, rows

QUICK_ALONE = {**QUICK, "trials": 3}


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.image, self.table, self.fc = nn.Conv2d(1, 4, 3), nn.Linear(4, 4), nn.Linear(8, 3)

    def forward(self, image: Tensor, table: Tensor) -> Tensor:
        return self.fc(torch.cat([self.image(image).mean((2, 3)), self.table(table)], dim=1))


def images(count: int = 150) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(count, 1, 6, 6)).astype(np.float32)


def test_an_image_and_a_table(points: Points) -> None:
    inputs, targets = points
    space = {"terms": [{"loss": {"choice": ["focal", "smooth_adversarial_comp_sum"]}}]}
    quick = {**QUICK, "space": space}
    found = lossearch.search({"table": inputs, "image": images()}, targets, model=Two, **quick)
    row = rows(found.folder)
    assert row["data"]["kind"] == "several"
    assert row["data"]["shapes"] == {"table": [4], "image": [1, 6, 6]}
    for trial in found.trials:
        if trial.label.startswith("smooth_adversarial"):
            assert (trial.status, trial.reason) == ("failed", "infeasible")
            assert "reads 'model' and 'inputs', to attack them" in (trial.detail or "")
        else:
            assert trial.status == "finished"
    assert row["model"].startswith("made by Two: Network(")
    with pytest.raises(StudyError, match="provider second_view reads 'inputs' as one tensor"):
        lossearch.search(
            (images(), inputs), targets, model=Two(), providers=["second_view"], **QUICK
        )
    with pytest.raises(ModelError, match=r"'mlp' reads one tensor.*pass a module of your own"):
        lossearch.search((images(), inputs), targets, **QUICK)
    with pytest.raises(StudyError, match=r"a dict with table is no study; .*pass targets"):
        lossearch.search({"table": inputs}, **QUICK)


def test_a_frozen_network_of_two_inputs_searches_on_its_embeddings(points: Points) -> None:
    inputs, targets = points
    module = Two()
    module.image.requires_grad_(False)
    module.table.requires_grad_(False)
    stages: dict[str, Any] = {"finetune": {"top": 1, "epochs": 1, "lr": 0.01}}
    found = lossearch.search((images(), inputs), targets, model=module, **QUICK_ALONE, **stages)
    assert found.verdict is not None
    assert rows(found.folder)["data"]["kind"] == "several"


def test_tokens_for_an_embedding(points: Points) -> None:
    targets = points[1]
    ids = np.random.default_rng(0).integers(0, 30, (150, 6))
    module = nn.Sequential(nn.Embedding(30, 4), nn.Flatten(), nn.Linear(24, 3))
    found = lossearch.search(ids, targets, model=module, **QUICK_ALONE)
    data = rows(found.folder)["data"]
    assert data["kind"] == "tokens" and "whole numbers (int64)" in data["notes"][0]
    assert {t.status for t in found.trials} == {"finished"}
    with pytest.raises(ModelError, match=r"form int64 \[B, 6\] .*index out of range"):
        lossearch.search(ids + 20, targets, model=module, **QUICK)
    with pytest.raises(ModelError, match="holds an embedding, which takes whole numbers"):
        lossearch.search(ids + 0.5, targets, model=module, **QUICK)


def test_notes_of_the_model_are_facts_of_the_study(points: Points) -> None:
    module = nn.Sequential(nn.Linear(4, 3), nn.Softmax(dim=1)).half()
    loader = DataLoader(TensorDataset(*map(torch.from_numpy, points)), batch_size=4)
    found = lossearch.search(loader, model=module, **QUICK_ALONE)
    notes = rows(found.folder)["data"]["notes"]
    for note, words in zip(
        notes, ("of the DataLoader the dataset", "came in float16", "ends in Softmax"), strict=True
    ):
        assert words in note


class Logistic(nn.Module):
    """The sigmoid is written by hand, so that nothing but the values shows it."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return 1 / (1 + (-self.fc(x)).exp())


def test_scores_that_look_like_probabilities_are_named(points: Points) -> None:
    targets = (points[1] == 0).astype(int)
    found = lossearch.search(points[0], targets, model=Logistic(), **QUICK_ALONE)
    [note] = rows(found.folder)["data"]["notes"]
    assert "lie between 0 and 1. If they are probabilities" in note
    plain = lossearch.search(points[0], targets, model=nn.Linear(4, 1), **QUICK_ALONE)
    assert rows(plain.folder)["data"]["notes"] == []


def test_each_seed_has_the_weights_of_its_own_call(points: Points) -> None:
    calls: list[int] = []

    def make() -> nn.Module:
        calls.append(torch.initial_seed())
        return nn.Linear(4, 3)

    found = lossearch.search(points, model=make, output="out", **QUICK_ALONE)
    assert len(set(calls)) > 2  # the search's seed, and those of the confirmation
    again = lossearch.search(points, model=make, output="again", **QUICK_ALONE)
    assert again.verdict == found.verdict
    with pytest.raises(StudyError, match="the model is not the one"):
        lossearch.search(
            points, model=lambda: nn.Linear(4, 3), output="out", resume_existing=True, **QUICK
        )


def test_a_model_that_does_not_take_the_data_is_named_alone(points: Points) -> None:
    with pytest.raises(LossearchError) as caught:
        lossearch.search(points, model=nn.Linear(4, 3).double(), **QUICK)
    assert "model 'Linear' does not take inputs of shape [B, 4]" in str(caught.value)
    assert "provider" not in str(caught.value)


# batches of one sample ---------------------------------------------------------------------------


def normed(**options: Any) -> nn.Module:
    return nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5, **options), nn.Linear(5, 3))


def half_frozen() -> nn.Module:
    module = normed()
    module[:2].requires_grad_(False)  # pyright: ignore
    return module


@pytest.mark.parametrize(
    ("module", "change", "message"),
    [
        (normed(), {"training": {"batch_size": 1}}, "training.batch_size = 1 .*at least 2"),
        (normed(track_running_stats=False), {}, "no running statistics.*track_running_stats=True"),
        (
            half_frozen(),
            {"finetune": {"top": 1, "epochs": 1, "lr": 0.01, "batch_size": 1}},
            "finetune.batch_size = 1 .*at least 2",
        ),
    ],
)
def test_a_batch_norm_of_one_sample(
    points: Points, module: nn.Module, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(StudyError, match=message):
        lossearch.search(points, model=module, **{**QUICK, **change})


def test_what_needs_no_second_sample_trains(points: Points) -> None:
    one = {"training": {"batch_size": 1, "device": "cpu"}, "epochs": 1, "trials": 3}
    found = lossearch.search(points, model=nn.Linear(4, 3), **{**QUICK, **one})
    assert {t.status for t in found.trials} == {"finished"}
    last = {"training": {"batch_size": 89, "device": "cpu"}, "trials": 3}  # of 90
    found = lossearch.search(points, model=normed(), **{**QUICK, **last})
    assert {t.status for t in found.trials} == {"finished"}


def test_which_batches_may_hold_one_sample(points: Points) -> None:
    def lone(batch_size: int, **config: Any) -> bool:
        train = prepare_dataset(as_dataset(points), config).train
        found = {
            len(batch["index"])
            for seed in range(60)
            for batch in train.batches(batch_size, generator=torch.Generator().manual_seed(seed))
        }
        assert train.lone(batch_size) == (1 in found)
        return train.lone(batch_size)

    assert lone(1) and not lone(2) and not lone(89) and not lone(90)
    for size, batch_size, alone in ((1, 89, True), (1, 45, False), (89, 89, True), (9, 18, False)):
        assert lone(batch_size, bags={"size": size}) is alone
