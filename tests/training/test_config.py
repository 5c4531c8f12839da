"""The training section: legal values, and what of it a search tunes."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from lossearch.space import Between, Value
from lossearch.training import TrainingConfig


def test_a_range_is_tuned_and_a_number_is_fixed() -> None:
    config: Any = {"lr": {"low": 1e-4, "high": 1e-2, "log": True}, "weight_decay": 0.1}
    tuning = TrainingConfig(**config).tuning()
    lr, decay = tuning["lr"], tuning["weight_decay"]
    assert isinstance(lr, Between) and (lr.low, lr.high, lr.log) == (1e-4, 1e-2, True)
    assert lr.default == pytest.approx(1e-3)
    assert decay == Value(0.1)
    config = {"lr": 0.1, "weight_decay": {"low": 0, "high": 0.5}}
    middle = TrainingConfig(**config).tuning()["weight_decay"]
    assert isinstance(middle, Between) and middle.default == 0.25


@pytest.mark.parametrize(
    "bad",
    [
        {"lr": 0},
        {"lr": -0.1},
        {"lr": float("inf")},
        {"lr": {"low": 0.1, "high": 0.01}},
        {"lr": {"low": 0, "high": 1}},
        {"lr": {"low": -1, "high": 1}},
        {"lr": {"low": 0, "high": 1, "log": True}},
        {"lr": {"low": 0.1, "high": float("inf")}},
        {"lr": {"low": 0.1}},
        {"lr": {"low": 0.1, "high": 1, "steps": 3}},
        {"weight_decay": -0.1},
        {"weight_decay": {"low": -0.1, "high": 0.1}},
        {"epochs": 0},
        {"batch_size": 0},
        {"momentum": 1},
        {"warmup": 1},
        {"clip_norm": 0},
        {"early_stop": 0},
        {"optimizer": "adamax"},
        {"schedule": "step"},
        {"precision": "float16"},
        {"device": "tpu"},
        {"epoch": 3},
    ],
)
def test_what_is_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        TrainingConfig(**bad)
