"""The unit of work, and the bench that runs it: the same under every executor.

What crosses a process is data: a recipe once, units after that, results back. A unit is a list of
objectives on one data and model.
"""

from __future__ import annotations

import time
import traceback
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from lossearch import registry as registries
from lossearch.components import Bound
from lossearch.data import Data
from lossearch.errors import LossearchError, PluginError
from lossearch.models import ModelConfig
from lossearch.plugins import FilePlugin, PluginInfo, load_plugins
from lossearch.registry import Registry
from lossearch.spec import ComponentSpec, ObjectiveSpec
from lossearch.training.config import TrainingConfig
from lossearch.training.trainer import CurveRow, Diverged, Trainer

_TORCH = Path(nn.__file__).parents[1]
Reason = Literal["diverged", "out_of_memory", "infeasible", "error", "worker_died"]


@dataclass(frozen=True)
class Recipe:
    """All that the units of a study share."""

    data: Data
    model: ModelConfig | nn.Module
    training: TrainingConfig
    metrics: tuple[ComponentSpec, ...]  # the first one decides
    checkpoints: Path
    providers: tuple[ComponentSpec, ...] = ()
    files: tuple[FilePlugin, ...] = ()
    plugins: tuple[PluginInfo, ...] = ()


@dataclass(frozen=True)
class Job:
    """Train one objective up to an epoch: on from its checkpoint, or from the start."""

    trial: int
    objective: dict[str, Any]
    values: dict[str, float]
    seed: int
    until: int
    test: bool = False  # a confirmation: measure the test split at the end

    @property
    def name(self) -> str:
        return f"{self.trial}-{self.seed}"


@dataclass(frozen=True)
class Unit:
    """Objectives to train together on one worker."""

    number: int
    jobs: tuple[Job, ...]


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


class Workbench:
    """Runs units of one recipe; an executor makes one in each of its processes."""

    def __init__(self, recipe: Recipe, registry: Registry | None = None) -> None:
        self.recipe = recipe
        if registry is None:
            loaded = load_plugins(recipe.files, strict_files=True)
            _same_plugins(recipe.plugins, tuple(loaded.loaded))
            registry = loaded.registry
            registries.use(registry)
        self.registry = registry
        task = recipe.data.info.task
        self.metrics: dict[str, Bound] = {
            m.name: registry.build(m.name, m.params, kind="metric", task=task)
            for m in recipe.metrics
        }
        self.first = next(iter(self.metrics.values()))

    def run(self, unit: Unit) -> list[JobResult]:
        """Train every job of a unit; a job that fails is a result, never an exception."""
        torch.set_num_threads(self.recipe.training.threads)
        return [self._run(job) for job in unit.jobs]

    def _run(self, job: Job) -> JobResult:
        started = time.perf_counter()
        result = JobResult(job.trial, job.seed)
        try:
            # the caller's own random draws go on as if nothing had been trained
            with torch.random.fork_rng(), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # a hundred trials must not warn a hundred times
                self._train(job, result)
        except Diverged as error:
            result.reason, result.detail = "diverged", str(error)
        except torch.cuda.OutOfMemoryError as error:
            torch.cuda.empty_cache()
            result.reason, result.detail = "out_of_memory", str(error).splitlines()[0]
        except LossearchError as error:
            result.reason, result.detail = "infeasible", str(error)
        except Exception as error:  # a bad loss must not cost the worker
            result.reason, result.detail = "error", _where(error)
        if result.reason is not None:
            result.done, result.score = True, None
            (self.recipe.checkpoints / f"{job.name}.pt").unlink(missing_ok=True)
        result.seconds = time.perf_counter() - started
        return result

    def _train(self, job: Job, result: JobResult) -> None:
        recipe = self.recipe
        trainer = Trainer(
            ObjectiveSpec.parse(job.objective),
            recipe.data,
            recipe.model,
            recipe.training,
            job.values,
            self.first,
            self.registry,
            job.seed,
            recipe.providers,
        )
        path = recipe.checkpoints / f"{job.name}.pt"
        if path.exists():
            trainer.load(path)
        result.epoch, result.curve = trainer.epoch, trainer.curve
        while trainer.epoch < job.until and not trainer.stopped:
            trainer.run_epoch()
            result.epoch, result.curve = trainer.epoch, trainer.curve
        if trainer.stopped:
            trainer.restore_best()
            result.done = True
        elif trainer.epoch:
            trainer.save(path)
        result.metrics = trainer.measure("validation", self.metrics)
        result.score = result.metrics[self.first.component.name]
        if job.test:
            result.test = trainer.measure("test", self.metrics)
        if result.done:
            path.unlink(missing_ok=True)


def _where(error: Exception) -> str:
    """The error's last line, with the place that raised it: of ours rather than of torch's."""
    text = "".join(traceback.format_exception_only(error)).strip().splitlines()[-1]
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if not Path(f.filename).is_relative_to(_TORCH)]
    frame = own[-1] if own else None
    return f"{text} ({Path(frame.filename).name}, line {frame.lineno})" if frame else text


def _same_plugins(driver: tuple[PluginInfo, ...], worker: tuple[PluginInfo, ...]) -> None:
    """A worker with other code would give results that mean something else."""
    if driver and set(driver) != set(worker):
        differing = sorted({p.name for p in set(driver) ^ set(worker)})
        raise PluginError(
            "this worker has other plugins than the driver: "
            f"{', '.join(differing)}. Install the same versions everywhere"
        )
