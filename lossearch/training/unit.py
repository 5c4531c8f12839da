"""What crosses a process is data: a recipe once, units of work after that, results back.

A unit is a list of objectives on one data and model.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from lossearch.data import Data
from lossearch.models import Model
from lossearch.plugins import FilePlugin, PluginInfo
from lossearch.spec import ComponentSpec
from lossearch.training.config import TrainingConfig
from lossearch.training.inspection import Inspection
from lossearch.training.plan import CurveRow

Death = Literal["worker_died", "timed_out"]
Reason = Literal["diverged", "out_of_memory", "infeasible", "error"] | Death


@dataclass(frozen=True)
class Recipe:
    """All that the units of a study share."""

    data: Data
    model: Model
    training: TrainingConfig
    metrics: tuple[ComponentSpec, ...]  # the first one decides
    checkpoints: Path
    providers: tuple[ComponentSpec, ...] = ()
    files: tuple[FilePlugin, ...] = ()
    plugins: tuple[PluginInfo, ...] = ()
    full: Recipe | None = None  # the second stage: the whole network, where this one has heads
    inspection: Inspection | None = None  # where objectives are looked at before they train


@dataclass(frozen=True)
class Job:
    """Train one objective up to an epoch: on from its checkpoint, or from the start."""

    trial: int
    objective: dict[str, Any]
    values: dict[str, float]
    seed: int
    until: int
    test: bool = False  # a confirmation: measure the test split at the end
    full: bool = False  # of the second stage
    variant: int | None = None  # of the trial: which learning rate is probed, what is left out

    @property
    def name(self) -> str:
        name = f"{self.trial}-{self.seed}"
        return name if self.variant is None else f"{name}-{self.variant}"


@dataclass(frozen=True)
class Unit:
    """Objectives to train together on one worker.

    With ``measure``, a number of jobs, the worker also finds out how many of up to so many it
    should be given at a time.
    """

    number: int
    jobs: tuple[Job, ...] = ()
    measure: int = 0


@dataclass
class JobResult:
    """What became of a job. ``done`` is false where it reached a rung and may go on."""

    trial: int
    seed: int
    epoch: int = 0
    done: bool = False
    score: float | None = None
    curve: list[CurveRow] = field(default_factory=list)  # from the first epoch on
    metrics: dict[str, float] = field(default_factory=dict)
    test: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    reason: Reason | None = None
    detail: str = ""
    variant: int | None = None


@dataclass
class UnitResult:
    """What became of a unit's jobs; the size that it was asked to measure, and why not more.

    Attributes:
        died: How its process ended, where the unit took it down; then there is nothing else.
        detail: Where, in words.
        stop: Why the study has to stop, whatever was trained: a full disk.
    """

    jobs: list[JobResult] = field(default_factory=list)
    size: int | None = None
    problem: str | None = None
    died: Death | None = None
    detail: str = ""
    stop: str | None = None
