"""How an objective is trained: optimizer, schedule, precision, early stop."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictBool, model_validator

from lossearch import space

# Training hyperparameters that a search may tune beside the objective.
TUNABLE = ("lr", "weight_decay")


class Between(BaseModel):
    """A range to tune in: ``{low: 1e-4, high: 1e-1, log: true}``."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
    low: float
    high: float
    log: StrictBool = False

    @model_validator(mode="after")
    def _ordered(self) -> Between:
        if not self.low < self.high:
            raise ValueError(f"a range needs low < high, not {self.low} and {self.high}")
        if self.log and self.low <= 0:
            raise ValueError("a log range needs low > 0")
        return self


class TrainingConfig(BaseModel):
    """The ``training:`` section of a study."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    epochs: int = Field(default=20, ge=1, le=1_000_000)
    batch_size: int = Field(default=128, ge=1, le=2**31)
    optimizer: Literal["adamw", "adam", "sgd"] = "adamw"
    lr: Annotated[float, Field(gt=0)] | Between = Between(low=1e-4, high=3e-2, log=True)
    weight_decay: Annotated[float, Field(ge=0)] | Between = 1e-2
    momentum: float = Field(default=0.9, ge=0, lt=1, description="of sgd")
    schedule: Literal["cosine", "constant", "linear"] = "cosine"
    warmup: float = Field(default=0.0, ge=0, lt=1, description="share of the steps")
    clip_norm: float | None = Field(default=None, gt=0)
    early_stop: int | None = Field(
        default=None,
        ge=1,
        description="epochs without a better validation score; then the best is kept",
    )
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        default="auto", description="auto: bfloat16 on a GPU that has it, else float32"
    )
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: int = Field(default=1, ge=1, le=1024, description="CPU threads of one worker")
    timeout: float | None = Field(
        default=None,
        gt=0,
        description="seconds that one trial may take to its next rung; where left out, a minute "
        "and 30 times what its steps were measured to take",
    )

    @model_validator(mode="after")
    def _positive(self) -> TrainingConfig:
        if isinstance(self.lr, Between) and self.lr.low <= 0:
            raise ValueError(f"a range of lr lies above 0, and this one starts at {self.lr.low}")
        if isinstance(self.weight_decay, Between) and self.weight_decay.low < 0:
            raise ValueError(
                f"a range of weight_decay starts at 0 or above, not at {self.weight_decay.low}"
            )
        return self

    def tuning(self) -> dict[str, space.Between | space.Value]:
        """What a search tunes beside the objective; a reference starts mid-range."""
        return {name: _node(getattr(self, name)) for name in TUNABLE}


def _node(value: float | Between) -> space.Between | space.Value:
    if not isinstance(value, Between):
        return space.Value(float(value))
    low, high = value.low, value.high
    middle = (low * high) ** 0.5 if value.log else (low + high) / 2
    return space.Between(low, high, value.log, default=middle)
