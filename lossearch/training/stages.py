"""The second stage of a study with a frozen model: its best objectives train the whole network."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from lossearch.training.config import Between, TrainingConfig


class FinetuneConfig(BaseModel):
    """The ``finetune:`` section: how the best of the search on frozen embeddings train in full.

    Attributes:
        top: How many objectives go on, beside the tuned baseline.
        epochs: Epochs of a full training.
        lr: Their learning rate, which the search's own, that of a head alone, says nothing about;
            or a range, of which every objective tries the same ``rates`` and keeps the best.
        rates: How many rates of a range are tried, spread evenly from its low to its high end.
        batch_size: That of the search where left out.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    top: int = Field(default=5, ge=1, le=100)
    epochs: int = Field(default=10, ge=1)
    lr: Annotated[float, Field(gt=0)] | Between = 1e-4
    rates: int = Field(default=3, ge=2, le=20)
    batch_size: int | None = Field(default=None, ge=1)

    @model_validator(mode="after")
    def _positive(self) -> FinetuneConfig:
        if isinstance(self.lr, Between) and self.lr.low <= 0:
            raise ValueError(f"a range of lr lies above 0, and this one starts at {self.lr.low}")
        return self

    def training(self, search: TrainingConfig) -> TrainingConfig:
        """The search's training config with this stage's epochs, rate and batch size."""
        changes = {"epochs": self.epochs, "lr": self.lr, "batch_size": self.batch_size}
        return search.model_copy(update={k: v for k, v in changes.items() if v is not None})

    def values(self, trial: Mapping[str, float]) -> list[dict[str, float]]:
        """The tunable settings that a trial is trained with here: one set for each rate."""
        if not isinstance(self.lr, Between):
            return [{**trial, "lr": self.lr}]
        spread = np.geomspace if self.lr.log else np.linspace
        return [{**trial, "lr": float(r)} for r in spread(self.lr.low, self.lr.high, self.rates)]
