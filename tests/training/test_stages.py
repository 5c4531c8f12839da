"""The second stage's section of a study."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from lossearch.training import TrainingConfig
from lossearch.training.stages import FinetuneConfig


def test_it_changes_what_it_says_of_the_search_s_training() -> None:
    search = TrainingConfig(epochs=30, batch_size=512, optimizer="sgd", clip_norm=1.0)
    full = FinetuneConfig().training(search)
    assert (full.epochs, full.lr, full.batch_size) == (10, 1e-4, 512)
    assert (full.optimizer, full.clip_norm) == ("sgd", 1.0)
    assert FinetuneConfig(batch_size=64, epochs=3).training(search).batch_size == 64
    assert search.epochs == 30


def test_one_rate_replaces_the_trial_s_own() -> None:
    trial = {"lr": 0.02, "weight_decay": 0.1}
    assert FinetuneConfig(lr=1e-3).values(trial) == [{"lr": 1e-3, "weight_decay": 0.1}]
    assert trial["lr"] == 0.02


@pytest.mark.parametrize(("log", "middle"), [(True, 1e-3), (False, 5.05e-3)])
def test_a_range_gives_the_same_rates_to_every_trial(log: bool, middle: float) -> None:
    lr = {"low": 1e-4, "high": 1e-2, "log": log}
    config = FinetuneConfig.model_validate({"lr": lr})
    found = config.values({"lr": 1.0, "weight_decay": 0.1})
    assert [v["lr"] for v in found] == pytest.approx([1e-4, middle, 1e-2])
    assert {v["weight_decay"] for v in found} == {0.1}


@pytest.mark.parametrize(
    ("given", "said"),
    [({"lr": 0}, "greater than 0"), ({"lr": {"low": 0, "high": 1}}, "lies above 0"),
     ({"top": 0}, "greater than or equal to 1"), ({"epoch": 3}, "Extra inputs")],
)  # fmt: skip
def test_what_makes_no_sense_is_refused(given: dict[str, object], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        FinetuneConfig.model_validate(given)
