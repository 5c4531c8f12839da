"""How an objective is trained: optimizer, schedule, precision, early stop."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from lossearch import space

# Training hyperparameters that a search may tune beside the objective.
TUNABLE = ("lr", "weight_decay")


class Between(BaseModel):
    """A range to tune in: ``{low: 1e-4, high: 1e-1, log: true}``."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    low: float
    high: float
    log: bool = False

    @model_validator(mode="after")
    def _ordered(self) -> Between:
        if not self.low < self.high:
            raise ValueError(f"a range needs low < high, not {self.low} and {self.high}")
        if self.log and self.low <= 0:
            raise ValueError("a log range needs low > 0")
        return self


class TrainingConfig(BaseModel):
    """The ``training:`` section of a study."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    epochs: int = Field(20, ge=1)
    batch_size: int = Field(128, ge=1)
    optimizer: Literal["adamw", "adam", "sgd"] = "adamw"
    lr: Annotated[float, Field(gt=0)] | Between = Between(low=1e-4, high=3e-2, log=True)
    weight_decay: Annotated[float, Field(ge=0)] | Between = 1e-2
    momentum: float = Field(0.9, ge=0, lt=1, description="of sgd")
    schedule: Literal["cosine", "constant", "linear"] = "cosine"
    warmup: float = Field(0.0, ge=0, lt=1, description="share of the steps")
    clip_norm: float | None = Field(None, gt=0)
    early_stop: int | None = Field(
        None, ge=1, description="epochs without a better validation score; then the best is kept"
    )
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="auto: bfloat16 on a GPU that has it, else float32"
    )
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: int = Field(1, ge=1, description="CPU threads of one worker")

    def tuning(self) -> dict[str, space.Between | space.Value]:
        """What a search tunes beside the objective; a reference starts in the middle of a range."""
        return {name: _node(getattr(self, name)) for name in TUNABLE}


def _node(value: float | Between) -> space.Between | space.Value:
    if not isinstance(value, Between):
        return space.Value(float(value))
    low, high = value.low, value.high
    middle = (low * high) ** 0.5 if value.log else (low + high) / 2
    return space.Between(low, high, value.log, default=middle)
